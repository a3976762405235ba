import importlib
import json
import math
import shutil
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

from scipy import stats

SEEDS = (1, 2)


def tables(printed):
    """The two tables, each a list of dicts."""
    found = []
    for part in printed.split("\nAverage sensitivity at 0.5 to 4 FPs per image over"):
        header, _, *rows = [line.split("|")[1:-1] for line in part.splitlines() if "|" in line]
        names = [cell.strip() for cell in header]
        found.append([dict(zip(names, (cell.strip() for cell in row), strict=True)) for row in rows])
    return found


@pytest.mark.slow
def test_tables_of_operators_slices_and_engines(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")

    def compare(*arguments, opts=()):
        command = [sys.executable, "tools/compare_operators.py", "--output", tmp_path, "--seeds", *map(str, SEEDS)]
        options = ["--opts", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0", *opts]
        done = subprocess.run([*command, *arguments, *options], check=True, cwd=repo, capture_output=True, text=True)
        return *tables(done.stdout), json.loads((tmp_path / "operators.json").read_text()), done.stdout

    def check(found, sure, runs):
        for row, other, (engine, op, slices) in zip(found, sure, runs, strict=True):
            assert (row["engine"], row["operator"], row["slices"]) == (engine, op, str(slices))
            paths = [tmp_path / f"{engine}_{op}_{slices}slice_seed{seed}/inference/froc.json" for seed in SEEDS]
            averages = [json.loads(path.read_text())["average"] for path in paths]
            assert row["Avg. 0.5 to 4"] == f"{statistics.mean(averages):.3f}"
            assert other["of each seed"] == ", ".join(f"{value:.3f}" for value in sorted(averages))
            assert other["failed"] == "0"

    found, sure, written, _ = compare(
        "--engines", "torchvision", "--operators", "none", "a3d", "--slices", "1", "3", "--jobs", "2"
    )
    check(found, sure, [("torchvision", op, slices) for op in ("none", "a3d") for slices in (1, 3)])
    assert [bool(row["- none"]) for row in sure] == [False, False, True, True]
    assert len(written["runs"]) == 8
    assert written["step_seconds"] == {}
    assert (tmp_path / "operators.png").stat().st_size > 10000

    before = {path: path.stat().st_mtime for path in tmp_path.glob("*/inference/froc.json")}
    found, sure, written, _ = compare(
        "--engines", "torchvision", "detectron2", "--operators", "a3d", "--slices", "3", "--repeat", "1"
    )
    check(found, sure, [("torchvision", "a3d", 3), ("detectron2", "a3d", 3)])
    assert before == {path: path.stat().st_mtime for path in before}  # what is there is not repeated
    assert written["step_seconds"].keys() == {"a3d"}

    # A run that fails is in the table, and no reason to leave out the others.
    opts = ["SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "3"]
    found, sure, written, printed = compare(
        "--engines", "torchvision", "--operators", "tsm", "--slices", "3", opts=opts
    )
    assert [row["failed"] for row in sure] == ["2"]
    assert printed.count("torchvision_tsm_3slice_seed") == 2
    assert all("failed" in run for run in written["runs"])


def test_intervals_and_the_paired_test(repo, monkeypatch):
    """By hand and by scipy's own paired test."""
    monkeypatch.syspath_prepend(repo / "tools")
    compare = importlib.import_module("compare_operators")
    low, high = compare.interval([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx((0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert compare.interval([0.5, 0.5]) == (0.5, 0.5)
    assert all(map(math.isnan, compare.interval([0.5])))
    one, other = {1: 0.5, 2: 0.6, 3: 0.75, 9: 0.1}, {1: 0.4, 2: 0.55, 3: 0.5}
    found = compare.against(one, other)
    assert found["difference"] == pytest.approx((0.1 + 0.05 + 0.25) / 3)
    assert found["p"] == pytest.approx(stats.ttest_rel([0.5, 0.6, 0.75], [0.4, 0.55, 0.5]).pvalue)
    assert compare.against({4: 0.1}, other) == {}
