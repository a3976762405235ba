import json
import shutil
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

SEEDS = (1, 2)


def cells(printed):
    header, _, *rows = [line.split("|")[1:-1] for line in printed.splitlines() if "|" in line]
    return [cell.strip() for cell in header], [[cell.strip() for cell in row] for row in rows]


@pytest.mark.slow
def test_tables_of_operators_and_of_engines(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")

    def compare(*arguments):
        command = [sys.executable, "tools/compare_operators.py", "--output", tmp_path, "--seeds", *map(str, SEEDS)]
        options = ["--opts", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"]
        done = subprocess.run([*command, *arguments, *options], check=True, cwd=repo, capture_output=True, text=True)
        return cells(done.stdout), json.loads((tmp_path / "operators.json").read_text())

    def check(rows, pairs):
        assert [(row[1], row[0]) for row in rows] == pairs
        for op, engine, *_, average, deviation, each, _, parameters in rows:
            paths = [tmp_path / f"{engine}_{op}_seed{seed}" / "inference" / "froc.json" for seed in SEEDS]
            averages = sorted(json.loads(path.read_text())["average"] for path in paths)
            assert average == f"{statistics.mean(averages):.3f}"
            assert deviation == f"{statistics.stdev(averages):.3f}"
            assert each == ", ".join(f"{value:.3f}" for value in averages)
            assert parameters == "0.229"

    (header, rows), written = compare("--engines", "torchvision", "--operators", "a3d")
    assert header[-5:] == ["Avg. 0.5 to 4", "SD", "of each seed", "training step (s)", "trunk parameters (M)"]
    check(rows, [("torchvision", "a3d")])
    assert len(written["runs"]) == 2
    assert written["step_seconds"] == {}

    before = {path: path.stat().st_mtime for path in tmp_path.glob("*/inference/froc.json")}
    (_, rows), written = compare("--engines", "torchvision", "detectron2", "--operators", "a3d", "--repeat", "1")
    check(rows, [("torchvision", "a3d"), ("detectron2", "a3d")])
    assert before == {path: path.stat().st_mtime for path in before}  # what is there is not repeated
    assert written["step_seconds"].keys() == {"a3d"}
    assert [row[-2] == "" for row in rows] == [True, False]
