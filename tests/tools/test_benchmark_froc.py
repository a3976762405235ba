import json
import subprocess
import sys


def test_loop_and_table_agree(repo, phantom_root, tmp_path):
    """The script itself ends with an error where they do not."""
    csv = phantom_root / "phantom" / "DL_info.csv"
    arguments = ["--detections", "9", "--resamples", "20", "--repetitions", "2", "--json", tmp_path / "out.json"]
    command = [sys.executable, "tools/benchmark_froc.py", "--ground-truth", csv, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["difference"] <= 1e-12
    assert len(figures["seconds"]["match and score"]) == 2
    assert f"{figures['ratio']:.0f} times" in done.stdout
