"""Which items of an archive are left to do."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..mistakes import Mistake
from .manifest import Item
from .store import ERROR, EVERYTHING, output_errors, read_record, sweep, write_run


@dataclass
class Pending:
    """Decides which items are left, and counts.

    Attributes:
        output: folder of the results.
        retry_errors: whether to do those again that ended with an error.
        say: tells the user a sentence.
        shard: names the part of the archive that is done.
        skipped: items that are done.
        of_other_runs: items that another config, other weights or options have done, and that are done again.
    """

    output: str
    retry_errors: bool
    say: Callable[[str], None]
    shard: str = EVERYTHING
    skipped: int = 0
    of_other_runs: int = 0
    _run: str | None = None
    _begun: Counter[str] = field(default_factory=Counter)

    def begin(self, run: str, how: dict) -> None:
        """Say by which run items are to be done, in ``run.json`` too.

        Raises:
            Mistake: if it is another one than before in this process.
            OutputError: if it cannot be written.
        """
        if self._run is not None:
            if run != self._run:
                raise Mistake("The processes do not have the same config and weights; was a file changed meanwhile?")
            return
        with output_errors(self.output):
            before = write_run(self.output, run, how)
            self._begun = sweep(self.output, self.shard)
        self._run = run
        if before is not None and before["run"] != run:
            self.say(f"{self.output} has results of another config; its volumes are done again. What differs:")
            for name in sorted(before["how"].keys() | how.keys()):
                if before["how"].get(name) != how.get(name):
                    self.say(f"  {name}: {before['how'].get(name)!r} -> {how.get(name)!r}")

    def end(self) -> None:
        """Remove what processes that were killed have left behind."""
        if self._run is not None:
            sweep(self.output, self.shard)

    def of(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those that are left. Items that were begun and never completed come last, as they may be why."""
        put_off = []
        for item in items:
            if not self._is_left(item):
                continue
            if item.id in self._begun:
                put_off.append(item)
            else:
                yield item
        yield from put_off

    def _is_left(self, item: Item) -> bool:
        record = read_record(self.output, item.id)
        if record is not None and record["run"] == self._run:
            if record["status"] != ERROR or not self.retry_errors:
                self.skipped += 1
                return False
        elif record is not None:
            self.of_other_runs += 1
        return True
