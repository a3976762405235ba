"""Volumes read ahead of the model, each in a process that may crash or hang without the model's."""

import mmap
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

from .manifest import Item

ALIGNMENT = 64  # bytes; of arrays in shared memory
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SPAWN = multiprocessing.get_context("spawn")  # a fork would have locks of threads that it does not have
PROCESS_DIED, TIMEOUT = "ProcessDied", "ReadTimeout"


class Failure(NamedTuple):
    """Why a volume was not read.

    Attributes:
        kind: name of the exception's class, or ``PROCESS_DIED`` or ``TIMEOUT``.
        message: what it said.
    """

    kind: str
    message: str


class Reader:
    """A process that reads one volume at a time.

    Args:
        read: reads an item; called in that process.
        timeout: seconds that one may take, such as on a file system that hangs.

    Attributes:
        item: that it is at work on; None if it is idle.
    """

    def __init__(self, read: Callable[[Item], object], timeout: float):
        self._read, self._timeout = read, timeout
        self.item: Item | None = None
        self._start()

    def _start(self) -> None:
        self._connection, theirs = SPAWN.Pipe()  # with duplex, which a handle can be sent through
        self._process = SPAWN.Process(target=_serve, args=(theirs, self._read), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, item: Item) -> None:
        self.item, self._deadline = item, time.monotonic() + self._timeout
        with suppress(OSError):  # it has ended since it was last seen, which ``take`` finds
            self._connection.send(item)

    @property
    def connection(self) -> Connection:
        """Readable when the volume is there, or the process has ended."""
        return self._connection

    @property
    def seconds_left(self) -> float:
        """Until the timeout of the item it is at work on."""
        return max(0.0, self._deadline - time.monotonic())

    def take(self) -> object | Failure:
        """What has become of the item; waits for it, up to the timeout. Then the reader is idle, and a new process if
        the one before has ended or hung."""
        item, self.item = self.item, None
        if not self._connection.poll(self.seconds_left):
            self.close()
            self._start()
            return Failure(TIMEOUT, f"{item.path}: not read within {self._timeout:g} s; does its file system hang?")
        try:
            return receive_object(self._connection)
        except (EOFError, OSError):
            self._process.join(1)
            how = ending(self._process.exitcode)
            self.close()
            self._start()
            return Failure(PROCESS_DIED, f"{item.path}: the process that read it {how}")

    def close(self) -> None:
        self._process.kill()
        self._process.join(1)  # no longer: what waits for a dead file system cannot even be killed
        self._connection.close()


def ending(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "does not end"
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def ignore_signals() -> None:
    """Ignore what a terminal or Slurm sends to all processes; the first one decides for them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _serve(connection: Connection, read: Callable[[Item], object]) -> None:
    from ...data.workers import start_worker

    start_worker()
    ignore_signals()
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            value = read(item)
        except Exception as error:  # a record, whatever it is
            value = Failure(type(error).__name__, str(error))
        try:
            send_object(connection, value)
        except ConnectionError:
            return
        except Exception as error:  # no memory for it, or no way to send it
            connection.send((pickle.dumps(Failure(type(error).__name__, str(error))), [], 1))
        del value  # or it would be kept until the next one is read


def send_object(connection: Connection, value: object) -> None:
    """Send an object whose arrays go through memory that both processes have. It has no name, so nothing is left of it
    when they are killed, and it is no part of /dev/shm, which containers keep small."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    memory = os.memfd_create("volume") if parts else None
    try:
        places, end = [], 0
        for part in parts:
            places.append((end, part.nbytes))
            end += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
            with open(memory, "r+b", closefd=False, buffering=0) as f:
                f.seek(places[-1][0])
                while part.nbytes:
                    part = part[f.write(part) :]
        if memory is not None:
            os.truncate(memory, max(end, 1))
        connection.send((data, places, max(end, 1)))
        if memory is not None:
            send_handle(connection, memory, None)
    finally:
        if memory is not None:
            os.close(memory)


def receive_object(connection: Connection) -> object:
    """Receive what :func:`send_object` sends.

    Raises:
        EOFError, OSError: if the sender has ended.
    """
    data, places, size = connection.recv()
    if not places:
        return pickle.loads(data)
    memory = recv_handle(connection)
    try:
        view = memoryview(mmap.mmap(memory, size))
    finally:
        os.close(memory)
    return pickle.loads(data, buffers=[view[start : start + length] for start, length in places])
