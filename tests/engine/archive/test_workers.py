"""Processes with a model: what becomes of items that go wrong, one after the other and by two at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from a3d_det2.engine.archive import local, running
from a3d_det2.engine.archive.running import predict_archive
from a3d_det2.engine.archive.work import How
from a3d_det2.engine.mistakes import Mistake
from tests.engine.archive.stubs import Stub


@pytest.fixture
def run(tmp_path):
    def run(manifest, task=None, timeout=60.0, readers=1, **options):
        return predict_archive(task or Stub(), manifest, How(str(tmp_path / "out"), readers, timeout), **options)

    return run


def parts(tmp_path):
    return os.listdir(tmp_path / "out" / "parts")


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_are_records(run, write_manifest, record, tmp_path, capfd, workers):
    names = ("a", "read_dies", "b", "read_fails", "dies", "c", "fails", "no_memory", "little_memory", "d", "dies_once")
    counts = run(write_manifest({name: name for name in names}), workers=workers)
    assert counts == {"done": 6, "error": 5}
    assert record("a")["batch"] == 2
    assert record("little_memory")["batch"] == 1
    assert record("dies_once")["status"] == "done"
    folder = f"{tmp_path}/"
    errors = {name: record(name)["error"] for name in names if record(name)["status"] == "error"}
    assert errors == {
        "read_dies": {
            "class": "ProcessDied",
            "message": f"{folder}read_dies: the process that read it was ended by SIGKILL",
            "attempt": 1,
        },
        "read_fails": {"class": "ValueError", "message": f"{folder}read_fails: no volume", "attempt": 1},
        "dies": {
            "class": "ProcessDied",
            "message": f"{folder}dies: 2 processes ended while at work on it",
            "attempt": 2,
        },
        "fails": {"class": "RuntimeError", "message": "something is wrong", "attempt": 1},
        "no_memory": {
            "class": "RuntimeError",
            "message": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.",
            "attempt": 1,
        },
    }
    assert parts(tmp_path) == []
    printed = capfd.readouterr()
    assert "11 volumes: 6 done, 5 errors, 0 were done before." in printed.out
    assert "read_fails: ValueError: " in printed.err


def test_again_does_what_is_left(run, write_manifest, record, tmp_path, capfd):
    assert run(write_manifest({"a": "a", "f": "fails"})) == {"done": 1, "error": 1}
    manifest = write_manifest({"b": "b", "a": "a", "f": "fails"})
    assert run(manifest) == {"done": 1}
    assert "3 volumes: 1 done, 0 errors, 2 were done before." in capfd.readouterr().out
    assert (tmp_path / "reads.txt").read_text().split() == ["a", "f", "b"]
    assert run(manifest, retry_errors=True) == {"error": 1}
    assert record("f")["error"]["attempt"] == 2
    manifest = write_manifest({"b": "b", "a": "a", "f": "now it is well"})
    assert run(manifest, retry_errors=True) == {"done": 1}
    assert record("f")["status"] == "done"


def test_another_config(run, write_manifest, record, capfd):
    manifest = write_manifest({"a": "a", "b": "b"})
    run(manifest)
    other = Stub("run 2")
    other.how = {"kind": "other", "step": 2}
    assert run(manifest, other) == {"done": 2}
    printed = capfd.readouterr()
    assert "has results of another config; its volumes are done again. What differs:" in printed.err
    assert "kind: 'stub' -> 'other'" in printed.err
    assert "step: None -> 2" in printed.err
    assert "2 of them had results of another config" in printed.out
    assert record("a")["run"] == "run 2"
    assert run(manifest, other) == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_system_that_hangs(run, write_manifest, record, tmp_path, workers):
    """From the first item on."""
    manifest = write_manifest({"hang": "read_hangs", "a": "a", "b": "b"})
    assert run(manifest, timeout=4.0, workers=workers) == {"done": 2, "error": 1}
    error = record("hang")["error"]
    assert error["class"] == "ReadTimeout"
    assert f"{tmp_path}/read_hangs: not read within 4 s" in error["message"]


def test_odd_ids(run, write_manifest, record):
    names = ("lock", "items", "old", "a.old", "%", "a/b", "..", "ü", "con.", " x")
    assert run(write_manifest({name.strip(): "a" for name in names})) == {"done": len(names)}
    assert all(record(name.strip()) for name in names)


def test_a_process_that_is_bad_itself(run, write_manifest):
    """Such as one with a GPU that is broken: what it has had is done by another one."""
    counts = run(write_manifest({str(i): "slow" for i in range(12)}), Stub(broken="first"), workers=2)
    assert counts == {"done": 12}


def test_messages_that_are_no_text(run, write_manifest, record):
    assert run(write_manifest({"a": "odd_message"})) == {"error": 1}
    record("a")["error"]["message"].encode()


def test_two_do_the_same(run, write_manifest, tmp_path, monkeypatch):
    """Another one puts its folder in the place at the last moment."""
    from a3d_det2.engine.archive.store import Store

    mine, other = Store(str(tmp_path), "run").begin(), Store(str(tmp_path), "run").begin()
    rename, times = os.rename, []

    def beaten(source, target):
        if source.startswith(mine.folder) and target == mine.store.path("a") and len(times) < 3:
            times.append(1)
            with other.writing("a"):
                pass
        rename(source, target)

    monkeypatch.setattr(os, "rename", beaten)
    with mine.writing("a") as (_, entry):
        entry["mine"] = True
    assert len(times) == 3
    assert mine.store.record("a")["mine"]
    mine.close()
    other.close()


def test_several_readers(run, write_manifest):
    assert run(write_manifest({str(i): "a" for i in range(20)}), readers=3, workers=2) == {"done": 20}


def test_a_shard(run, write_manifest, record):
    manifest = write_manifest({str(i): "a" for i in range(5)})
    assert run(manifest, shard=running.Shard(2, 2)) == {"done": 2}
    assert [i for i in range(5) if record(str(i))] == [1, 3]
    assert run(manifest, shard=running.Shard(1, 2)) == {"done": 3}


def test_a_disk_that_is_full_ends_the_run(run, write_manifest, record, tmp_path):
    with pytest.raises(Mistake, match="results cannot be written .No space left"):
        run(write_manifest({"a": "a", "full": "full", "b": "b"}))
    assert record("full") is None
    assert run(write_manifest({"a": "a", "full": "well", "b": "b"})).total() >= 1
    assert all(map(record, ("a", "b", "full")))


def test_no_model(run, write_manifest):
    manifest = write_manifest({"a": "a"})
    with pytest.raises(Mistake, match="no such weights"):
        run(manifest, Stub(broken="mistake"))
    with pytest.raises(Mistake, match="ended with status 7 before its model was ready"):
        run(manifest, Stub(broken="dies"))


def test_deaths_without_end(run, write_manifest, monkeypatch):
    monkeypatch.setattr(local, "MOST_DEATHS_IN_A_ROW", 3)
    with pytest.raises(Mistake, match="3 processes with the number 0 ended one after the other"):
        run(write_manifest({"1": "dies", "2": "dies", "3": "dies", "4": "dies"}))


RUN = """
import sys
from a3d_det2.engine.archive.running import predict_archive
from a3d_det2.engine.archive.work import How
from tests.engine.archive.stubs import Stub
if __name__ == "__main__":
    predict_archive(Stub(), sys.argv[1], How(sys.argv[2]), workers=int(sys.argv[3]))
