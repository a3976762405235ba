"""Actors of Ray do what the processes of one machine do."""

import importlib.util
import os

import pytest

from a3d_det2.engine.archive import ray_pool
from a3d_det2.engine.archive.ray_pool import RayWorkers
from a3d_det2.engine.archive.running import predict_archive
from a3d_det2.engine.archive.work import How
from a3d_det2.engine.mistakes import Mistake
from tests.engine.archive.stubs import Stub

NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    with pytest.raises(Mistake, match=r"--ray needs Ray: pip install 'a3d_det2\[ray\]'"):
        RayWorkers(Stub(), How(str(tmp_path)))


@pytest.fixture
def run(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(repo))  # for the actors to find the stub

    def run(manifest, task=None, **options):
        return predict_archive(task or Stub(), manifest, How(str(tmp_path / "out"), timeout=60.0), ray=True, **options)

    return run


@NEEDS_RAY
@pytest.mark.slow
def test_errors_are_records(run, write_manifest, record, tmp_path):
    names = ("a", "read_dies", "b", "read_fails", "dies", "c", "fails", "no_memory", "little_memory", "d", "dies_once")
    manifest = write_manifest({name: name for name in names})
    assert run(manifest, workers=2) == {"done": 6, "error": 5}
    assert record("dies")["error"]["message"] == f"{tmp_path}/dies: 2 processes ended while at work on it"
    assert record("dies_once")["status"] == "done"
    assert record("little_memory")["batch"] == 1
    assert os.listdir(tmp_path / "out" / "parts") == []
    assert run(manifest) == {}


@NEEDS_RAY
@pytest.mark.slow
def test_mistakes(run, write_manifest, record):
    with pytest.raises(Mistake, match="no such weights"):
        run(write_manifest({"a": "a"}), Stub(broken="mistake"))
    with pytest.raises(Mistake, match="results cannot be written"):
        run(write_manifest({"a": "a", "full": "full", "b": "b"}))
    assert record("full") is None
