"""Processes on this machine, each with a model, that are given the items of an archive one by one."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from tqdm import tqdm

from ...threads import available_cores, worker_environment
from ..mistakes import Mistake
from .manifest import Item
from .pending import Pending
from .reading import PROCESS_DIED, SIGNALS, SPAWN, ending, ignore_signals
from .store import OutputError
from .work import How, Task, Worker

MOST_DEATHS_IN_A_ROW = 10  # of processes of one number, without an item that was done; then something else is wrong
LAST_SECONDS = 5.0  # that a process has to end, when it is killed or has closed its connection


class LocalWorkers:
    """Does items in processes that may be killed: another one takes their place, and the item is done again.

    Args:
        task: the work.
        how: see :class:`.How`.
        workers: processes with a model.
        threads: of each; None shares the cores of the machine.
    """

    def __init__(self, task: Task, how: How, workers: int = 1, threads: int | None = None):
        self._task, self._how, self._count = task, how, workers
        self._environment = worker_environment(workers, threads or max(1, available_cores() // workers))
        self._running: list[_Process] = []
        self._again: list[tuple[Item, int]] = []  # and the number of the process that had it
        self._deaths: Counter[str] = Counter()  # of processes at work on an item
        self._deaths_in_a_row: Counter[int] = Counter()  # by the number of the process
        self._was_ready = self.stopping = False

    def records(self, items: Iterable[Item], pending: Pending) -> Iterator[dict]:
        """Do those items that are left to do; gives the record of each when it is complete.

        Args:
            items: of the archive.
            pending: decides which are left, when it knows the run that they are to be done by.

        Raises:
            Mistake: if the model cannot be made, the results cannot be written or processes end again and again.
        """
        try:
            yield from self._records(iter(items), pending)
        finally:
            for process in self._running:
                process.kill()

    def stop(self) -> None:
        """Begin no more items; those that a model is at work on are completed."""
        self.stopping = True

    def _records(self, items: Iterator[Item], pending: Pending) -> Iterator[dict]:
        left: Iterator[Item] | None = None
        for index in range(self._count):
            self._start(index)
        while self._running:
            for process in self._wait():
                has_ended = process.has_ended  # before its last words are read, or they could come in between
                for message, value in process.messages():
                    if message == "ready":
                        self._was_ready = True
                        pending.begin(*value)
                        left = left or pending.of(items)
                        process.answer("begin")
                    elif message == "next":
                        item = self._next(left, process.index)
                        process.give(item, self._deaths[item.id] if item else 0)
                    elif message == "record":
                        if value.get("error", {}).get("class") != PROCESS_DIED:
                            self._deaths_in_a_row[process.index] = 0
                        process.finished(value["id"])
                        process.answer(not self.stopping)
                        yield value
                    elif message == "mistake":
                        raise Mistake(value)
                if has_ended:
                    self._ended(process)

    def _next(self, left: Iterator[Item], index: int) -> Item | None:
        """The next item for a process: one that another one had first, as it may be the process and not the item that
        is bad, then a new one, and one that it had itself only where there is no other process."""
        if self.stopping:
            return None
        for number, (item, before) in enumerate(self._again):
            if before != index:
                del self._again[number]
                return item
        if (item := next(left, None)) is not None:
            return item
        return self._again.pop(0)[0] if self._again and len(self._running) == 1 else None

    def _start(self, index: int) -> None:
        self._running.append(_Process(index, self._task, self._how, self._environment))

    def _wait(self) -> list["_Process"]:
        """Those that have something to say or have ended; ends those that take too long."""
        seconds = max(0.0, min(process.deadline for process in self._running) - time.monotonic())
        wait([handle for process in self._running for handle in process.handles], seconds)
        for process in list(self._running):
            if time.monotonic() > process.deadline and not process.has_something:
                print(f"A process has said nothing for {process.patience:g} s and is ended.", file=sys.stderr)
                process.kill()
                self._ended(process)
        return [process for process in self._running if process.has_something]

    def _ended(self, process: "_Process") -> None:
        self._running.remove(process)
        process.kill()
        if process.done_well:
            # There may be something again that others have left since it was told that there was nothing.
            is_for_it = any(before != process.index for _, before in self._again) or not self._running
            if self._again and is_for_it and not self.stopping:
                self._start(process.index)
            return
        how = ending(process.exit_code)
        if self.stopping:
            return
        if not self._was_ready:
            raise Mistake(f"A process {how} before its model was ready; its messages are above.")
        self._again += [(item, process.index) for item in process.items]
        self._deaths.update([process.at_work] if process.at_work else [])
        self._deaths_in_a_row[process.index] += 1
        names = ", ".join(item.id for item in process.items) or "nothing"
        print(f"A process {how} while it had {names}; that is done again.", file=sys.stderr, flush=True)
        if self._deaths_in_a_row[process.index] < MOST_DEATHS_IN_A_ROW:
            self._start(process.index)
            return
        message = (
            f"{MOST_DEATHS_IN_A_ROW} processes with the number {process.index} ended one after the other, and no item "
            "was done by them."
        )
        if not self._running:
            raise Mistake(message)
        print(f"{message} There will be no other with this number.", file=sys.stderr, flush=True)


class _Process:
    """One of them as the first process sees it.

    Attributes:
        index: its number.
        done_well: whether it has said that it has nothing more to do.
        at_work: id of the item that its model is at work on; "" if there is none.
    """

    def __init__(self, index: int, task: Task, how: How, environment: dict[str, str]):
        self.index, self.done_well, self.at_work = index, False, ""
        self._timeout, self._was_ready, self._is_open = how.timeout, False, True
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs, index, task, how))
        # It inherits that signals are blocked, which a terminal or Slurm sends to all: the first process decides. When
        # Python starts its resource tracker it unblocks them, so that is done before.
        resource_tracker.ensure_running()
        with _environment(environment), _blocked(SIGNALS):
            self._process.start()
        theirs.close()
        self._heard_at = time.monotonic()
        self._items: dict[str, Item] = {}

    @property
    def patience(self) -> float:
        """Seconds that it may be silent. It sees to the timeouts of reading itself."""
        if not self._is_open:
            return LAST_SECONDS
        return self._timeout if self.at_work or not self._was_ready else 3 * self._timeout

    @property
    def deadline(self) -> float:
        return self._heard_at + self.patience

    @property
    def handles(self) -> list:
        return [self._process.sentinel, *([self._connection] if self._is_open else [])]

    @property
    def has_something(self) -> bool:
        return self.has_ended or (self._is_open and self._connection.poll())

    @property
    def has_ended(self) -> bool:
        return bool(wait([self._process.sentinel], 0))

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    @property
    def items(self) -> list[Item]:
        """Those that it was given and has not done."""
        return list(self._items.values())

    def messages(self) -> Iterator[tuple[str, object]]:
        """All that it has said."""
        try:
            while self._is_open and self._connection.poll():
                message, value = self._connection.recv()
                self._heard_at = time.monotonic()
                self._was_ready |= message == "ready"
                self.done_well |= message == "end"
                if message == "begun":
                    self.at_work = value
                yield message, value
        except (EOFError, OSError):
            self._is_open = False

    def give(self, item: Item | None, deaths: int) -> None:
        """Answer what it has asked for: an item, and how many processes have ended while at work on it."""
        if item is not None:
            self._items[item.id] = item
        self.answer(item and (item, deaths))

    def finished(self, item_id: str) -> None:
        self._items.pop(item_id, None)
        self.at_work = ""

    def answer(self, value: object) -> None:
        with suppress(OSError):  # it has ended in the meantime
            self._connection.send(value)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(LAST_SECONDS)  # no longer: what waits for a dead file system cannot even be killed
        self._connection.close()
        self._is_open = False


def _serve(connection: Connection, index: int, task: Task, how: How) -> None:
    """What such a process does."""
    from ...data.workers import start_worker

    start_worker()
    ignore_signals()
    tqdm.set_lock(threading.RLock())  # not one for several processes, which would outlive a process that is killed
    try:
        processor = task.build(index)
        connection.send(("ready", (processor.run, processor.how)))
        connection.recv()  # not before what earlier runs left behind is gone
        worker = Worker(task, processor, how, lambda item_id: connection.send(("begun", item_id)))
        for record in worker.records(_asked_for(connection, worker)):
            connection.send(("record", record))
            if not connection.recv():
                break
        worker.close()
        connection.send(("end", None))
    except (Mistake, OutputError) as error:
        connection.send(("mistake", str(error)))
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end would wait for a reader that hangs


def _asked_for(connection: Connection, worker: Worker) -> Iterator[Item]:
    """Items, each asked for when there is a reader for it."""
    while True:
        connection.send(("next", None))
        if (answer := connection.recv()) is None:
            return
        item, deaths = answer
        worker.deaths = {**worker.deaths, item.id: deaths} if deaths else worker.deaths
        yield item


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
