import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("blosc2")

from a3d_det2.data import load_deeplesion
from tests.scripts import without_detectron2


@pytest.fixture(scope="module")
def packed(phantom_root, tmp_path_factory, repo):
    root = tmp_path_factory.mktemp("packed") / "phantom"
    shutil.copytree(phantom_root / "phantom", root)
    command = without_detectron2("datasets/prepare_deeplesion.py", "--output", root, "--pack")
    subprocess.run(command, check=True, cwd=repo, capture_output=True)
    return root


def benchmark(repo, root, *options):
    command = [sys.executable, repo / "tools" / "benchmark_loader.py", "--root", root, "--repetitions", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=repo)


def test_figures(packed, repo, tmp_path):
    records = load_deeplesion(str(packed / "DL_info.csv"), "", "train")
    interval = max(record["slice_interval"] for record in records)
    options = ["--split", "train", "--intervals", str(interval), "--workers", "0", "1", "--stages", "read", "deliver"]
    done = benchmark(repo, packed, *options, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 3
    assert all(row["lowest"] <= row["samples_per_s"] <= row["highest"] for row in rows)
    by_form = {row["form"]: row for row in rows}
    assert by_form["straightforward"]["MB_read"] > by_form["png"]["MB_read"] > 0


def test_an_interval_that_is_not_there(packed, repo):
    done = benchmark(repo, packed, "--intervals", "17")
    assert done.returncode == 1
    assert "No packed series with slices 17.0 mm apart" in done.stderr


def test_forms_that_differ_are_no_benchmark(packed, repo, tmp_path):
    """A packed series that was made of other slices."""
    root = tmp_path / "phantom"
    shutil.copytree(packed, root)
    records = load_deeplesion(str(root / "DL_info.csv"), "", "test")
    interval = records[0]["slice_interval"]
    first, *others = sorted((root / "Images_png").rglob("*.png"))
    for path in others:
        shutil.copyfile(first, path)
    done = benchmark(repo, root, "--intervals", str(interval), "--workers", "0")
    assert done.returncode == 1
    assert "the forms give different pixels" in done.stderr
