"""The folder of an archive's results: of each item one folder, which is complete or not there.

    OUTPUT/run.json             what the results were found by
    OUTPUT/items/3f/ID/         the results of an item; 3f is the beginning of a hash of ID, so that no folder has too
                                many entries for its file system
    OUTPUT/items/3f/ID/item.json
    OUTPUT/parts/1-of-1-HOST-.../items/ID/   what a process of that shard is at work on

Nothing tells a queue from a crash but the files themselves: an item is done if its folder is there. A process holds a
lock on its folder of parts, which the system lets go when the process ends, in whatever way.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...files import replacing
from ...volumes.search import ARCHIVE, ARCHIVE_FORMAT, read_ours
from .manifest import folder_name, id_of_folder

FORMAT, VERSION = ARCHIVE_FORMAT, 1
RECORD, RUN, LOCK, ITEMS, OLD = "item.json", ARCHIVE, "lock", "items", "old"
EVERYTHING = "1-of-1"  # the shard that is the whole archive
TRIES = 10  # to put a folder in its place, beside somebody who does the same
DONE, ERROR = "done", "error"
ERROR_KEYS = {"class": str, "message": str, "attempt": int}


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
    message = message.encode("utf-8", "backslashreplace").decode()  # names of files may be no text
    return {"status": ERROR, "error": {"class": error_class, "message": message, "attempt": attempt}}


class Store:
    """The results of an archive as they are found by one run: a config, weights and options.

    Args:
        folder: the output.
        run: identifies the run; records of others do not count.
        shard: names the part of the archive that this process works on; another one does not sweep its parts.
    """

    def __init__(self, folder: str, run: str, shard: str = EVERYTHING):
        self.folder, self.run, self.shard = os.path.abspath(folder), run, shard

    def path(self, item_id: str) -> str:
        """The folder of an item."""
        return item_folder(self.folder, item_id)

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
    record = read_ours(os.path.join(item_folder(output, item_id), RECORD), FORMAT)
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
    content = read_ours(os.path.join(output, RUN), FORMAT)
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
            self.folder = tempfile.mkdtemp(prefix=f"{store.shard}-{socket.gethostname()}-{os.getpid()}-", dir=root)
            with replacing(os.path.join(self.folder, LOCK)) as new:  # under its name it is locked
                self._lock = open(new, "w")  # noqa: SIM115 - open as long as the process lives
                with suppress(OSError):  # a file system without locks: then nobody cleans up after this process
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in (ITEMS, OLD):
                os.mkdir(os.path.join(self.folder, name))

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
        part = os.path.join(self.folder, ITEMS, folder_name(item_id))
        final, old = self.store.path(item_id), os.path.join(self.folder, OLD, folder_name(item_id))
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
                _put_in_place(part, final, old)
        finally:
            for leftover in (part, old):
                shutil.rmtree(leftover, ignore_errors=True)

    def write_error(self, item_id: str, error: dict) -> dict:
        """Complete an item with an error, see :func:`error_record`; returns its record."""
        with self.writing(item_id) as (_, record):
            record |= error
        return record


def _put_in_place(part: str, final: str, old: str) -> None:
    """Rename a folder to ``final``; what is there goes to ``old``, where a crash leaves it to be swept."""
    for tries_left in reversed(range(TRIES)):
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(final, old)
        try:
            os.rename(part, final)
            return
        except OSError as error:  # somebody else has done the same item in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not tries_left:
                raise


def _to_disk(folder: str) -> None:
    """Have the files of a folder on the disk before its name says that they are complete."""
    for inside, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(inside, name), "rb") as f:
                os.fsync(f.fileno())


def begun(output: str, shard: str = EVERYTHING) -> Counter[str]:
    """How often each item of a shard was begun by a process that ended before the item did."""
    return Counter(name for _, names in _left_behind(output, shard) for name in names)


def sweep(output: str, shard: str = EVERYTHING) -> Counter[str]:
    """Remove what processes of a shard left behind that are no more; returns :func:`begun` as it was before."""
    counts: Counter[str] = Counter()
    for folder, names in _left_behind(output, shard):
        counts.update(names)
        for name in (ITEMS, OLD):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # with the lock last, or nobody would sweep what is left
    return counts


def _left_behind(output: str, shard: str) -> Iterator[tuple[str, list[str]]]:
    """Folders of parts whose process has ended, and the ids in them. The parts of all shards are those of the whole
    archive. On a file system without locks there are none, as nobody knows."""
    root = os.path.join(output, "parts")
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        if shard != EVERYTHING and not name.startswith(f"{shard}-"):
            continue
        folder, ids = os.path.join(root, name), []
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(open(os.path.join(folder, LOCK), "r+"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ids = [id_of_folder(one) for one in os.listdir(os.path.join(folder, ITEMS))]
            except FileNotFoundError:
                if not os.path.exists(os.path.join(folder, LOCK)):
                    continue  # somebody else has swept it
            except OSError:
                continue
            yield folder, ids
