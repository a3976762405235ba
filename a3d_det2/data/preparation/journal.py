"""What a run has done, so that one that was killed can go on."""

import json
import os
from contextlib import suppress
from dataclasses import fields

from ...files import replacing
from .report import KINDS, Finding


class Journal:
    """Results of :func:`.prepare_series` in a file, one JSON line each, appended as they come.

    A line that is no result, such as one cut off when a run was killed, is dropped, and its series is done again. Lines
    of JSON rather than a database: the finished file has the same bytes whatever the number of workers, the locks of
    SQLite cannot be trusted on the network file systems that datasets lie on, and journals of earlier runs go on.

    Args:
        path: of the file; made if it is not there.

    Attributes:
        results: series name -> its result.
    """

    def __init__(self, path: str):
        self.path = path
        self.results: dict[str, dict] = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                for line in f:
                    with suppress(ValueError, AttributeError, LookupError, RecursionError, TypeError):
                        result = json.loads(line)
                        if _is_result(result):
                            self.results[result["series"]] = result
        self._write()  # without a line that was cut off, which the next one would be glued to

    def append(self, result: dict) -> None:
        """Keep a result, unless it is kept already."""
        if self.results.get(result["series"]) != result:
            self.results[result["series"]] = result
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(_line(result))

    def finish(self, series: set[str]) -> None:
        """Put the lines in order and drop those of series that are not in ``series``."""
        self.results = {name: result for name, result in self.results.items() if name in series}
        self._write()

    def _write(self) -> None:
        with replacing(self.path) as part, open(part, "w", encoding="utf-8") as f:
            f.writelines(_line(self.results[name]) for name in sorted(self.results))


def _is_result(value) -> bool:
    """Whether a value has the entries of a result, each of its type."""
    return (
        all(isinstance(value.get(key), str) for key in ("series", "fingerprint", "packed"))
        and all(isinstance(value.get(key), list) for key in ("findings", "masks"))
        and all(finding.keys() == {field.name for field in fields(Finding)} for finding in value["findings"])
        and all(finding["kind"] in KINDS for finding in value["findings"])
        and all(type(mask["row"]) is int and isinstance(mask["source"], str) for mask in value["masks"])
    )


def _line(result: dict) -> str:
    return json.dumps(result, sort_keys=True) + "\n"
