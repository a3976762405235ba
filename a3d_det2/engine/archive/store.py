"""The folder of an archive's results: of each item one folder, which is complete or not there.

    OUTPUT/run.json             what the results were found by
    OUTPUT/items/3f/ID/         the results of an item; 3f is the beginning of a hash of ID, so that no folder has too
                                many entries for its file system
    OUTPUT/items/3f/ID/item.json
    OUTPUT/parts/HOST-PID-.../ID/   what a process is at work on

Nothing tells a queue from a crash but the files themselves: an item is done if its folder is there. A process holds a
lock on its folder of parts, which the system lets go when the process ends, in whatever way.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...files import replacing
from .manifest import folder_name, id_of_folder

FORMAT, VERSION = "a3d_det2 archive", 1
RECORD, RUN, LOCK = "item.json", "run.json", "lock"
DONE, ERROR = "done", "error"


class OutputError(OSError):
    """The results cannot be written: no fault of an item, and the next one would fare no better."""


@contextmanager
def output_errors(where: str) -> Iterator[None]:
    """Let an ``OSError`` within be an :class:`OutputError` that names the output."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{where}: the results cannot be written ({error})") from error


def error_record(error_class: str, message: str, attempt: int) -> dict:
    """The record of an item that failed."""
    return {"status": ERROR, "error": {"class": error_class, "message": message, "attempt": attempt}}


class Store:
    """The results of an archive as they are found by one run: a config, weights and options.

    Args:
        folder: the output; made if it is not there.
        run: identifies the run; records of others do not count.
    """

    def __init__(self, folder: str, run: str):
        self.folder, self.run = os.path.abspath(folder), run

    def path(self, item_id: str) -> str:
        """The folder of an item."""
        return os.path.join(item_folder(self.folder, item_id))

    def record(self, item_id: str) -> dict | None:
        """What is known of an item; None if it is still to do, was done by another run or its record is damaged."""
        record = read_record(self.folder, item_id)
        return record if record is not None and record["run"] == self.run else None

    def begin(self) -> "Parts":
        """Begin to write, in this process."""
        return Parts(self)


def item_folder(output: str, item_id: str) -> str:
    start = hashlib.sha256(item_id.encode()).hexdigest()[:2]
    return os.path.join(output, "items", start, folder_name(item_id))


def read_record(output: str, item_id: str) -> dict | None:
    """The record of an item, of whatever run; None if there is none, or it is damaged."""
    record = _read_json(os.path.join(item_folder(output, item_id), RECORD))
    if record is None or record.get("id") != item_id or not isinstance(record.get("run"), str):
        return None
    error = record.get("error")
    if record.get("status") == DONE or (
        record.get("status") == ERROR
        and isinstance(error, dict)
        and all(isinstance(error.get(key), kind) for key, kind in ERROR_KEYS.items())
    ):
        return record
    return None


ERROR_KEYS = {"class": str, "message": str, "attempt": int}


def write_run(output: str, run: str, how: dict) -> dict | None:
    """Say in ``run.json`` what the results are found by.

    Returns:
        what it said before; None if nothing.
    """
    path = os.path.join(output, RUN)
    before = read_run(output)
    if before is None or before["run"] != run:
        os.makedirs(output, exist_ok=True)
        content = {"format": FORMAT, "version": VERSION, "run": run, "how": how}
        with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
            json.dump(content, f, indent=1)
    return before


def read_run(output: str) -> dict | None:
    """What ``run.json`` says; None if there is none."""
    content = _read_json(os.path.join(output, RUN))
    if content is None or not isinstance(content.get("run"), str) or not isinstance(content.get("how"), dict):
        return None
    return content


class Parts:
    """Where a process writes until an item is complete.

    Attributes:
        folder: of the parts of this process.
    """

    def __init__(self, store: Store):
        self.store = store
        with output_errors(store.folder):
            root = os.path.join(store.folder, "parts")
            os.makedirs(root, exist_ok=True)
            self.folder = tempfile.mkdtemp(prefix=f"{socket.gethostname()}-{os.getpid()}-", dir=root)
            with replacing(os.path.join(self.folder, LOCK)) as new:  # under its name it is locked
                self._lock = open(new, "w")  # noqa: SIM115 - open as long as the process lives
                with suppress(OSError):  # a file system without locks: then nobody cleans up after this process
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @contextmanager
    def writing(self, item_id: str) -> Iterator[tuple[str, dict]]:
        """Write the results of an item. Where the block ends well they are there, with a record; before there is what
        was there. Where it raises, nothing of it is left.

        Yields:
            a folder to write into, and the record, to be filled in.

        Raises:
            OutputError: if the item cannot be begun or completed.
        """
        part, final = os.path.join(self.folder, folder_name(item_id)), self.store.path(item_id)
        record = {"format": FORMAT, "version": VERSION, "id": item_id, "run": self.store.run, "status": DONE}
        with output_errors(part):
            os.mkdir(part)
        try:
            yield part, record
            with output_errors(final):
                with open(os.path.join(part, RECORD), "w", encoding="utf-8") as f:
                    json.dump(record, f, indent=1)
                _to_disk(part)
                os.makedirs(os.path.dirname(final), exist_ok=True)
                # Renamed onto one that is there it would fail; the old one goes where a crash leaves it to be swept.
                with suppress(FileNotFoundError):
                    os.rename(final, f"{part}.old")
                os.rename(part, final)
        finally:
            for leftover in (part, f"{part}.old"):
                shutil.rmtree(leftover, ignore_errors=True)

    def write_error(self, item_id: str, error: dict) -> dict:
        """Complete an item with an error, see :func:`error_record`; returns its record."""
        with self.writing(item_id) as (_, record):
            record |= error
        return record


def _to_disk(folder: str) -> None:
    """Have the files of a folder on the disk before its name says that they are complete."""
    for inside, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(inside, name), "rb") as f:
                os.fsync(f.fileno())


def begun(output: str) -> Counter[str]:
    """How often each item was begun by a process that ended before the item did."""
    return Counter(id_of_folder(name) for folder in _left_behind(output) for name in os.listdir(folder) if name != LOCK)


def sweep(output: str) -> Counter[str]:
    """Remove what processes left behind that are no more; returns :func:`begun` as it was before."""
    counts = begun(output)
    for folder in _left_behind(output):
        shutil.rmtree(folder, ignore_errors=True)
    return counts


def _left_behind(output: str) -> Iterator[str]:
    """Folders of parts whose process has ended. On a file system without locks there are none, as nobody knows."""
    root = os.path.join(output, "parts")
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        with suppress(OSError), open(os.path.join(root, name, LOCK), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield os.path.join(root, name)


def _read_json(path: str) -> dict | None:
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None
