import json
import shutil
import statistics
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")


@pytest.mark.slow
def test_one_table_of_both_engines(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    table = tmp_path / "engines.md"
    table.write_text("# Kept\n\n<!-- measured -->\nreplaced")
    command = [sys.executable, "tools/compare_engines.py", "--output", tmp_path, "--table", table, "--seeds", "1", "2"]
    command += ["--operators", "none", "--opts", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    subprocess.run([*command, "DATALOADER.NUM_WORKERS", "0"], check=True, cwd=repo, capture_output=True)
    text = table.read_text()
    assert text.startswith("# Kept\n\n<!-- measured -->\n")
    assert "replaced" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| none")]
    assert [row[1] for row in rows] == ["Detectron2", "torchvision"]
    for row in rows:
        reports = [tmp_path / f"{row[1]}_none_{seed}" / "inference" / "froc.json" for seed in (1, 2)]
        averages = sorted(json.loads(path.read_text())["average"] for path in reports)
        assert row[-1] == ", ".join(f"{average:.3f}" for average in averages)
        assert row[-3] == f"**{statistics.mean(averages):.3f}**"
        assert row[-2] == f"{statistics.stdev(averages):.3f}"
