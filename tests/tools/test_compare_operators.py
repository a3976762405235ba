import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

from a3d_det2.layers import FUSION_CONVS


@pytest.mark.slow
def test_one_table_of_all_operators(repo, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    command = [sys.executable, "tools/compare_operators.py", "--output", tmp_path, "--table", tmp_path / "table.md"]
    command += ["--repeat", "1", "--opts", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"]
    subprocess.run(command, check=True, cwd=repo, capture_output=True)
    rows = [line.split("|") for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == list(FUSION_CONVS)
    reports = {op: tmp_path / f"{op}_seed1" / "inference" / "froc.json" for op in FUSION_CONVS}
    for row in rows[1:]:
        average = json.loads(reports[row[1].strip()].read_text())["average"]
        assert f"**{average:.3f}**" in row[8]
    before = {op: path.stat().st_mtime for op, path in reports.items()}
    subprocess.run(command, check=True, cwd=repo, capture_output=True)
    assert before == {op: path.stat().st_mtime for op, path in reports.items()}  # what is there is not repeated
