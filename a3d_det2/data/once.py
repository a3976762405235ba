"""Logging once, whichever of the worker processes of a data loader finds something first."""

import logging
import pickle
import zlib
from ctypes import c_bool
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawArray


class LogOnce:
    """Logs a warning about something, such as a file, unless one was logged about it before: by this object in this
    process, or by what a worker process got of it.

    The flags lie in shared memory without a lock, so that a worker that is killed blocks nobody. Two workers that meet
    the same thing at the same moment may both log it, and of a thousand things about one in a thousand shares its flag
    with another.
    """

    def __init__(self, logger: logging.Logger, flags: bytes | None = None):
        """
        Args:
            logger: to log with.
            flags: those of another process, pickled; None makes new ones.
        """
        self._logger = logger
        self._flags = pickle.loads(flags) if flags else RawArray(c_bool, 1 << 20)

    def __reduce__(self):
        # Only multiprocessing's pickler can share memory with a worker that is not forked, and Detectron2 uses another.
        flags = bytes(ForkingPickler.dumps(self._flags)) if get_spawning_popen() else None
        return LogOnce, (self._logger, flags)

    def __call__(self, what: str, message: str) -> None:
        flag = zlib.crc32(what.encode()) % len(self._flags)
        if not self._flags[flag]:
            self._flags[flag] = True
            self._logger.warning(message)

    def count(self) -> int:
        """Count the things that a warning was logged about."""
        return sum(bytes(self._flags))
