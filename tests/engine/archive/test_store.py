"""The output folder: an item is complete or not there."""

import os
import signal
import subprocess
import sys

import pytest

from a3d_det2.engine.archive import store
from a3d_det2.engine.archive.store import OutputError, Store, error_record


@pytest.fixture
def parts(tmp_path):
    parts = Store(str(tmp_path), "run 1").begin()
    yield parts
    parts.close()


def write(parts, name, text="x"):
    with parts.writing(name) as (folder, record):
        with open(os.path.join(folder, "result.txt"), "w") as f:
            f.write(text)
        record["lesions"] = 3


def test_complete_or_not_there(parts, tmp_path):
    name = "a/b ü"
    with parts.writing(name) as (folder, _):
        assert os.listdir(folder) == []
        assert parts.store.record(name) is None
        assert not os.path.exists(parts.store.path(name))
    write(parts, "1")
    assert parts.store.record("1")["lesions"] == 3
    assert sorted(os.listdir(parts.store.path("1"))) == ["item.json", "result.txt"]
    with pytest.raises(ZeroDivisionError), parts.writing("2"):
        raise ZeroDivisionError
    assert parts.store.record("2") is None
    assert os.listdir(os.path.join(parts.folder, store.ITEMS)) == []


def test_again(parts):
    """A result takes the place of an error, and of a result of another run."""
    parts.write_error("1", error_record("ValueError", "no", 1))
    assert parts.store.record("1")["error"] == {"class": "ValueError", "message": "no", "attempt": 1}
    write(parts, "1")
    assert parts.store.record("1")["status"] == "done"
    other = Store(parts.store.folder, "run 2")
    assert other.record("1") is None
    parts2 = other.begin()
    write(parts2, "1", "new")
    parts2.close()
    assert parts.store.record("1") is None
    with open(os.path.join(other.path("1"), "result.txt")) as f:
        assert f.read() == "new"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": "other"}',
     '{"format": "a3d_det2 archive", "id": "2", "run": "run 1", "status": "done"}',
     '{"format": "a3d_det2 archive", "id": "1", "run": 1, "status": "done"}',
     '{"format": "a3d_det2 archive", "id": "1", "run": "run 1", "status": "half"}',
     '{"format": "a3d_det2 archive", "id": "1", "run": "run 1", "status": "error"}',
     '{"format": "a3d_det2 archive", "id": "1", "run": "run 1", "status": "error", "error": {"class": 1}}'],
)  # fmt: skip
def test_damaged_records_do_not_count(parts, content):
    write(parts, "1")
    with open(os.path.join(parts.store.path("1"), store.RECORD), "w") as f:
        f.write(content)
    assert parts.store.record("1") is None
    write(parts, "1")
    assert parts.store.record("1")["status"] == "done"


KILLED = """
import os, signal, sys
from a3d_det2.engine.archive.store import Store
parts = Store(sys.argv[1], "run 1").begin()
with parts.writing("1") as (folder, _):
    open(os.path.join(folder, "half"), "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_counted_and_swept(parts, tmp_path):
    with parts.writing("2"):  # of a process that lives: neither counted nor swept
        for count in (1, 2):
            done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=os.getcwd())
            assert done.returncode == -signal.SIGKILL
            assert store.begun(str(tmp_path)) == {"1": count}
        assert store.sweep(str(tmp_path)) == {"1": 2}
        assert os.listdir(tmp_path / "parts") == [os.path.basename(parts.folder)]
        assert store.begun(str(tmp_path)) == {}
    assert parts.store.record("1") is None
    assert parts.store.record("2") is not None


def test_full_disk(parts, monkeypatch):
    write(parts, "1", "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OutputError, match="results cannot be written .*No space left"):
                write(parts, "1", "new")
            with pytest.raises(OutputError, match="results cannot be written .*No space left"):
                parts.write_error("2", error_record("E", "m", 1))
        assert parts.store.record("1") is not None
        assert parts.store.record("2") is None
        assert os.listdir(os.path.join(parts.folder, store.ITEMS)) == []


def test_read_only(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Store(str(tmp_path / "file"), "run").begin()


def test_run(tmp_path):
    folder = str(tmp_path / "out")
    assert store.write_run(folder, "1", {"config": "a"}) is None
    assert store.write_run(folder, "1", {"config": "a"})["how"] == {"config": "a"}
    assert store.write_run(folder, "2", {"config": "b"})["run"] == "1"
    assert store.read_run(folder)["how"] == {"config": "b"}
    (tmp_path / "out" / "run.json").write_text("{")
    assert store.read_run(folder) is None
