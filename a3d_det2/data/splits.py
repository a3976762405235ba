"""Splits of a dataset: the file's own train, val and test, or any choice of rows that a text file makes."""

import os
from collections import defaultdict

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
        # Column of the csv -> value that is chosen -> the lines that say so.
        self._lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        with open(path, encoding="utf-8-sig", errors="replace") as f:  # a strange line is an error below
            for number, line in enumerate(f, 1):
                if text := line.partition("#")[0].strip():
                    column, values = self._parse(text, number)
                    for value in values:
                        self._lines[column][value].append(number)
        if not self._lines:
            raise ValueError(f"{path}: expected patients, file names or COLUMN = VALUES, one per line, got none.")

    def _parse(self, text: str, line: int) -> tuple[str, list[str]]:
        column, equals, values = (part.strip() for part in text.partition("="))
        chosen = [value.strip() for value in values.split(",")]
        if text.isdecimal():
            return "Patient_index", [str(int(text))]
        if equals and column and all(chosen):
            return column, chosen
        if text.endswith(".png") and not equals:
            return "File_name", [text]
        raise ValueError(
            f"{self._path}, line {line}: expected a patient such as 17, a file name such as 000001_01_01_109.png, "
            f"or COLUMN = VALUES, got {text!r}."
        )

    def choose(self, rows: list[Row]) -> list[Row]:
        """Choose from the rows of a csv, in their order.

        Raises:
            ValueError: if a line chooses no row, or names a column that is not there.
        """
        unused = {line for values in self._lines.values() for lines in values.values() for line in lines}
        chosen = []
        for row in rows:
            found = {line for column in self._lines for line in self._lines_of(row, column)}
            unused -= found
            if found:
                chosen.append(row)
        if rows and unused:
            raise ValueError(f"{self._path}, line {min(unused)}: no row of {rows[0].csv_path} is chosen by it.")
        return chosen

    def _lines_of(self, row: Row, column: str) -> list[int]:
        """Find the lines that choose a row by its value in one column."""
        if column not in row.values:
            line = min(min(lines) for lines in self._lines[column].values())
            raise ValueError(f"{self._path}, line {line}: {row.csv_path} has no column {column!r}.")
        value = str(row.patient) if column == "Patient_index" else (row.values[column] or "").strip()
        return self._lines[column].get(value, [])


def rows_of_split(rows: list[Row], split: str) -> list[Row]:
    """Keep the rows that are in a split: "train", "val", "test", or the path of a split file.

    Raises:
        ValueError: on another name, a malformed row, or a line of the file that chooses no row.
    """
    if split in SPLITS:
        return [row for row in rows if row.split == split]
    if not split.endswith(".txt"):
        raise ValueError(f"Unknown split {split!r}. Choose one of {', '.join(SPLITS)}, or a split file (.txt).")
    return SplitFile(split).choose(rows)


def split_files(folder: str) -> dict[str, str]:
    """List the split files ``NAME.txt`` in a folder, name -> path; none where there is no such folder."""
    if not os.path.isdir(folder):
        return {}
    names = (os.path.splitext(name) for name in sorted(os.listdir(folder)))
    return {stem: os.path.join(folder, stem + extension) for stem, extension in names if extension == ".txt"}
