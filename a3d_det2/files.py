"""Names of files, writing them in one step, and what they hold as messages show it."""

import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxlong = _SHORTENED.maxother = 100


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Write a file in one step, so that no one ever sees half of it: whatever ends the process, ``path`` holds what it
    held before or all that is new.

    Yields:
        the path to write instead, ``{path}.{process id}.part``. It takes the place of ``path`` when the block ends, and
        is removed when the block raises.

    Raises:
        OSError: if nothing was written there, or the file cannot be moved.
    """
    part = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)


def slice_number(path: str | os.PathLike) -> int | None:
    """The number that the name of a file is, without its extension: 109 for ".../109.png"; None if it is no number, or
    one that no integer of 64 bits holds."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return int(stem) if stem.isdecimal() and len(stem) <= 18 else None


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is that of a scheme, such as ``https://`` or ``s3://``, and not of this machine's files."""
    return "://" in os.fspath(path)


def shortened(value) -> str:
    """``repr`` of a value from a file, whose end is left out where it is long."""
    return _SHORTENED.repr(value)


def printable(text: str) -> str:
    """Text of a message with names from files, as a terminal may show it: control characters, which could write
    anything anywhere on the screen, by their codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
