import math
import os
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from fvcore.transforms.transform import HFlipTransform, ScaleTransform, VFlipTransform
from torch.utils.data import DataLoader

from a3d_det2.data.sample import SampleLoader
from a3d_det2.data.torch_dataset import LesionDataset, augment, build_lesion_dataset, build_loader
from a3d_det2.data.transforms import AffineTransform
from a3d_det2.engine import torchvision_loop

SIZE = 24
BOX = [4.0, 6.0, 11.0, 9.0]
KEEP = partial(augment, min_sizes=[0], max_size=0)


@pytest.fixture
def records(write_slice):
    """The key slice of record i has i HU, and 500 more in the box."""
    made = []
    for i in range(5):
        hu = np.full((SIZE, SIZE), i)
        hu[6:10, 4:12] += 500
        path = write_slice(1, hu, series=f"00000{i}_01_01", shape=hu.shape)
        lesion = {"bbox": BOX, "category_id": 0, "segmentation": [[4.0, 6, 12, 6, 12, 10, 4, 10]]}
        record = {"file_name": path, "height": SIZE, "width": SIZE, "slice_interval": 1.0, "annotations": [lesion]}
        made.append({**record, "image_id": f"{i}"})
    return made


def dataset(records, is_train=True, change=KEEP, seed=0, **options):
    common = {"num_slices": 1, "slice_interval": 2.0, "hu_window": (-1024, 2050)}
    return LesionDataset(records, SampleLoader(is_train=is_train, **common, **options), change, seed)


def test_a_test_item_by_hand(records):
    items = dataset(records, is_train=False)
    assert len(items) == 5
    image, target, thickness, size, image_id = items[3]
    assert (image_id, size, thickness) == ("3", (SIZE, SIZE), 1.0)
    assert (image.shape, image.dtype) == ((1, SIZE, SIZE), torch.float32)
    assert image[0, 0, 0] == pytest.approx((3 + 1024) * 255 / 3074 - 50)
    assert target["boxes"].shape == (0, 4)


def test_a_training_item_by_hand(records):
    _, target, *_ = dataset(records, use_instance_mask=True)[0]
    assert target["boxes"].tolist() == [BOX]
    assert target["boxes"].dtype == torch.float32
    assert (target["labels"].tolist(), target["labels"].dtype) == ([1], torch.int64)  # 0 is the background
    assert (target["masks"].shape, target["masks"].dtype) == ((1, SIZE, SIZE), torch.uint8)
    assert target["masks"].sum() == 8 * 4
    assert "masks" not in dataset(records)[0][1]


def test_masks_are_always_pixels(records, repo):
    options = ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "polygon"]
    cfg = torchvision_loop.load_config(str(repo / "configs/quick/a3d_7slice.yaml"), options)
    assert build_lesion_dataset(cfg, records, is_train=True)[0][1]["masks"].shape == (1, 128, 128)


def test_no_records():
    with pytest.raises(ValueError, match=r"Expected at least one key slice in the dataset. Got none!"):
        dataset([])


def test_without_lesions_the_target_is_empty(records):
    for record in records:
        record["annotations"] = []
    _, target, *_ = dataset(records, use_instance_mask=True)[0]
    assert {key: tuple(value.shape) for key, value in target.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, SIZE, SIZE),
    }


def test_training_goes_through_all_records_in_a_new_order_each_time(records):
    items = dataset(records)
    order = [items[i][-1] for i in range(50)]
    rounds = [tuple(order[i : i + 5]) for i in range(0, 50, 5)]
    assert all(sorted(part) == ["0", "1", "2", "3", "4"] for part in rounds)
    assert len(set(rounds)) > 5
    assert order != [dataset(records, seed=1)[i][-1] for i in range(50)]


def test_items_depend_on_nothing_but_seed_and_number(records):
    """Not on the worker that makes them, nor on what was made before."""
    change = partial(augment, min_sizes=[20, 24, 28], max_size=40, flip="vertical", affine=(0.8, 0.1, 0.2, 15, -1024))
    items = dataset(records, change=partial(change, jitter=(0.5, 20, 0.05)))
    loader = DataLoader(items, batch_size=2, sampler=range(4, 16), num_workers=2, collate_fn=list)
    by_workers = [item for batch in loader for item in batch]
    assert len({tuple(image.shape) for image, *_ in by_workers}) == 3
    for i, (image, target, *rest) in reversed(list(enumerate(by_workers, 4))):
        again, same, *others = items[i]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], same["boxes"])
        assert rest == others
    other_seed = dataset(records, change=items.augment, seed=1)
    assert not any(torch.equal(items[i][1]["boxes"], other_seed[i][1]["boxes"]) for i in range(10))


def test_a_skipped_key_slice_is_replaced(records):
    os.remove(records[2]["file_name"])
    items = dataset(records, unreadable_key_slice="skip")
    seen = [items[i][-1] for i in range(20)]
    assert len(seen) == 20
    assert set(seen) == {"0", "1", "3", "4"}
    with pytest.raises(FileNotFoundError, match="000002_01_01/001.png"):
        [dataset(records)[i] for i in range(5)]
    for record in records:
        record["file_name"] = "nowhere/001.png"
    with pytest.raises(ValueError, match="No key slice was readable in 5 attempts"):
        items[0]


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "expected"),
    [
        ((100, 200), 50, 400, (50, 100)),
        ((100, 200), 50, 80, (40, 80)),  # the longer side would be 100
        ((99, 50), 25, 999, (50, 25)),  # 49.5 is rounded up, as Detectron2 does
        ((100, 200), 100, 200, None),
        ((100, 200), 0, 10, None),
    ],
)
def test_resize_by_hand(size, min_size, max_size, expected):
    image, transform = augment(np.zeros((*size, 3), np.float32), np.random.default_rng(0), [min_size], max_size)
    assert image.shape == (*(expected or size), 3)
    assert [type(t) for t in transform.transforms] == [ScaleTransform] * (expected is not None)


