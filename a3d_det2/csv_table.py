"""CSV files with named columns, row by row."""

import csv
from collections.abc import Iterator, Sequence


def read_table(path: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values of each row, without spaces around them; empty rows are left out.

    Args:
        path: of a file in UTF-8; its first line names the columns.
        columns: that it must have, each once.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or there twice, a row has more or fewer values, or it is no CSV.
    """
    with open(path, newline="", encoding="utf-8-sig") as f:
        try:
            reader = csv.DictReader(f)
            found = list(reader.fieldnames or ())
            if any(found.count(name) != 1 for name in columns):
                got = ", ".join(found) or "none"
                raise ValueError(f"{path}: expected the columns {', '.join(columns)}, each once; got {got}.")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {reader.line_num}: expected {len(found)} values, one a column.")
                stripped = {name: value.strip() for name, value in row.items()}
                if any(stripped.values()):
                    yield reader.line_num, stripped
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8, got something else ({error}).") from error
