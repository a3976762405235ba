"""The study and the benchmark of volumes, with a network that has learned nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("nibabel")

from a3d_det2.engine import torchvision_loop
from tests.engine.conftest import TINY
from tests.engine.test_predictor import make_config, save_weights


def run(repo, script, *arguments):
    command = [sys.executable, f"tools/{script}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_study(repo, tmp_path):
    size = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"]
    save_weights(torchvision_loop, make_config(torchvision_loop, *size), tmp_path / "model.pth")
    arguments = ["--config-file", "quick/a3d_7slice.yaml", "--weights", tmp_path / "model.pth", "--engine"]
    arguments += ["torchvision", "--volumes", 2, "--size", 64, "--output", tmp_path / "study.json"]
    printed = run(repo, "study_volumes", *arguments, *TINY, *size)
    report = json.loads((tmp_path / "study.json").read_text())
    assert {"default", "IoU 0.3"} <= report["linking"].keys()
    assert "one slice is enough" in printed
    for one in report["linking"].values():
        assert np.all(np.diff(one["sensitivity"]) >= 0)


@pytest.mark.slow
def test_benchmark(repo, tmp_path):
    common = ["--config-file", "quick/none_7slice.yaml", "--engine", "torchvision", "--size", 128, "--output"]
    run(repo, "benchmark_volumes", *common, tmp_path / "memory.json", "memory", "--slices", 12, 20, "--bare", 2)
    rows = json.loads((tmp_path / "memory.json").read_text())["memory"]
    assert [row["slices"] for row in rows] == [12, 20]
    assert all(0 < row["network_share"] <= 1 and row["peak_mib"] > row["volume_mib"] for row in rows)
    arguments = ["speed", "--slices", 20, "--keys", 2, "--repeat", 1]
    printed = run(repo, "benchmark_volumes", *common, tmp_path / "speed.json", *arguments)
    speeds = json.loads((tmp_path / "speed.json").read_text())["speed"]["seconds_per_mm"]
    assert len(speeds) == 3
    assert "bfloat16, body" in printed


def test_hits_of_the_study(repo, monkeypatch):
    """A result finds one lesion at most, and a second result of the same lesion is a false positive."""
    monkeypatch.syspath_prepend(str(repo / "tools"))
    import study_volumes

    class Result:
        def __init__(self, score, box):
            self.score, self.box_voxel = score, np.array(box, dtype=float)

    box, other = [[0, 0, 0], [9, 9, 3]], [[30, 30, 0], [39, 39, 3]]
    lesions = [[{"box_deeplesion": box}, {"box_deeplesion": other}], []]
    results = [[Result(0.9, box), Result(0.8, box), Result(0.5, other)], [Result(0.7, box)]]
    pairs, found_at = study_volumes.match(results, lesions, 0.3)
    assert sorted(pairs) == [(0.5, True), (0.7, False), (0.8, False), (0.9, True)]
    assert found_at == [[0.9, 0.5], []]
    at = [study_volumes.sensitivity(pairs, found_at, 2, fps)[0] for fps in (0.1, 0.5, 1.0)]
    assert at == [0.5, 0.5, 1.0]
    assert study_volumes.overlaps(np.array([box]), np.array([other, box]))[0].tolist() == [0.0, 1.0]
