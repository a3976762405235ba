"""A manifest done by processes of either kind, with a bar and what a user is to be told."""

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ...files import printable
from ..mistakes import mistakes
from .local import LocalWorkers
from .manifest import Shard, check_manifest, shard_items
from .pending import Pending
from .ray_pool import RayWorkers
from .store import DONE, ERROR, OutputError
from .work import How, Task

ENDED_BY_SIGNAL = 128  # and the signal's number: the status of a command that a signal ended
WHOLE = Shard(1, 1)


def predict_archive(
    task: Task,
    manifest: str,
    how: How,
    *,
    workers: int = 1,
    threads: int | None = None,
    shard: Shard = WHOLE,
    retry_errors: bool = False,
    ray: bool = False,
) -> Counter[str]:
    """Do what is left of the items of a manifest, and say so.

    Args:
        task: the work.
        manifest: path of the list of items.
        how: the output, and how the processes work.
        workers, threads: processes with a model, and threads of each.
        shard: of the manifest, which is done.
        retry_errors: whether to do those again that ended with an error.
        ray: whether the processes are actors of Ray.

    Returns:
        how many items were done and how many ended with an error.

    Raises:
        Mistake: if the manifest, the model or the output cannot be used, or processes end again and again.
        SystemExit: when SIGTERM or SIGINT has ended it, after the items that were at work.
    """
    with mistakes(kinds=(OSError, ValueError)):
        rows = check_manifest(manifest)
    how = how._replace(shard=f"{shard.index}-of-{shard.count}")
    total = len(range(shard.index - 1, rows, shard.count))
    pool = RayWorkers(task, how, workers, threads or 1) if ray else LocalWorkers(task, how, workers, threads)
    bar = tqdm(total=total, desc="volumes", unit="volume")
    pending = Pending(how.output, retry_errors, lambda text: bar.write(printable(text), file=sys.stderr), how.shard)
    counts: Counter[str] = Counter()
    with bar, mistakes(kinds=(OutputError,)), _stopped_by_signals(pool.stop) as signals:
        for record in pool.records(shard_items(manifest, shard), pending):
            counts[record["status"]] += 1
            if record["status"] == ERROR:
                pending.say("{}: {class}: {message}".format(record["id"], **record["error"]))
            bar.set_postfix(errors=counts[ERROR], refresh=False)
            bar.update(pending.skipped + counts.total() - bar.n)
        bar.update(pending.skipped + counts.total() - bar.n)
        pending.end()
    print(f"{total} volumes: {counts[DONE]} done, {counts[ERROR]} errors, {pending.skipped} were done before.")
    if pending.of_other_runs:
        print(f"{pending.of_other_runs} of them had results of another config, and were done again.")
    if left := total - counts.total() - pending.skipped:
        print(f"{left} are left; the same command does them.")
    if signals:
        sys.exit(ENDED_BY_SIGNAL + signals[0])
    return counts


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` at the first SIGTERM or SIGINT; a second SIGINT ends the process at once.

    Yields:
        the numbers of those that came.
    """
    came: list[int] = []

    def handle(number, frame):
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not came:
            print("\nEnds after the volumes that are at work.", file=sys.stderr, flush=True)
            stop()
        came.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
