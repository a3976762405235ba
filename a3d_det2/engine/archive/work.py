"""Items -> records, in a process that has a model."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from multiprocessing.connection import wait
from typing import NamedTuple, Protocol

from .manifest import Item
from .reading import PROCESS_DIED, Failure, Reader
from .store import ERROR, EVERYTHING, OutputError, Store, error_record

MOST_DEATHS = 2  # of processes that were at work on an item, until it is given up


class Processor(Protocol):
    """What a process does with volumes, with the model that it has.

    Attributes:
        run: identifies config, weights and options: results of the same run are the same.
        how: these in detail, for ``run.json``.
    """

    run: str
    how: dict

    def __call__(self, volume: object, folder: str) -> dict:
        """Write the results of a volume into a folder; returns what its record is to say.

        Raises:
            OutputError: if they cannot be written; any other exception is one of the item.
        """

    def with_less_memory(self) -> AbstractContextManager[None] | None:
        """A context in which less memory is needed; None if that cannot be."""


class Task(Protocol):
    """The work on the items of an archive. It goes to other processes, so it can be pickled."""

    def read(self, item: Item) -> object:
        """Read an item, in a process without a model."""

    def wants_gpu(self) -> bool:
        """Whether its processes use a GPU where there is one."""

    def build(self, index: int) -> Processor:
        """Make what processes items, in the process with this number.

        Raises:
            Mistake: if it cannot be made.
        """


class How(NamedTuple):
    """How the processes work.

    Attributes:
        output: folder of the results.
        readers: processes that read ahead of one with a model.
        timeout: seconds that reading an item may take, and the rest of the work on it.
        shard: names the part of the archive that they do.
    """

    output: str
    readers: int = 1
    timeout: float = 3600.0
    shard: str = EVERYTHING


class Worker:
    """Does items one after the other, while others are read.

    Args:
        task: the work.
        processor: made by it.
        how: see :class:`How`.
        begins: is told the id of an item when the work with the model begins.

    Attributes:
        deaths: how often processes have ended while at work on an item; by default never.
    """

    def __init__(self, task: Task, processor: Processor, how: How, begins: Callable[[str], object] = str):
        self._processor, self._begins = processor, begins
        self.deaths: Mapping[str, int] = {}
        self._store = Store(how.output, processor.run, how.shard)
        self._parts = self._store.begin()
        self._readers = [Reader(task.read, how.timeout) for _ in range(how.readers)]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._parts.close()

    def records(self, items: Iterable[Item]) -> Iterator[dict]:
        """Do items; gives the record of each when it is complete. Items are taken from the iterable when there is a
        reader for them.

        Raises:
            OutputError: if results cannot be written.
        """
        items = iter(items)
        self._feed(items)
        while reader := self._next_reader():
            item, outcome = reader.item, reader.take()
            if isinstance(outcome, Failure) and outcome.kind == PROCESS_DIED:
                reader.begin(item)  # once more, as whatever killed the process may have had nothing to do with the item
                outcome = reader.take()
            self._feed(items)
            record = self._finish(item, outcome)
            del outcome  # a volume, while the next one comes
            yield record

    def _feed(self, items: Iterator[Item]) -> None:
        for reader in self._readers:
            if reader.item is None and (item := next(items, None)) is not None:
                reader.begin(item)

    def _next_reader(self) -> Reader | None:
        """The next one that has something, or has had too much time; None if all are idle."""
        busy = {reader.connection: reader for reader in self._readers if reader.item is not None}
        if not busy:
            return None
        first = min(busy.values(), key=lambda reader: reader.seconds_left)
        ready = wait(list(busy), first.seconds_left)
        return busy[ready[0]] if ready else first

    def _finish(self, item: Item, outcome: object | Failure) -> dict:
        before, deaths = self._store.record(item.id), self.deaths.get(item.id, 0)
        attempt = deaths + (before["error"]["attempt"] if before and before["status"] == ERROR else 0)
        if deaths >= MOST_DEATHS:
            outcome = Failure(PROCESS_DIED, f"{item.path}: {deaths} processes ended while at work on it")
        else:
            attempt += 1
        if not isinstance(outcome, Failure):
            try:
                self._begins(item.id)
                with self._parts.writing(item.id) as (folder, record):
                    record |= self._process(outcome, folder)
                return record
            except OutputError:
                raise
            except Exception as error:  # a record, whatever it is
                outcome = Failure(type(error).__name__, str(error))
        return self._parts.write_error(item.id, error_record(*outcome, attempt))

    def _process(self, volume: object, folder: str) -> dict:
        try:
            return self._processor(volume, folder)
        except Exception as error:
            if is_broken_device(error):
                # All that comes after would fail as well. Ended like this it leaves its part behind, as a crash does.
                print(f"A GPU process ends: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            less = self._processor.with_less_memory() if is_out_of_memory(error) else None
            if less is None:
                raise
        with less:
            return self._processor(volume, folder)


def is_broken_device(error: Exception) -> bool:
    """Whether an exception says that CUDA will not work any more in this process."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that there was no memory, of the GPU or the machine."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED")
    of_torch = type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)
