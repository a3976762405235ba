"""Processes on this machine, each with a model, that are given the items of an archive one by one."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

from tqdm import tqdm

from ...threads import available_cores, worker_environment
from ..mistakes import Mistake
from .manifest import Item
from .pending import Pending
from .reading import PROCESS_DIED, SPAWN, ending
from .store import OutputError, begun
from .work import How, Task, Worker

MOST_DEATHS_IN_A_ROW = 10  # of processes, without an item that was done; then something else is wrong


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
        self._again: deque[Item] = deque()
        self._deaths: Mapping[str, int] = {}
        self._deaths_in_a_row = 0
        self.stopping = False

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
                for message, value in process.messages():
                    if message == "ready":
                        pending.begin(*value)
                        left = left or pending.of(items)
                        process.answer("begin")
                    elif message == "next":
                        item = self._next(left)
                        process.give(item, self._deaths.get(item.id, 0) if item else 0)
                    elif message == "record":
                        if value.get("error", {}).get("class") != PROCESS_DIED:
                            self._deaths_in_a_row = 0
                        process.finished(value["id"])
                        process.answer(not self.stopping)
                        yield value
                    elif message == "mistake":
                        raise Mistake(value)
                if process.has_ended:
                    self._ended(process)

    def _next(self, left: Iterator[Item]) -> Item | None:
        if self.stopping:
            return None
        return self._again.popleft() if self._again else next(left, None)

    def _start(self, index: int) -> None:
        self._running.append(_Process(index, self._task, self._how, self._environment))

    def _wait(self) -> list["_Process"]:
        """Those that have something to say or have ended; ends those that take too long."""
        now = time.monotonic()
        deadline = min(process.heard_at for process in self._running) + self._how.timeout
        wait([handle for process in self._running for handle in process.handles], max(0.0, deadline - now))
        for process in self._running:
            if time.monotonic() - process.heard_at > self._how.timeout and not process.has_something:
                print(f"A process has said nothing for {self._how.timeout:g} s and is ended.", file=sys.stderr)
                process.kill()
        return [process for process in self._running if process.has_something]

    def _ended(self, process: "_Process") -> None:
        self._running.remove(process)
        process.kill()
        if process.done_well:
            # What others have left while they were told that there was nothing more.
            if self._again and not self.stopping:
                self._start(process.index)
            return
        how = ending(process.exit_code)
        if not process.was_ready:
            raise Mistake(f"A process {how} before its model was ready; its messages are above.")
        self._again.extend(process.items)
        self._deaths = begun(self._how.output)
        self._deaths_in_a_row += 1
        names = ", ".join(item.id for item in process.items) or "nothing"
        print(f"A process {how} while it had {names}; that is done again.", file=sys.stderr, flush=True)
        if self._deaths_in_a_row >= MOST_DEATHS_IN_A_ROW:
            raise Mistake(f"{MOST_DEATHS_IN_A_ROW} processes ended one after the other, and no item was done.")
        if not self.stopping:
            self._start(process.index)


class _Process:
    """One of them as the first process sees it."""

    def __init__(self, index: int, task: Task, how: How, environment: dict[str, str]):
        self.index, self.was_ready, self.done_well = index, False, False
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs, index, task, how))
        with _environment(environment):
            self._process.start()
        theirs.close()
        self.heard_at = time.monotonic()
        self._items: dict[str, Item] = {}

    @property
    def handles(self) -> list:
        return [self._connection, self._process.sentinel]

    @property
    def has_something(self) -> bool:
        return self.has_ended or self._connection.poll()

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
        with suppress(EOFError, OSError):
            while self._connection.poll():
                message, value = self._connection.recv()
                self.heard_at = time.monotonic()
                self.was_ready |= message == "ready"
                self.done_well |= message == "end"
                yield message, value

    def give(self, item: Item | None, deaths: int) -> None:
        """Answer what it has asked for: an item, and how many processes have ended while at work on it."""
        if item is not None:
            self._items[item.id] = item
        self.answer(item and (item, deaths))

    def finished(self, item_id: str) -> None:
        self._items.pop(item_id, None)

    def answer(self, value: object) -> None:
        with suppress(OSError):  # it has ended in the meantime
            self._connection.send(value)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        self._connection.close()


def _serve(connection: Connection, index: int, task: Task, how: How) -> None:
    """What such a process does."""
    from ...data.workers import start_worker

    start_worker()
    tqdm.set_lock(threading.RLock())  # not one for several processes, which would outlive a process that is killed
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal or Slurm sends to all; the first process decides
        signal.signal(number, signal.SIG_IGN)
    try:
        processor = task.build(index)
        connection.send(("ready", (processor.run, processor.how)))
        connection.recv()  # not before what earlier runs left behind is gone
        worker = Worker(task, processor, how)
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
