"""Names of files, and writing them in one step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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
    """The number that the name of a file is, without its extension: 109 for ".../109.png"; None if it is no number."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return int(stem) if stem.isdecimal() else None
