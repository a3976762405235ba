"""The six published files, with the names and shapes of all that is in them: published_names.txt. "a3d" marks what only
A3D has, and D stands for the number of slices."""

from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from a3d_det2 import LesionCheckpointer, add_a3d_config

NAMES = Path(__file__).with_name("published_names.txt").read_text().splitlines()


def shapes_of(operator: str, slices: int) -> dict[str, list[int]]:
    lines = [line.removeprefix("a3d ") for line in NAMES if operator == "a3d" or not line.startswith("a3d")]
    return {name: [int(length.replace("D", str(slices))) for length in shape] for name, *shape in map(str.split, lines)}


@pytest.mark.parametrize("slices", [3, 7])
@pytest.mark.parametrize("operator", ["a3d", "tsm", "alignshift"])
def test_it_loads(repo, tmp_path, caplog, operator, slices):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(str(repo / f"configs/published/{operator}_{slices}slice.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(-1)

    shapes, content = shapes_of(operator, slices), {}
    assert len(shapes) == (644 if operator == "a3d" else 557)
    for number, (name, shape) in enumerate(shapes.items()):
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        content[f"module.{name}"] = torch.tensor(number, dtype=dtype).expand(shape)  # one number in the file
    torch.save({"meta": {"epoch": 20, "iter": 112400}, "state_dict": content}, tmp_path / "latest.pth")
    with caplog.at_level("INFO"):
        LesionCheckpointer(model).load(str(tmp_path / "latest.pth"))

    found = model.state_dict()
    unused = [line.split(":")[0].strip() for line in caplog.text.splitlines() if "not in the model" in line]
    assert len(unused) == (3 if operator == "a3d" else 0)
    assert len(found) == len(shapes) - len(unused)
    numbers = [value.flatten()[0].item() for value in found.values()]
    assert all((value == number).all() for value, number in zip(found.values(), numbers, strict=True))
    given = [n for n, name in enumerate(shapes) if f"module.{name}" not in unused]
    assert sorted(numbers) == given
