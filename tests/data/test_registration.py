import os

import pytest

pytest.importorskip("detectron2")

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from a3d_det2.data.deeplesion import register_all_deeplesion, register_deeplesion
from a3d_det2.data.mask_file import MASK_FILE, encode_mask, write_masks

NAMES = [f"{dataset}_{split}" for dataset in ("deeplesion", "phantom") for split in ("train", "val", "test", "fold1")]


@pytest.fixture
def catalog():
    """Without our datasets, which come back afterwards."""
    kept = {name: DatasetCatalog.pop(name) for name in NAMES if name in DatasetCatalog.list()}
    for name in kept:
        MetadataCatalog.pop(name)
    yield DatasetCatalog
    for name in NAMES:
        if name in DatasetCatalog.list():
            DatasetCatalog.pop(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.pop(name)
    for name, function in kept.items():
        DatasetCatalog.register(name, function)
        MetadataCatalog.get(name).set(thing_classes=["lesion"], evaluator_type="deeplesion")


def test_split_files_are_registered(catalog, tmp_path):
    (tmp_path / "deeplesion" / "splits").mkdir(parents=True)
    (tmp_path / "deeplesion" / "splits" / "fold1.txt").write_text("1")
    register_all_deeplesion(str(tmp_path))
    assert "deeplesion_fold1" in catalog.list()
    assert "phantom_fold1" not in catalog.list()
    assert MetadataCatalog.get("deeplesion_fold1").evaluator_type == "deeplesion"


def test_the_csvs_own_splits_cannot_be_replaced(catalog, tmp_path, write_csv, caplog):
    (tmp_path / "phantom" / "splits").mkdir(parents=True)
    (tmp_path / "phantom" / "splits" / "test.txt").write_text("9")
    register_all_deeplesion(str(tmp_path))
    assert "splits/test.txt: left out, as phantom_test is the csv's own split; rename it." in caplog.text
    os.rename(write_csv({}), tmp_path / "phantom" / "DL_info.csv")
    assert len(catalog.get("phantom_test")) == 1


def test_masks_beside_the_csv_are_read(catalog, write_csv, tmp_path):
    register_deeplesion("phantom_fold1", write_csv({}), "root", "test")
    (record,) = catalog.get("phantom_fold1")
    assert "segmentation" not in record["annotations"][0]
    mask = encode_mask(np.eye(4, dtype=bool))
    entry = {"row": 0, "image_id": record["image_id"], "bbox": record["annotations"][0]["bbox"], "source": "grabcut"}
    write_masks(str(tmp_path / MASK_FILE), [{**entry, **mask}])
    (record,) = catalog.get("phantom_fold1")
    assert record["annotations"][0]["segmentation"] == mask
