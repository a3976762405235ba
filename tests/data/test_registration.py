import os
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

import a3d_det2.data
from a3d_det2.data.mask_file import MASK_FILE, encode_mask, write_masks
from a3d_det2.data.registration import register_all_deeplesion, register_deeplesion

NAMES = {f"{dataset}_{split}" for dataset in ("deeplesion", "phantom") for split in ("train", "val", "test")}


@pytest.fixture(autouse=True)
def empty_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})


@pytest.fixture
def make_root(tmp_path, write_csv):
    """Makes a $DETECTRON2_DATASETS with a phantom of one key slice, and split files."""

    def make(name, *splits, **row):
        folder = tmp_path / name / "phantom"
        (folder / "splits").mkdir(parents=True)
        os.rename(write_csv(row), folder / "DL_info.csv")
        for split in splits:
            (folder / "splits" / f"{split}.txt").write_text("1")
        return str(tmp_path / name)

    return make


def test_names_and_metadata(make_root):
    root = make_root("root", "fold1")
    register_all_deeplesion(root)
    assert set(DatasetCatalog.list()) == NAMES | {"phantom_fold1"}
    metadata = MetadataCatalog.get("phantom_fold1")
    assert (metadata.evaluator_type, metadata.thing_classes) == ("coco", ["lesion"])
    assert metadata.csv_file == f"{root}/phantom/DL_info.csv"
    assert metadata.image_root == f"{root}/phantom/Images_png"
    assert metadata.lesion_types[5] == "lung"
    (record,) = DatasetCatalog.get("phantom_fold1")
    assert record["file_name"] == f"{root}/phantom/Images_png/000001_02_03/014.png"


def test_the_csvs_own_splits_cannot_be_replaced(make_root, caplog):
    root = make_root("root", "test")
    with open(f"{root}/phantom/splits/test.txt", "w") as f:
        f.write("9")
    register_all_deeplesion(root)
    assert "splits/test.txt: left out, as phantom_test is the csv's own split; rename it." in caplog.text
    assert len(DatasetCatalog.get("phantom_test")) == 1


def test_twice_is_fine(make_root, monkeypatch):
    root = make_root("root", "fold1")
    for again in (root, None):
        monkeypatch.setenv("DETECTRON2_DATASETS", root)
        register_all_deeplesion(again)
        functions = dict(DatasetCatalog.data)
        register_all_deeplesion(again)
        assert dict(DatasetCatalog.data) == functions
        assert len(DatasetCatalog.get("phantom_fold1")) == 1


def test_the_folder_is_looked_up_when_a_dataset_is_read(make_root, monkeypatch):
    first, second = make_root("first", "fold1"), make_root("second", "fold2", Patient_index="1", Image_size="99, 77")
    monkeypatch.setenv("DETECTRON2_DATASETS", first)
    register_all_deeplesion()
    assert DatasetCatalog.get("phantom_test")[0]["height"] == 256
    monkeypatch.setenv("DETECTRON2_DATASETS", second)
    (record,) = DatasetCatalog.get("phantom_test")
    assert record["height"] == 77
    assert record["file_name"].startswith(second)
    with pytest.raises(ValueError, match="Unknown dataset 'phantom_fold1'. Choose one of .*phantom_fold2"):
        DatasetCatalog.get("phantom_fold1")
    assert "phantom_fold2" not in DatasetCatalog.list()

    register_all_deeplesion()
    assert DatasetCatalog.get("phantom_fold2")[0]["height"] == 77
    assert MetadataCatalog.get("phantom_test").csv_file == f"{second}/phantom/DL_info.csv"


def test_a_folder_that_is_given_stays(make_root, monkeypatch):
    first, second = make_root("first"), make_root("second", Image_size="99, 77")
    register_all_deeplesion(first)
    monkeypatch.setenv("DETECTRON2_DATASETS", second)
    assert DatasetCatalog.get("phantom_test")[0]["height"] == 256


@pytest.mark.parametrize("alone", [True, False])
def test_the_dataset_of_somebody_else_is_detectron2s_error(alone):
    DatasetCatalog.register("phantom_val", lambda: ["theirs"])
    with pytest.raises(AssertionError, match="Dataset 'phantom_val' is already registered"):
        register_deeplesion("phantom_val", "", "", "val") if alone else register_all_deeplesion()
    assert DatasetCatalog.get("phantom_val") == ["theirs"]


def test_masks_beside_the_csv_are_read(write_csv, tmp_path):
    register_deeplesion("mine", write_csv({}), "root", "test")
    (record,) = DatasetCatalog.get("mine")
    assert "segmentation" not in record["annotations"][0]
    mask = encode_mask(np.eye(4, dtype=bool))
    entry = {"row": 0, "image_id": record["image_id"], "bbox": record["annotations"][0]["bbox"], "source": "grabcut"}
    write_masks(str(tmp_path / MASK_FILE), [{**entry, **mask}])
    (record,) = DatasetCatalog.get("mine")
    assert record["annotations"][0]["segmentation"] == mask


def test_noisy_rows(write_csv):
    path = write_csv({}, {"File_name": "000001_02_03_015.png", "Possibly_noisy": "1"})
    register_deeplesion("clean", path, "root", "test")
    register_deeplesion("noisy", path, "root", "test", drop_noisy=False)
    assert [len(DatasetCatalog.get(name)) for name in ("clean", "noisy")] == [1, 2]


def test_the_data_room_has_it_without_loading_detectron2():
    assert a3d_det2.data.register_deeplesion is register_deeplesion
    with pytest.raises(AttributeError, match="module 'a3d_det2.data' has no attribute 'register_all'"):
        a3d_det2.data.register_all  # noqa: B018
    code = "import sys, a3d_det2.data as data; print('detectron2' in sys.modules, hasattr(data, 'register_deeplesion'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "False True\n"
