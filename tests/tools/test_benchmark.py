import json
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip("detectron2")


def benchmark(repo, *arguments):
    command = [sys.executable, "tools/benchmark.py", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=repo)


@pytest.mark.slow
def test_tables_plot_and_json(repo, tmp_path):
    figures, plot = tmp_path / "out.json", tmp_path / "growth.png"
    arguments = "--slices 3 --size 64 --growth batch --growth-size 16 --repeat 1".split()
    done = benchmark(repo, *arguments, "--json", figures, "--plot", plot)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(figures.read_text())
    assert results["difference"] < 1e-5
    assert f"{results['difference']:.1e} of the largest" in done.stdout
    for what in ("trunk", "detector"):
        (result,) = results[what]
        for kind in ("inference", "training"):
            parts = result["results"][kind]
            assert parts.keys() == {f"{n}{amp}" for n in ("published", "ours", "none") for amp in ("", " AMP")}
            assert parts["published"]["speedup"] == 1
            assert all(part["least"] <= part["seconds"] <= part["most"] for part in parts.values())
            assert f"{parts['ours']['seconds']:.3f} ({parts['ours']['least']:.3f} to" in done.stdout
        assert result["results"]["training"]["published"]["bytes"] > 0
    assert [tuple(result["shape"]) for result in results["operator"]] == [
        (1, 256, 3, 64, 64),
        (1, 128, 3, 128, 128),
        (1, 992, 3, 32, 32),
    ]
    assert "1 x 992 x 3 x 32 x 32" in done.stdout
    assert {axis: [point[axis] for point in points] for axis, points in results["growth"].items()} == {
        "batch": [1, 2, 4, 8]
    }
    assert min(Image.open(plot).size) > 1000


def test_a_plot_of_what_is_not_measured(repo, tmp_path):
    done = benchmark(repo, "--what", "operator", "--plot", tmp_path / "growth.png")
    assert done.returncode == 2
    assert "--plot draws the growth: expected it in --what, got operator" in done.stderr
