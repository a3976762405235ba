"""The average of the weights: what it is, where it lies, and that a training goes on with it."""

import json

import pytest
import torch

EMA = ["SOLVER.EMA_DECAY", "0.75", "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "('phantom_test',)"]


def weights(path):
    return torch.load(path)["model"]


def test_average(start, tmp_path):
    """Recomputed from the weights of each iteration; --resume goes on from the average of before."""
    out = tmp_path / "out"
    assert start(*EMA, "SOLVER.MAX_ITER", 3) is None
    files = ["model_0000000.pth", "model_0000001.pth"]
    assert {path.name for path in (out / "ema").glob("model_0*.pth")} >= set(files)
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text(files[-1])
    (out / "ema" / "model_0000002.pth.7.part").write_text("half")
    assert start(*EMA, "SOLVER.MAX_ITER", 5, arguments=["--resume"]) is None
    assert not list(out.rglob("*.part"))
    assert files[0] in (out / "ema" / "checkpoints.txt").read_text().split()
    average = {name: value.double() for name, value in weights(out / files[0]).items()}
    for name in ("model_0000001.pth", "model_0000002.pth", "model_0000003.pth", "model_final.pth"):
        new = weights(out / name)
        average = {key: 0.75 * value + 0.25 * new[key].double() for key, value in average.items()}
    found = weights(out / "ema" / "model_final.pth")
    assert found.keys() == average.keys()
    for key, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[key], atol=1e-6, rtol=1e-5, msg=key)
    assert not torch.equal(found["rpn.head.conv.weight" if "rpn.head.conv.weight" in found else key], new[key])
    raw, averaged = (json.loads((out / folder / "inference" / "froc.json").read_text()) for folder in (".", "ema"))
    assert raw.keys() == averaged.keys()


def test_it_is_tested_and_the_best_is_kept(start, tmp_path, engine):
    out = tmp_path / "out"
    assert start(*EMA, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2) is None
    if not hasattr(engine, "Trainer"):
        return
    names = set().union(*map(json.loads, (out / "metrics.json").read_text().splitlines()))
    assert {"froc/avg", "ap/AP50", "ema/froc/avg", "ema/ap/AP50"} <= names
    best = torch.load(out / "ema" / "model_best.pth")
    assert {"model", "ema/froc/avg"} <= best.keys()


def test_none_by_default(start, tmp_path):
    assert start("SOLVER.MAX_ITER", 1) is None
    assert not (tmp_path / "out" / "ema").exists()
    assert "ema" not in torch.load(tmp_path / "out" / "model_final.pth")


@pytest.mark.parametrize("value", ["1.0", "-0.5"])
def test_a_decay_that_cannot_be(start, value):
    assert "SOLVER.EMA_DECAY: expected a number from 0 to below 1" in start("SOLVER.EMA_DECAY", value)


def test_resumed_without_one(start, tmp_path):
    """A training that begins without an average cannot go on with one, and the message says so."""
    assert start("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1) is None
    error = start(*EMA, "SOLVER.MAX_ITER", 3, arguments=["--resume"])
    assert "got one without ema" in error
