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
    assert {"default", "IoU 0.3"} <= report["linkings"].keys()
    assert "one slice is enough" in printed
    for one in report["linkings"].values():
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
