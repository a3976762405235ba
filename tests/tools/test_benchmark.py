import json
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")


@pytest.mark.slow
def test_tables_plot_and_json(repo, tmp_path):
    page, figures = tmp_path / "performance.md", tmp_path / "out.json"
    begin, end = "<!-- measured -->\n", "<!-- end of what was measured -->\n"
    page.write_text(f"# Performance\n\nBefore.\n\n{begin}Old.\n{end}\nAfter.\n")
    arguments = "--device cpu --slices 3 --size 64 --growth-size 32 --repeat 1".split()
    command = [sys.executable, "tools/benchmark.py", *arguments, "--json", figures, "--page", page]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(figures.read_text())
    assert results["difference"] < 1e-5
    for what in ("trunk", "detector"):
        (result,) = results[what]
        for kind in ("inference", "training"):
            parts = result["results"][kind]
            assert parts.keys() == {f"{n}{amp}" for n in ("published", "ours", "none") for amp in ("", " AMP")}
            assert parts["published"]["speedup"] == 1
            assert all(part["least"] <= part["seconds"] <= part["most"] for part in parts.values())
            assert all(part["bytes"] >= 0 for part in parts.values())
    assert len(results["operator"]) == 3
    assert [point["slices"] for point in results["growth"]["slices"]] == [3, 7, 9, 15, 27]
    text = page.read_text()
    assert text.startswith("# Performance\n\nBefore.")
    assert text.endswith(f"{end}\nAfter.\n")
    assert "Old." not in text
    assert "1 x 992 x 3 x 32 x 32" in text
    assert page.with_suffix(".png").stat().st_size > 10000

    page.write_text("no place for it")
    command = [sys.executable, "tools/benchmark.py", "--page", page]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=repo)
    assert done.returncode != 0
    assert "expected the lines <!-- measured -->" in done.stderr
