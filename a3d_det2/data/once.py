"""Logging once per file across the worker processes of a data loader."""

import logging
import zlib

import torch


class OncePerFile:
    """Logs a message for a file unless one was logged for it before, in this process or one forked from it.

    The flags lie in shared memory without a lock, so that a worker that is killed blocks nobody. Two workers that meet
    the same file at the same moment may both log it, and of a thousand damaged files about one in a thousand shares its
    flag with another.
    """

    _FLAGS = 1 << 20

    def __init__(self, logger: logging.Logger):
        self._logger = logger
        self._flags = torch.zeros(self._FLAGS, dtype=torch.uint8).share_memory_()

    def __call__(self, path: str, message: str) -> None:
        flag = zlib.crc32(path.encode()) % self._FLAGS
        if not self._flags[flag]:
            self._flags[flag] = 1
            self._logger.warning(message)

    def count(self) -> int:
        """Files logged so far."""
        return int(self._flags.count_nonzero())
