"""Splits of a dataset: the file's own train, val and test, or any choice of rows that a text file makes."""

import os
from collections.abc import Callable

from .dl_info import SPLITS, Row


def read_split_file(path: str) -> list[Callable[[Row], bool]]:
    """Read a split file: each line chooses rows, and the split has all that any line chooses.

    A line is one of

        17                       all rows of patient 17 (Patient_index)
        000001_01_01_109.png     the rows of one key slice (File_name)
        Fold = 1, 2              the rows with one of these values in a column of the csv

    Empty lines and what follows a # do not count.

    Raises:
        ValueError: if there is no such line, or one of another kind; the message names file and line.
    """
    choices = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            text = line.partition("#")[0].strip()
            if text:
                choices.append(_Choice(path, number, text))
    if not choices:
        raise ValueError(f"{path}: expected patients, file names or COLUMN = VALUES, one per line, got none.")
    return choices


def rows_of_split(rows: list[Row], split: str) -> list[Row]:
    """Those of ``rows`` that are in the split: "train", "val", "test", or the path of a split file.

    Raises:
        ValueError: on another name, a malformed row, or a line of the file that chooses no row.
    """
    if split in SPLITS:
        return [row for row in rows if row.split == split]
    if not split.endswith(".txt"):
        raise ValueError(f"Unknown split {split!r}. Choose one of {', '.join(SPLITS)}, or a split file (.txt).")
    choices = read_split_file(split)
    chosen = [[choice(row) for choice in choices] for row in rows]
    for choice, column in zip(choices, zip(*chosen, strict=True), strict=False):
        if not any(column):
            raise ValueError(f"{choice}: no row of {rows[0].csv_path} is chosen by {choice.text!r}.")
    return [row for row, marks in zip(rows, chosen, strict=True) if any(marks)]


def split_files(folder: str) -> dict[str, str]:
    """Name -> path of the split files ``NAME.txt`` in a folder; none where there is no such folder."""
    if not os.path.isdir(folder):
        return {}
    names = (os.path.splitext(name) for name in sorted(os.listdir(folder)))
    return {stem: os.path.join(folder, stem + extension) for stem, extension in names if extension == ".txt"}


class _Choice:
    """One line of a split file."""

    def __init__(self, path: str, line: int, text: str):
        self._where, self.text = f"{path}, line {line}", text
        column, equals, values = text.partition("=")
        self._column = column.strip() if equals else None
        self._values = {value.strip() for value in values.split(",")}
        is_column = self._column and all(self._values)
        if not (is_column if equals else text.isdecimal() or text.endswith(".png")):
            raise ValueError(
                f"{self}: expected a patient such as 17, a file name such as 000001_01_01_109.png, or COLUMN = VALUES, "
                f"got {text!r}."
            )

    def __str__(self) -> str:
        return self._where

    def __call__(self, row: Row) -> bool:
        if self._column is not None:
            if self._column not in row.values:
                raise ValueError(f"{self}: {row.csv_path} has no column {self._column!r}.")
            return (row.values[self._column] or "").strip() in self._values
        if self.text.isdecimal():
            return row.patient == int(self.text)
        return row.image_id == self.text
