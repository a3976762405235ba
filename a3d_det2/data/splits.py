"""Splits of a dataset: the file's own train, val and test, or any choice of rows that a text file makes."""

import os

from .dl_info import SPLITS, Row


class SplitFile:
    """A choice of rows: each line of the file chooses some, and the split has all that any line chooses.

    A line is one of

        17                       all rows of patient 17 (Patient_index)
        000001_01_01_109.png     the rows of one key slice (File_name)
        Fold = 1, 2              the rows with one of these values in a column of the csv

    Empty lines and what follows a # do not count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such line, or one of another kind; the message names file and line.
    """

    def __init__(self, path: str):
        self._path = path
        # What is chosen -> the line that says so.
        self._patients: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._columns: dict[tuple[str, frozenset[str]], int] = {}
        with open(path, encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                text = line.partition("#")[0].strip()
                if text:
                    self._add(text, number)
        if not (self._patients or self._names or self._columns):
            raise ValueError(f"{path}: expected patients, file names or COLUMN = VALUES, one per line, got none.")

    def _add(self, text: str, line: int) -> None:
        column, equals, values = text.partition("=")
        chosen = frozenset(value.strip() for value in values.split(","))
        if text.isdecimal():
            self._patients[int(text)] = line
        elif equals and column.strip() and all(chosen):
            self._columns[column.strip(), chosen] = line
        elif text.endswith(".png") and not equals:
            self._names[text] = line
        else:
            raise ValueError(
                f"{self._path}, line {line}: expected a patient such as 17, a file name such as 000001_01_01_109.png, "
                f"or COLUMN = VALUES, got {text!r}."
            )

    def choose(self, rows: list[Row]) -> list[Row]:
        """
        Raises:
            ValueError: if a line chooses no row, or names a column that is not there.
        """
        unused = {*self._patients.values(), *self._names.values(), *self._columns.values()}
        chosen = []
        for row in rows:
            lines = {self._patients.get(row.patient), self._names.get(row.image_id)}
            lines |= {line for choice, line in self._columns.items() if self._has_value(row, *choice)}
            lines.discard(None)
            unused -= lines
            if lines:
                chosen.append(row)
        if rows and unused:
            raise ValueError(f"{self._path}, line {min(unused)}: no row of {rows[0].csv_path} is chosen by it.")
        return chosen

    def _has_value(self, row: Row, column: str, values: frozenset[str]) -> bool:
        if column not in row.values:
            raise ValueError(
                f"{self._path}, line {self._columns[column, values]}: {row.csv_path} has no column {column!r}."
            )
        return (row.values[column] or "").strip() in values


def rows_of_split(rows: list[Row], split: str) -> list[Row]:
    """Those of ``rows`` that are in the split: "train", "val", "test", or the path of a split file.

    Raises:
        ValueError: on another name, a malformed row, or a line of the file that chooses no row.
    """
    if split in SPLITS:
        return [row for row in rows if row.split == split]
    if not split.endswith(".txt"):
        raise ValueError(f"Unknown split {split!r}. Choose one of {', '.join(SPLITS)}, or a split file (.txt).")
    return SplitFile(split).choose(rows)


def split_files(folder: str) -> dict[str, str]:
    """Name -> path of the split files ``NAME.txt`` in a folder; none where there is no such folder."""
    if not os.path.isdir(folder):
        return {}
    names = (os.path.splitext(name) for name in sorted(os.listdir(folder)))
    return {stem: os.path.join(folder, stem + extension) for stem, extension in names if extension == ".txt"}
