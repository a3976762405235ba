"""Actors of Ray, each with a model, that Ray Data gives the items of an archive."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec

from ...threads import worker_environment
from ..mistakes import Mistake
from .manifest import Item
from .pending import Pending
from .store import ERROR, OutputError, begun, read_record
from .work import How, Task, Worker

ITEMS_AT_ONCE = 8  # that an actor is given, between which it reads ahead
BLOCKS = 1000  # at most; Ray keeps some kB for each


class RayWorkers:
    """Does items as a job of Ray Data: paths are its rows, small records what comes out, and errors are records.

    Args:
        task: the work.
        how: see :class:`.How`; its output is a folder that all machines have.
        workers: actors.
        threads: CPUs of each.

    Raises:
        Mistake: if Ray is not installed.
    """

    def __init__(self, task: Task, how: How, workers: int = 1, threads: int = 1):
        if find_spec("ray") is None:
            raise Mistake("--ray needs Ray: pip install 'a3d_det2[ray]'.")
        self._task, self._how, self._count, self._threads = task, how, workers, threads
        name = f"stop-{socket.gethostname()}-{os.getpid()}"
        self._stop_file = os.path.join(os.path.abspath(how.output), "parts", name)

    def stop(self) -> None:
        """Begin no more items; those that a model is at work on are completed."""
        with open(self._stop_file, "w"):
            pass

    def records(self, items: Iterable[Item], pending: Pending) -> Iterator[dict]:
        """See :meth:`.LocalWorkers.records`.

        Raises:
            Mistake: if the model cannot be made, or the results cannot be written.
        """
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        environment = worker_environment(self._count, self._threads)
        os.makedirs(os.path.dirname(self._stop_file), exist_ok=True)
        with suppress(FileNotFoundError):
            os.remove(self._stop_file)
        here = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}  # which costs time of a core
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(runtime_env={"env_vars": environment}, **here)
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place
        try:
            gpus = 1 if ray.cluster_resources().get("GPU", 0) and self._task.wants_gpu() else 0
            resources = {"num_cpus": self._threads, "num_gpus": gpus}
            run, how = ray.get(ray.remote(**resources)(_describe).remote(self._task))
            if how is None:
                raise Mistake(run)
            pending.begin(run, how)
            rows = [item._asdict() for item in pending.of(items)]
            if not rows:
                return
            DataContext.get_current().enable_progress_bars = False
            # A task that fails is a mistake here, as what goes wrong with an item is a record.
            blocks = max(1, min(len(rows) // ITEMS_AT_ONCE, BLOCKS))
            records = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
                RayWorker,
                fn_constructor_args=(self._task, self._how, self._stop_file),
                batch_size=ITEMS_AT_ONCE,
                compute=ActorPoolStrategy(size=min(self._count, len(rows))),
                **resources,
            )
            for row in records.iter_rows():
                if row["message"]:
                    raise Mistake(row["message"])
                if row["record"]:
                    yield json.loads(row["record"])
        finally:
            ray.shutdown()
            with suppress(FileNotFoundError):
                os.remove(self._stop_file)


def _describe(task: Task) -> tuple[str, dict | None]:
    """The run of a task and how it is done, or a mistake and None."""
    try:
        processor = task.build(0)
    except Mistake as error:
        return str(error), None
    return processor.run, processor.how


class RayWorker:
    """An actor: rows of a manifest in, and what has become of them out.

    Args:
        task, how: see :class:`.Worker`.
        stop_file: there if no more items are to be begun.
    """

    def __init__(self, task: Task, how: How, stop_file: str):
        self._how, self._stop_file = how, stop_file
        self._processor = task.build(0)
        self._worker = Worker(task, self._processor, how, self._begins)
        self._watch = threading.Timer(how.timeout, str)

    def __call__(self, batch: dict) -> Iterator[dict]:
        """
        Args:
            batch: columns id, path and series.

        Yields:
            columns of one entry each: the record of an item as JSON, or a message that the results cannot be written.
        """
        yield {"record": [""], "message": [""]}  # or a batch of which nothing is left would have no columns
        rows = zip(*(batch[name].tolist() for name in Item._fields), strict=True)
        self._worker.deaths = begun(self._how.output, self._how.shard)
        items = []
        for item in map(Item._make, rows):
            if (record := self._record(item)) is not None:
                yield {"record": [json.dumps(record)], "message": [""]}
            else:
                items.append(item)
        try:
            for record in self._worker.records(self._until_stopped(items)):
                self._watch.cancel()
                yield {"record": [json.dumps(record)], "message": [""]}
        except OutputError as error:
            yield {"record": [""], "message": [str(error)]}

    def _begins(self, item_id: str) -> None:
        """End this actor if its model hangs; Ray makes another one."""
        self._watch.cancel()
        self._watch = threading.Timer(self._how.timeout, os._exit, (1,))
        self._watch.daemon = True
        self._watch.start()

    def _record(self, item: Item) -> dict | None:
        """What an actor before this one, which has ended, has done of the same batch."""
        record = read_record(self._how.output, item.id)
        is_done = record is not None and record["run"] == self._processor.run and record["status"] != ERROR
        return record if is_done else None

    def _until_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if os.path.exists(self._stop_file):
                return
            yield item
