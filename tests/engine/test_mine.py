"""a3d-mine, and trainings with what it has written."""

import json
import os

import numpy as np
import pytest
import torch

from a3d_det2.data.deeplesion import load_deeplesion
from a3d_det2.data.mined import read_mined, write_mined
from a3d_det2.engine.mine import main, mine, on_key_slice
from a3d_det2.volumes.lesion import LesionSlice
from tests.engine.conftest import TINY
from tests.engine.test_predictor import make_config, save_weights


class FakeLesion:
    """On slices 3 to 5 of its volume."""

    def __init__(self, box, score=0.8):
        self.box, self.score, self.category = np.array(box, dtype=float), score, 0

    def on_slice(self, index):
        return LesionSlice(index, self.box, self.score, None) if 3 <= index <= 5 else None


def test_what_is_annotated_is_left_out():
    record = {"annotations": [{"bbox": [10.0, 10.0, 30.0, 30.0]}]}
    near, far, point = FakeLesion([12, 10, 32, 30]), FakeLesion([50, 50, 60, 60.126]), FakeLesion([5, 5, 5, 9])
    found = on_key_slice([near, far, point], 4, record)
    assert found == [{"bbox": [50.0, 50.0, 60.0, 60.13], "score": 0.8, "category_id": 0}]
    assert on_key_slice([far], 2, record) == []
    assert len(on_key_slice([near], 4, {"annotations": []})) == 1


class FakePredictor:
    """Finds what is annotated, and one more lesion on every slice."""

    def __init__(self, records):
        self.boxes = [np.array(a["bbox"]) for record in records for a in record["annotations"]]

    def predict(self, volume):
        boxes = [*self.boxes, np.array([1.0, 1.0, 6.0, 6.0])]
        lesions = [FakeLesion(box, 0.9) for box in boxes] + [FakeLesion([80.0, 1, 90, 9], 0.2)]
        for lesion in lesions:
            lesion.on_slice = lambda index, box=lesion.box: LesionSlice(index, box, 0.9, None)
        return lesions


def test_series(phantom_root, caplog):
    folder = phantom_root / "phantom"
    records = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "test")[:3]
    for record in records:
        mined, unreadable = mine(FakePredictor([record]), [record], 0.5)
        assert mined == {record["image_id"]: [{"bbox": [1, 1, 6, 6], "score": 0.9, "category_id": 0}]}
        assert unreadable == []
    mined, unreadable = mine(FakePredictor([]), [{**records[0], "slice_interval": float("nan")}], 0.5)
    assert mined == {records[0]["image_id"]: []}
    assert "expected three distances in mm" in unreadable[0]
    gone = {**records[0], "file_name": records[0]["file_name"].replace("Images_png", "Images_gone")}
    mined, unreadable = mine(FakePredictor([]), [gone], 0.5)
    assert mined == {records[0]["image_id"]: []}
    assert "expected slices as 16-bit PNG" in unreadable[0]


@pytest.fixture
def run(engine, phantom_root, tmp_path, monkeypatch, capfd):
    """Runs a3d-mine; returns what it printed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(phantom_root))
    save_weights(engine, make_config(engine), tmp_path / "model.pth")
    name = "detectron2" if hasattr(engine, "Trainer") else "torchvision"
    model = ["--engine", name, "--weights", tmp_path / "model.pth", "--config-file", "quick/a3d_7slice.yaml"]

    def run(*arguments, opts=()):
        line = ["--output", tmp_path / "mined.json", *model, *arguments, *TINY, *opts]
        status = 0
        try:
            main(list(map(str, line)))
        except SystemExit as error:
            status = error.code
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        assert (status == 0) == (": error: " not in printed.err)
        return printed.out + printed.err

    return run


def test_mined_and_trained_with(run, start, tmp_path, phantom_root):
    printed = run("--datasets", "phantom_train", "--score", "0.3", "--min-score", "0.3", "--link-iou", "0.2")
    mined = read_mined(tmp_path / "mined.json")
    count = sum(map(len, mined.values()))
    assert count > 3
    assert f"{count} lesions on " in printed
    assert f"of {len(mined)} key slices" in printed
    folder = phantom_root / "phantom"
    records = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "train")
    assert mined.keys() == {record["image_id"] for record in records}
    assert json.loads((tmp_path / "mined.json").read_text())["how"]["score"] == 0.3
    for weight in (0.0, 0.5, 1.0):
        options = ["DATASETS.MINED", tmp_path / "mined.json", "DATASETS.MINED_WEIGHT", weight]
        assert start(*options, "SOLVER.MAX_ITER", 2) is None
        weights = torch.load(tmp_path / "out" / "model_final.pth")["model"]
        assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


def test_mistakes(run, start, engine, tmp_path):
    assert "--datasets: " in run("--datasets", "phantom_tarin")
    for arguments, message in (
        (("--datasets", "phantom_val", "--score", "1.5"), "expected a --score from 0 to 1, got 1.5"),
        (("--datasets", "phantom_val", "--output", tmp_path), "expected a file in a folder that can be written to"),
        (("--datasets", "phantom_val", "--output", tmp_path / "no" / "m.json"), "expected a file in a folder that can"),
        (("--datasets", "phantom_val", "--step", "5"), "expected no --step, as every slice is looked at, got 5.0"),
    ):
        assert message in run(*arguments)
    assert "DATASETS.MINED: expected a file of tools/mine_lesions.py" in start("DATASETS.MINED", "nowhere.json")
    (tmp_path / "other.json").write_text("{}")
    assert "other.json: expected mined lesions" in start("DATASETS.MINED", tmp_path / "other.json")
    assert os.path.exists(tmp_path / "other.json")
    if hasattr(engine, "Trainer"):
        error = start("DATASETS.MINED", tmp_path / "other.json", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
        assert "DATASETS.MINED: expected MODEL.PROPOSAL_GENERATOR.NAME 'LesionRPN'" in error


def test_of_another_dataset(run, start, tmp_path):
    run("--datasets", "phantom_val", "--min-score", "0.3")
    error = start("DATASETS.MINED", tmp_path / "mined.json")
    assert "expected all key slices of DATASETS.TRAIN, got 4 without 12 of them, such as 0000" in error


def test_of_other_classes(start, tmp_path, phantom_root):
    folder = phantom_root / "phantom"
    records = load_deeplesion(str(folder / "DL_info.csv"), str(folder / "Images_png"), "train")
    lesion = {"bbox": [1, 1, 9, 9], "score": 0.9, "category_id": 5}
    write_mined(tmp_path / "mined.json", {record["image_id"]: [lesion] for record in records}, {})
    assert "expected classes from 0 to 0, got 5 (0000" in start("DATASETS.MINED", tmp_path / "mined.json")


def test_a_loader_for_a_detector_that_knows_no_ignored_lesions(phantom_root, tmp_path, monkeypatch):
    """As whoever calls it from a script, with a config of Detectron2's RPN."""
    pytest.importorskip("detectron2")
    from a3d_det2.data.loaders import build_lesion_train_loader
    from a3d_det2.engine import launching

    cfg = make_config(launching, "DATASETS.MINED", "mined.json", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    with pytest.raises(ValueError, match="expected MODEL.PROPOSAL_GENERATOR.NAME 'LesionRPN'"):
        build_lesion_train_loader(cfg)