"""


@pytest.fixture
def start(repo, tmp_path):
    (tmp_path / "run.py").write_text(RUN)

    def start(manifest, workers):
        command = [sys.executable, tmp_path / "run.py", manifest, tmp_path / "out", str(workers)]
        environment = {**os.environ, "PYTHONPATH": str(repo)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **output)

    return start


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", [os.kill, os.killpg])
def test_a_signal_ends_it_after_the_items_at_work(start, write_manifest, record, tmp_path, number, whom):
    manifest = write_manifest({str(i): "slow" for i in range(40)})
    process = start(manifest, 2)
    wait_for(lambda: any(record(str(i)) for i in range(40)))
    whom(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Ends after the volumes that are at work." in err
    assert "Traceback" not in err
    count = sum(record(str(i)) is not None for i in range(40))
    assert f"{40 - count} are left; the same command does them." in out
    assert count <= 6
    assert parts(tmp_path) == []


def test_workers_end_with_the_first_process(start, write_manifest, record, tmp_path):
    manifest = write_manifest({str(i): "slow" for i in range(100)})
    process = start(manifest, 2)
    wait_for(lambda: record("0"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def nobody():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(nobody, 20)


def test_a_model_that_hangs(run, write_manifest, record, capfd):
    """Its process is ended, and the item done again, once."""
    manifest = write_manifest({"a": "a", "b": "hangs_once", "c": "c"})
    assert run(manifest, timeout=6.0) == {"done": 3}
    assert "said nothing for 6 s and is ended" in capfd.readouterr().err
