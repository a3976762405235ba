"""Numbers in the columns of a table."""

from collections.abc import Mapping, Sequence

BOX = ("x1", "y1", "z1", "x2", "y2", "z2")


def numbers(
    path: str, line: int, row: Mapping[str, str], columns: Sequence[str], empty: float | None = None
) -> list[float]:
    """The values of some columns; ``empty`` is what an empty one is, None an error.

    Raises:
        ValueError: if one is no number; the message names it.
    """
    found = []
    for name in columns:
        if empty is not None and not row[name]:
            found.append(empty)
            continue
        try:
            found.append(float(row[name].replace("_", "?")))  # Python alone reads 1_0 as 10
        except ValueError:
            raise ValueError(f"{path}, line {line}: expected a number as {name}, got {row[name]!r}.") from None
    return found