def test_flips_by_hand():
    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    for flip, kind, mirrored in (("horizontal", HFlipTransform, [2, 1, 0]), ("vertical", VFlipTransform, [3, 4, 5])):
        drawn = [augment(image, np.random.default_rng(seed), [0], 0, flip) for seed in range(400)]
        flipped = [moved for moved, transform in drawn if transform.transforms]
        assert len(flipped) / 400 == pytest.approx(0.5, abs=0.08)
        assert all(moved[0, :, 0].tolist() == mirrored for moved in flipped)
        assert {type(t) for _, transform in drawn for t in transform.transforms} == {kind}


def test_the_affine_map_fills_with_the_window_and_turns_about_the_centre_of_the_resized_image():
    image = np.ones((10, 20, 1), np.float32)
    rng = np.random.default_rng(0)
    _, transform = augment(image, rng, [20], 99, affine=(1.0, 0.0, 0.0, 90.0, -77.0))
    resize, affine = transform.transforms
    assert isinstance(affine, AffineTransform)
    assert affine.fill == -77.0
    np.testing.assert_allclose(affine.apply_coords(np.array([[20.0, 10.0]])), [[20, 10]])
    assert (resize.new_h, resize.new_w) == (20, 40)


def test_the_affine_map_comes_first_if_asked_for():
    image = np.ones((10, 20, 1), np.float32)
    how = {"affine": (1.0, 0.0, 0.0, 90.0, -50.0), "affine_first": True, "warp": ("bicubic", "reflect")}
    moved, transform = augment(image, np.random.default_rng(0), [20], 99, **how)
    affine, resize = transform.transforms
    assert (affine.interpolation, affine.border) == ("bicubic", "reflect")
    np.testing.assert_allclose(affine.apply_coords(np.array([[10.0, 5.0]])), [[10, 5]])
    assert (resize.new_h, resize.new_w) == (20, 40)
    np.testing.assert_allclose(moved, 1, rtol=1e-5)


def test_probabilities():
    image = np.zeros((8, 8, 1), np.float32)
    change = partial(augment, min_sizes=[0], max_size=0, affine=(0.3, 0.1, 0.1, 5, 0), jitter=(0.7, 20, 0.1))
    drawn = [change(image, np.random.default_rng(seed))[1].transforms for seed in range(1000)]
    share = np.mean([any(isinstance(t, AffineTransform) for t in each) for each in drawn])
    assert share == pytest.approx(0.3, abs=0.05)
    assert np.mean([len(each) for each in drawn]) == pytest.approx(1.0, abs=0.06)


def test_from_config(records, repo):
    options = ["INPUT.MIN_SIZE_TRAIN", "(30,36)", "INPUT.MIN_SIZE_TEST", "48", "INPUT.HU_JITTER.PROB", "0.5"]
    cfg = torchvision_loop.load_config(str(repo / "configs/quick/a3d_7slice.yaml"), options)
    train, test = (build_lesion_dataset(cfg, records, is_train, seed=3) for is_train in (True, False))
    assert {train[i][0].shape for i in range(8)} == {(7, 30, 30), (7, 36, 36)}
    assert test[0][0].shape == (7, 48, 48)
    assert train.seed == 3
    assert train.load.hu_window == (-200.0, 300.0)
    assert train.augment.keywords == {
        "min_sizes": (30, 36),
        "max_size": 128,
        "flip": "horizontal",
        "affine": (0.8, 0.04, 0.2, 15.0, -200.0),
        "jitter": (0.5, 20.0, 0.05),
        "affine_first": False,
        "warp": ("bilinear", "constant"),
    }
    assert test.augment.keywords == {"min_sizes": [48], "max_size": 128}
    image, *_ = test[1]
    assert math.isclose(image[0, 0, 0], (1 + 200) * 255 / 500 - 50, rel_tol=1e-5)


def test_published_augmentation_from_config(records, repo):
    options = ["INPUT.AFFINE.ORDER", "first", "INPUT.AFFINE.BOXES", "corners", "INPUT.AFFINE.INTERPOLATION", "bicubic"]
    cfg = torchvision_loop.load_config(str(repo / "configs/quick/a3d_7slice.yaml"), options)
    train = build_lesion_dataset(cfg, records, is_train=True)
    assert train.load.window_first
    assert train.load.boxes == "corners"
    keywords = train.augment.keywords
    assert (keywords["affine"], keywords["affine_first"]) == ((0.8, 0.04, 0.2, 15.0, -50.0), True)
    assert keywords["warp"] == ("bicubic", "constant")
    image, *_ = train[0]
    assert -51 < image.min() < image.max() < 206


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_from_config(records, repo, workers):
    options = ["DATALOADER.NUM_WORKERS", str(workers), "DATALOADER.TIMEOUT", "33", "INPUT.MIN_SIZE_TEST", "48"]
    cfg = torchvision_loop.load_config(str(repo / "configs/quick/a3d_7slice.yaml"), options)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        loader = build_loader(cfg, records, [4, 0, 2], 2, is_train=False)
        assert cv2.getNumThreads() == 1  # or workers that are forked may hang
        batches = list(loader)
    finally:
        cv2.setNumThreads(threads)
    assert [[item[-1] for item in batch] for batch in batches] == [["4", "0"], ["2"]]
    assert batches[0][0][0].shape == (7, 48, 48)
    assert (loader.timeout, loader.num_workers) == (33 if workers else 0, workers)
    assert build_loader(cfg, records, [0], 1, is_train=True, seed=3).dataset.seed == 3
