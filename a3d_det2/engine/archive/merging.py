"""The results of an archive as tables."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from ...csv_table import read_table
from ...files import replacing
from ...volumes.writing import COLUMNS
from ..mistakes import Mistake
from .manifest import Item, check_manifest, read_manifest
from .store import DONE, ERROR, item_folder, read_record, read_run

LESION_COLUMNS = ("volume", *COLUMNS)
ITEM_COLUMNS = ("volume", "status", "lesions", "error", "message", "attempt", "path", "series")
TEXT = {"volume", "measured_from", "status", "error", "message", "path", "series"}
WHOLE = {"id", "category", "slice", "lesions", "attempt"}
MISSING, MOST_NAMED = "missing", 20
ROWS_AT_ONCE = 10_000  # of a Parquet file, which are kept until they are written


@dataclass
class Merged:
    """What a merge has found.

    Attributes:
        counts: items that are done, that ended with an error, and that are missing.
        lesions: of all items.
        missing: the first ids that are neither done nor an error.
    """

    counts: Counter[str] = field(default_factory=Counter)
    lesions: int = 0
    missing: list[str] = field(default_factory=list)


def merge(manifest: str, output: str, table: str) -> Merged:
    """Write a row for each lesion, and into a second table, ``NAME.items.EXTENSION``, one for each item: done, an
    error or missing.

    Args:
        manifest: the items.
        output: folder of their results.
        table: the file to write, .csv or .parquet.

    Raises:
        Mistake: if ``output`` is none, the kind of table cannot be written, or it would replace the manifest.
        FileNotFoundError, ValueError: if the manifest or a table of results cannot be read.
        OSError: if a table cannot be written.
    """
    run = read_run(output)
    if run is None:
        raise Mistake(f"{output}: expected a folder that a3d-archive predict has written, with a run.json.")
    check_manifest(manifest)
    name, extension = os.path.splitext(table)
    if os.path.realpath(manifest) in map(os.path.realpath, (table, f"{name}.items{extension}")):
        raise Mistake(f"Expected a table that does not take the place of the manifest, got {table!r}.")
    merged = Merged()
    with (
        table_writer(table, LESION_COLUMNS) as add_lesion,
        table_writer(f"{name}.items{extension}", ITEM_COLUMNS) as add_item,
    ):
        for item in read_manifest(manifest):
            record = read_record(output, item.id)
            status = record["status"] if record and record["run"] == run["run"] else MISSING
            merged.counts[status] += 1
            add_item(_item_row(item, status, record))
            if status == MISSING and len(merged.missing) < MOST_NAMED:
                merged.missing.append(item.id)
            for lesion in _lesions(output, item) if status == DONE else ():
                merged.lesions += 1
                add_lesion({"volume": item.id, **lesion})
    return merged


def _lesions(output: str, item: Item) -> Iterator[dict[str, str]]:
    for _, row in read_table(os.path.join(item_folder(output, item.id), "lesions.csv"), COLUMNS):
        yield row


def _item_row(item: Item, status: str, record: dict | None) -> dict:
    error = record["error"] if status == ERROR else {}
    return {
        "volume": item.id,
        "status": status,
        "lesions": record.get("lesions", "") if status == DONE else "",
        "error": error.get("class", ""),
        "message": error.get("message", ""),
        "attempt": error.get("attempt", ""),
        "path": item.path,
        "series": item.series,
    }


@contextmanager
def table_writer(path: str, columns: tuple[str, ...]):
    """Write a CSV or Parquet file row by row, and in one step.

    Yields:
        a function that takes a row, column -> value; "" is none.

    Raises:
        Mistake: if it is neither, or pyarrow is not installed for Parquet.
    """
    if path.endswith(".csv"):
        with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            yield writer.writerow
    elif path.endswith(".parquet"):
        if find_spec("pyarrow") is None:
            raise Mistake("A Parquet file needs pyarrow: pip install pyarrow.")
        with replacing(path) as part:
            yield from _parquet(part, columns)
    else:
        raise Mistake(f"Expected the name of a .csv or .parquet file, got {path!r}.")


def _parquet(path: str, columns: tuple[str, ...]):
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {name: pyarrow.string() if name in TEXT else pyarrow.float64() for name in columns}
    kinds |= {name: pyarrow.int64() for name in columns if name in WHOLE}
    schema, rows = pyarrow.schema(list(kinds.items())), []

    def convert(name: str, value: object) -> object:
        if value == "":
            return None
        return str(value) if name in TEXT else int(value) if name in WHOLE else float(value)

    with ParquetWriter(path, schema) as writer:

        def write() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def add(row: dict) -> None:
            rows.append({name: convert(name, row[name]) for name in columns})
            if len(rows) >= ROWS_AT_ONCE:
                write()

        yield add
        if rows:
            write()
