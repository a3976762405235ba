"""The file of mined lesions, and the samples that they become."""

import json

import numpy as np
import pytest
import torch

from a3d_det2.data.mined import IGNORED, read_mined, write_mined
from a3d_det2.data.sample import SampleLoader
from tests.data.test_sample import BOX, HEIGHT, WIDTH, load, record  # noqa: F401 - a fixture

LESION = {"bbox": [20.0, 3.0, 31.0, 12.0], "score": 0.75, "category_id": 0}
NAME = "000001_01_01_010.png"
MINED = {NAME: [LESION]}


@pytest.fixture
def key_slice(record):  # noqa: F811
    return {**record, "image_id": NAME}


def test_written_and_read(tmp_path):
    images = {**MINED, "b.png": []}
    write_mined(tmp_path / "mined.json", images, {"score": 0.5})
    assert read_mined(tmp_path / "mined.json") == images
    assert json.loads((tmp_path / "mined.json").read_text())["how"] == {"score": 0.5}
    write_mined(tmp_path / "empty.json", {}, {})
    assert read_mined(tmp_path / "empty.json") == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"images": {}}',
        '{"format": "a3d_det2 mined lesions", "version": 2, "images": {}}',
        '{"format": "another", "version": 1, "images": {}}',
        *(
            json.dumps({"format": "a3d_det2 mined lesions", "version": 1, "images": {"a.png": [{**LESION, **change}]}})
            for change in (
                {"bbox": [1, 2, 3]},
                {"bbox": [5, 2, 3, 9]},
                {"bbox": [1, 2, float("nan"), 9]},
                {"bbox": "1234"},
                {"score": 1.5},
                {"score": None},
                {"category_id": -1},
                {"category_id": 0.0},
            )
        ),
    ],
)
def test_another_file(tmp_path, content):
    path = tmp_path / "mined.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"mined.json: expected mined lesions as tools/mine_lesions.py writes them"):
        read_mined(path)


def test_ignored(key_slice):
    sample = load(key_slice, mined=MINED)
    assert sample.boxes.tolist() == [BOX, LESION["bbox"]]
    assert sample.classes.tolist() == [0, IGNORED]


def test_a_weight_is_how_often_it_is_a_lesion(key_slice):
    options = {"is_train": True, "num_slices": 3, "slice_interval": 2.0, "hu_window": (-1024, 2050), "mined": MINED}
    rng = np.random.default_rng(0)
    for weight, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        loader = SampleLoader(mined_weight=weight, **options)
        classes = [loader(key_slice, lambda x: (x, _Nothing()), rng.random).classes[1] for _ in range(200)]
        assert set(classes) <= {0, IGNORED}
        assert low <= np.mean(np.array(classes) == 0) <= high


class _Nothing:
    def apply_box(self, box):
        return box


def test_its_mask_is_the_ellipse_in_its_box(key_slice):
    for annotation in key_slice["annotations"]:
        annotation["recist"] = [[8, 14], [19, 14], [13, 10], [13, 17]]
    mask = load(key_slice, mined=MINED, use_instance_mask=True).masks[1]
    rows, columns = np.nonzero(mask)
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - LESION["bbox"]).max() <= 1
    assert mask.sum() == pytest.approx(np.pi / 4 * 11 * 9, rel=0.1)


def test_a_test_has_none(key_slice):
    assert load(key_slice, mined=MINED, is_train=False).boxes.shape == (0, 4)


def test_of_other_key_slices(key_slice):
    with pytest.raises(ValueError, match=f"expected {NAME} among the 1 key slices of DATASETS.MINED"):
        load(key_slice, mined={"another.png": []})


def test_samples_of_torchvision(key_slice):
    from a3d_det2.data.torch_dataset import LesionDataset

    loader = SampleLoader(
        is_train=True, num_slices=3, slice_interval=2.0, hu_window=(-1024, 2050), mined=MINED, mined_weight=0.5
    )
    dataset = LesionDataset([key_slice], loader, lambda image, rng: (image, _Nothing()), 0)
    labels = [dataset[i][1]["labels"].tolist() for i in range(30)]
    assert {tuple(one) for one in labels} == {(1, 1), (1, IGNORED)}
    assert labels == [dataset[i][1]["labels"].tolist() for i in range(30)]  # as the number of the item says


def test_samples_of_detectron2(key_slice):
    pytest.importorskip("detectron2")
    from detectron2.structures import BoxMode

    from a3d_det2 import DeepLesionMapper

    for annotation in key_slice["annotations"]:
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    mapper = DeepLesionMapper(
        augmentations=[], is_train=True, num_slices=3, slice_interval=2.0, hu_window=(-1024, 2050), mined=MINED
    )
    instances = mapper(key_slice)["instances"]
    assert instances.gt_classes.tolist() == [0, IGNORED]
    assert torch.equal(instances.gt_boxes.tensor[1], torch.tensor(LESION["bbox"]))
    assert instances.image_size == (HEIGHT, WIDTH)
