import json
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

# GFLOPs of Table 1 of the paper for 3 and 7 slices; of p3d without its additional norms and ReLUs.
TABLE_1 = {
    **dict.fromkeys(("none", "acs", "tsm", "alignshift", "a3d"), (40.64, 94.83)),
    "i3d": (78.69, 183.61),
    "p3d": (67.59, 157.72),
}


def complexity(repo, *arguments):
    command = [sys.executable, "tools/complexity.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo, check=True)
    return done.stdout


def test_table_1_is_reproduced(repo, tmp_path):
    table = complexity(repo, "--json", tmp_path / "out.json")
    configs = json.loads((tmp_path / "out.json").read_text())["configs"]
    for op, expected in TABLE_1.items():
        for slices, gflops in zip((3, 7), expected, strict=True):
            result = configs[f"{op}_{slices}slice"]
            assert round(result["published_gflops"], 2) == gflops
            assert f"{gflops:.2f}" in table
    assert [configs[f"p3d_{slices}slice"]["table_1"] for slices in (3, 7)] == [67.79, 158.18]
    none, a3d = configs["none_7slice"], configs["a3d_7slice"]
    # D^2 weights per input channel and D multiply-accumulates per input element of every a3d conv.
    inputs = {1: (64, 6), 2: (128, 12), 3: (256, 24)}
    channels = {b: [c + 32 * i for i in range(n)] + [128] * n for b, (c, n) in inputs.items()}
    assert a3d["parameters"] - none["parameters"] == 49 * sum(sum(c) for c in channels.values())
    elements = sum(sum(c) * 7 * (512 >> (b + 1)) ** 2 for b, c in channels.items())
    assert a3d["mixing_gmacs"] == pytest.approx(7 * elements / 1e9)
    assert (none["mixing_gmacs"], round(none["convolution_gmacs"], 3)) == (0, 93.160)


@pytest.mark.slow
def test_any_config_and_times(repo, tmp_path):
    names = ["quick/a3d_7slice", "quick/none_7slice", "a3d_resnet50_fpn_7slice"]
    paths = [f"configs/{name}.yaml" for name in names]
    table = complexity(repo, *paths, "--size", 64, "--time", "--repeat", 3, "--json", tmp_path / "out.json")
    configs = json.loads((tmp_path / "out.json").read_text())["configs"]
    assert len(configs) == 3
    for result in configs.values():
        assert "table_1" not in result
        assert 0.2 < result["inference"] < 20
        assert 0.2 < result["training"] < 20
        assert f"{result['training']:.2f} |" in table
    quick, none = configs["a3d_7slice"], configs["none_7slice"]
    for kind in ("inference", "training"):  # one trunk without fusion stands for both
        assert quick[f"{kind}_seconds_without_fusion"] == none[f"{kind}_seconds_without_fusion"] > 0
