import json
import shutil
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

ENGINES, OPERATORS, SEEDS = ("detectron2", "torchvision"), ("none", "a3d"), (1, 2)


@pytest.mark.slow
def test_one_table_of_engines_and_operators(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    command = [sys.executable, "tools/compare_operators.py", "--output", tmp_path, "--engines", *ENGINES]
    command += ["--operators", *OPERATORS, "--seeds", "1", "2", "--repeat", "1"]
    command += ["--opts", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"]
    done = subprocess.run(command, check=True, cwd=repo, capture_output=True, text=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    header, _, *rows = rows
    assert header[-5:] == ["Avg. 0.5 to 4", "SD", "of each seed", "training step (s)", "trunk parameters (M)"]
    assert [(row[0], row[1]) for row in rows] == [(op, engine) for op in OPERATORS for engine in ENGINES]
    reports = {
        (op, engine): [tmp_path / f"{engine}_{op}_seed{seed}" / "inference" / "froc.json" for seed in SEEDS]
        for op in OPERATORS
        for engine in ENGINES
    }
    for op, engine, *_, average, deviation, each, seconds, parameters in rows:
        averages = sorted(json.loads(path.read_text())["average"] for path in reports[op, engine])
        assert average == f"{statistics.mean(averages):.3f}"
        assert deviation == f"{statistics.stdev(averages):.3f}"
        assert each == ", ".join(f"{value:.3f}" for value in averages)
        assert float(seconds) > 0 if engine == "detectron2" else seconds == ""
        assert parameters == {"none": "0.160", "a3d": "0.229"}[op]
    written = json.loads((tmp_path / "operators.json").read_text())
    assert len(written["runs"]) == 8
    assert written["step_seconds"].keys() == set(OPERATORS)

    before = {path: path.stat().st_mtime for paths in reports.values() for path in paths}
    command[command.index("--repeat") + 1] = "0"
    again = subprocess.run(command, check=True, cwd=repo, capture_output=True, text=True)
    assert before == {path: path.stat().st_mtime for path in before}  # what is there is not repeated
    assert json.loads((tmp_path / "operators.json").read_text())["step_seconds"] == {}
    assert len(again.stdout.splitlines()) == len(done.stdout.splitlines())
