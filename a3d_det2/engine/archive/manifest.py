"""The list of what an archive holds: a CSV file with the columns id, path and, where a path has several, series."""

import csv
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

from ...csv_table import read_table
from ...files import replacing, shortened

COLUMNS = ("id", "path", "series")
LONGEST_ID = 200  # bytes of its folder's name, which may have 255


class Item(NamedTuple):
    """A volume of an archive.

    Attributes:
        id: its name, of which there is no other; its results are found by it.
        path: of a file or folder, see :func:`.read_volume`.
        series: UID or name of the one volume of several in ``path``; "" where there is one.
    """

    id: str
    path: str
    series: str = ""


class Shard(NamedTuple):
    """A part of a manifest: of every ``count`` rows the one with the number ``index``, from 1 on."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """
        Args:
            text: "2/64".

        Raises:
            ValueError: if it is no such.
        """
        parts = text.split("/")
        if len(parts) == 2 and all(part.isdecimal() and len(part) < 10 for part in parts):
            shard = cls(*map(int, parts))
            if 1 <= shard.index <= shard.count:
                return shard
        raise ValueError(f"expected a shard and their number, such as 1/64 to 64/64, got {shortened(text)}")


def folder_name(item_id: str) -> str:
    """An id as the name of a folder: all but letters, digits, "_", "-", "." within, and "~" by their codes."""
    name = quote(item_id, safe="")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def id_of_folder(name: str) -> str:
    return unquote(name)


def item_problem(item: Item) -> str:
    """Why a manifest cannot have an item; "" if it can."""
    if not item.id or not item.path or "\0" in item.path:
        return f"expected an id and a path, got {shortened(item.id)} and {shortened(item.path)}"
    try:
        "".join(item).encode()
    except UnicodeEncodeError:
        return f"expected names that are text, got {item.path!a}"
    if len(folder_name(item.id)) > LONGEST_ID:
        return (
            f"expected an id of at most {LONGEST_ID} letters as a folder has them, got {len(folder_name(item.id))} in "
            f"{shortened(item.id)}"
        )
    return ""


def read_manifest(path: str) -> Iterator[Item]:
    """The rows of a manifest, one after the other. Relative paths are relative to its folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such table, or an id or a path is missing or cannot be.
    """
    folder = os.path.dirname(os.path.abspath(path))
    for line, row in read_table(path, COLUMNS[:2]):
        item = Item(row["id"], row["path"], row.get("series", ""))
        if problem := item_problem(item):
            raise ValueError(f"{path}, line {line}: {problem}.")
        yield item._replace(path=os.path.join(folder, item.path))


def check_manifest(path: str) -> int:
    """
    Returns:
        the number of its rows.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_manifest`; or an id is there twice, or there is no row.
    """
    seen: set[bytes] = set()
    for item in read_manifest(path):
        key = item.id.encode()
        if key in seen:
            raise ValueError(f"{path}: expected each id once, got {shortened(item.id)} again.")
        seen.add(key)
    if not seen:
        raise ValueError(f"{path}: expected a row for each volume, got none.")
    return len(seen)


def shard_items(path: str, shard: Shard) -> Iterator[Item]:
    """The rows of a manifest that a shard is to do."""
    for number, item in enumerate(read_manifest(path)):
        if number % shard.count == shard.index - 1:
            yield item


def write_manifest(path: str, items: Iterable[Item]) -> int:
    """Write a manifest in one step; returns the number of its rows."""
    count = 0
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for item in items:
            writer.writerow(item)
            count += 1
    return count
