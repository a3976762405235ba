import copy
import math
import os

import numpy as np
import pytest

pytest.importorskip("detectron2")

import pycocotools.mask
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from a3d_det2 import AffineTransform, DeepLesionMapper, RandomAffine, add_a3d_config
from a3d_det2.data import load_deeplesion

BOX = [8.0, 10.0, 19.0, 17.0]  # first and last pixel, as DeepLesion counts
SIZE = 40


@pytest.fixture
def record(tmp_path):
    """Slice k has k HU, and the box on it 500 more."""
    folder = tmp_path / "000001_01_01"
    folder.mkdir()
    for index in (9, 10, 11):
        hu = np.full((SIZE, SIZE), index)
        hu[10:18, 8:20] += 500
        Image.fromarray((hu + 32768).astype(np.uint16)).save(folder / f"{index:03d}.png")
    return {
        "file_name": str(folder / "010.png"),
        "image_id": "000001_01_01_010.png",
        "height": SIZE,
        "width": SIZE,
        "slice_interval": 2.0,
        "annotations": [{"bbox": BOX, "bbox_mode": 0, "category_id": 0, "iscrowd": 0}],
    }


def mapper(is_train=True, augmentations=(), **options):
    options = {"num_slices": 3, "slice_interval": 2.0, "hu_window": (-1024, 2050), **options}
    return DeepLesionMapper(is_train=is_train, augmentations=list(augmentations), **options)


def test_train_sample_by_hand(record):
    before = copy.deepcopy(record)
    sample = mapper()(record)
    assert record == before
    assert sample["image"].shape == (3, SIZE, SIZE)
    assert sample["image"].dtype == torch.float32
    scale = 255 / 3074
    torch.testing.assert_close(sample["image"][:, 0, 0], torch.tensor([9.0, 10, 11]).add(1024).mul(scale).sub(50))
    assert sample["instances"].gt_boxes.tensor.tolist() == [BOX]
    assert sample["instances"].gt_classes.tolist() == [0]
    assert sample["instances"].image_size == (SIZE, SIZE)
    assert "annotations" not in sample
    assert (sample["height"], sample["width"]) == (SIZE, SIZE)


def test_flip_moves_image_and_box(record):
    sample = mapper(augmentations=[T.RandomFlip(prob=1.0)])(record)
    ys, xs = torch.nonzero(sample["image"][1] > 50, as_tuple=True)
    assert [xs.min(), ys.min(), xs.max(), ys.max()] == [20, 10, 31, 17]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[20.0, 10.0, 31.0, 17.0]]


def test_affine_keeps_the_box_on_the_lesion(record):
    for seed in range(20):
        np.random.seed(seed)
        augmentations = [T.ResizeShortestEdge(60, 60), T.RandomFlip(), RandomAffine(prob=1.0)]
        sample = mapper(augmentations=augmentations)(record)
        weight = (sample["image"][1] - 36).clamp(min=0)
        ys, xs = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
        centre = [float((weight * axis).sum() / weight.sum()) for axis in (xs, ys)]
        (box,) = sample["instances"].gt_boxes.tensor.tolist()
        assert [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] == pytest.approx(centre, abs=0.15)


def test_resize_keeps_the_original_size_for_the_output(record):
    sample = mapper(is_train=False, augmentations=[T.ResizeShortestEdge(80, 80)])(record)
    assert sample["image"].shape == (3, 80, 80)
    assert (sample["height"], sample["width"]) == (SIZE, SIZE)
    assert "instances" not in sample
    assert "annotations" not in sample


@pytest.mark.parametrize("is_train", [True, False])
def test_without_annotations(record, is_train):
    del record["annotations"]
    sample = mapper(is_train)(record)
    assert ("instances" in sample) == is_train
    if is_train:
        assert len(sample["instances"]) == 0
    empty = mapper(is_train)({**record, "annotations": []})
    assert torch.equal(empty["image"], sample["image"])


def test_lesion_that_leaves_the_image_is_dropped(record):
    sample = mapper(augmentations=[AffineTransform([[1, 0, -30], [0, 1, 0]], fill=-1024)])(record)
    assert len(sample["instances"]) == 0
    assert sample["image"][:, :, -1].max() == -50  # what comes from outside is air


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_polygons_are_carried_along(record, mask_format):
    record["annotations"][0]["segmentation"] = [[8.0, 10, 20, 10, 20, 18, 8, 18]]
    sample = mapper(augmentations=[T.HFlipTransform(SIZE)], use_instance_mask=True, mask_format=mask_format)(record)
    masks = sample["instances"].gt_masks
    assert masks.get_bounding_boxes().tensor.tolist() == [[20.0, 10.0, 32.0, 18.0]]
    assert not mapper()(record)["instances"].has("gt_masks")


def test_rle_is_carried_along(record):
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8, order="F")
    mask[10:18, 8:20] = 1
    record["annotations"][0]["segmentation"] = pycocotools.mask.encode(mask)
    sample = mapper(augmentations=[T.HFlipTransform(SIZE)], use_instance_mask=True, mask_format="bitmask")(record)
    assert np.array_equal(sample["instances"].gt_masks.tensor[0].numpy(), mask[:, ::-1])


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_a_lesion_without_a_mask_gets_the_outline_of_its_recist_axes(record, mask_format):
    record["annotations"][0]["recist"] = [[8.0, 13.5], [19.0, 13.5], [13.5, 10.0], [13.5, 17.0]]
    augmentations = [T.HFlipTransform(SIZE)]
    masks = mapper(augmentations=augmentations, use_instance_mask=True, mask_format=mask_format)(record)
    (box,) = masks["instances"].gt_masks.get_bounding_boxes().tensor.tolist()
    # From the centres of the outer pixels, 8 to 19 and 10 to 17, mirrored: 40 - 19.5 = 20.5.
    assert box == pytest.approx([20.5, 10.5, 31.5, 17.5], abs=0.01 if mask_format == "polygon" else 0.6)


def test_rle_as_polygons(record):
    record["annotations"][0]["segmentation"] = {"size": [SIZE, SIZE], "counts": "0"}
    with pytest.raises(ValueError, match="010.png: its masks are run-length encoded: expected INPUT.MASK_F"):
        mapper(use_instance_mask=True, mask_format="polygon")(record)


def test_a_mask_of_another_size(record):
    record["annotations"][0]["segmentation"] = pycocotools.mask.encode(np.zeros((8, 9), np.uint8, order="F"))
    with pytest.raises(ValueError, match=r"010.png: expected a mask of the image's size 40 x 40, got one of \[8, 9\]"):
        mapper(use_instance_mask=True)(record)


def test_boxes_end_at_the_outer_pixels(record):
    """However they are moved: by their RECIST points or by their corners."""
    for recist in ({"recist": [[3.0, 14], [5, 14], [4, 13], [4, 15]]}, {}):
        lesion = {**record["annotations"][0], "bbox": [0.0, 8.0, 10.0, 20.0], **recist}
        for augmentations, expected in ([], [0, 8, 10, 20]), ([T.HFlipTransform(SIZE)], [29, 8, 39, 20]):
            sample = mapper(augmentations=augmentations)({**record, "annotations": [lesion]})
            assert sample["instances"].gt_boxes.tensor.tolist() == [expected]


RECIST = [[13.0, 14.0], [15.0, 14.0], [14.0, 13.0], [14.0, 15.0]]


def test_a_box_made_of_recist_points_is_made_again_of_the_turned_ones(record):
    """By 45 degrees: the points keep their extent around the centre, where the turned corners would reach 1.4 times."""
    record["annotations"][0].update(bbox=[8.0, 8.0, 20.0, 20.0], recist=RECIST)
    c, centre = math.sqrt(0.5), 14.5
    turn = AffineTransform([[c, -c, centre], [c, c, centre - 2 * c * centre]], fill=0)
    half = 5 + c  # the margin, and a diagonal of the points
    (box,) = mapper(augmentations=[turn])(record)["instances"].gt_boxes.tensor.tolist()
    assert box == pytest.approx([14 - half, 14 - half, 14 + half, 14 + half], abs=1e-4)
    record["annotations"][0]["bbox"] = [8.0, 8.0, 20.0, 21.0]  # made otherwise
    (box,) = mapper(augmentations=[turn])(record)["instances"].gt_boxes.tensor.tolist()
    assert box[2] - box[0] == pytest.approx(c * 25, abs=1e-4)


def test_the_published_box_encloses_the_turned_corners(record):
    record["annotations"][0].update(bbox=[8.0, 8.0, 20.0, 20.0], recist=RECIST)
    c, centre = math.sqrt(0.5), 14.5
    turn = AffineTransform([[c, -c, centre], [c, c, centre - 2 * c * centre]], fill=0)
    (box,) = mapper(augmentations=[turn], boxes="corners")(record)["instances"].gt_boxes.tensor.tolist()
    assert box == pytest.approx([14 - 12 * c, 14 - 12 * c, 14 + 12 * c, 14 + 12 * c], abs=1e-4)
    with pytest.raises(ValueError, match="Unknown boxes 'none'. Choose one of recist, corners"):
        mapper(boxes="none")


def test_windowed_before_it_is_augmented(record):
    """Interpolated between air and what the window clips, the order makes a difference."""
    resize = [T.Resize((60, 60))]
    first, last = (
        mapper(augmentations=resize, window_first=w, hu_window=(0, 100))(record)["image"] for w in (True, False)
    )
    assert first.dtype == torch.float32
    assert -50.01 < first.min() < first.max() < 205.01
    assert not torch.allclose(first, last, atol=1)
    torch.testing.assert_close(*(mapper(window_first=w)(record)["image"] for w in (True, False)))


def test_without_a_rotation_both_ways_give_the_same_box(record):
    record["annotations"][0].update(bbox=[8.0, 8.0, 20.0, 20.0])
    for seed in range(5):
        boxes = []
        for recist in ({}, {"recist": RECIST}):
            np.random.seed(seed)
            augmentations = [T.ResizeShortestEdge(60, 60), T.RandomFlip(), RandomAffine(prob=1.0, rotation=0)]
            lesion = {**record["annotations"][0], **recist}
            sample = mapper(augmentations=augmentations)({**record, "annotations": [lesion]})
            boxes.append(sample["instances"].gt_boxes.tensor)
        torch.testing.assert_close(*boxes)


def test_boxes_in_another_mode(record):
    x1, y1, x2, y2 = BOX
    record["annotations"][0].update(bbox=[x1, y1, x2 - x1, y2 - y1], bbox_mode=1)
    assert mapper()(record)["instances"].gt_boxes.tensor.tolist() == [BOX]


def unreadable(record, kind):
    path = record["file_name"]
    if kind == "missing":
        os.remove(path)
    elif kind == "truncated":
        with open(path, "r+b") as f:
            f.truncate(60)
    elif kind == "8-bit":
        Image.new("L", (SIZE, SIZE)).save(path)
    elif kind == "size":
        Image.fromarray(np.zeros((5, 5), np.uint16)).save(path)


@pytest.mark.parametrize("kind", ["missing", "truncated", "8-bit", "size"])
def test_an_unreadable_key_slice_stops_or_is_skipped_and_counted(record, kind, caplog):
    unreadable(record, kind)
    with pytest.raises(Exception, match=r"010.png"):
        mapper()(record)
    skipping = mapper(unreadable_key_slice="skip")
    assert skipping(record) is None
    assert skipping(record) is None
    assert skipping({**record, "file_name": "elsewhere/007.png"}) is None
    first, second = (message for message in caplog.messages if "Skipped" in message)
    assert "010.png" in first
    assert first.endswith("Skipped: key slice 1 that is unreadable.")
    assert second.endswith("Skipped: key slice 2 that is unreadable.")
    with pytest.raises(Exception, match=r"010.png"):
        mapper(is_train=False, unreadable_key_slice="skip")(record)  # a test is of all key slices or none


def test_skipping_hides_no_other_error(record):
    del record["slice_interval"]
    with pytest.raises(ValueError, match="'slice_interval'"):
        mapper(unreadable_key_slice="skip")(record)
    with pytest.raises(ValueError, match="Unknown unreadable_key_slice 'ignore'. Choose one of error, skip"):
        mapper(unreadable_key_slice="ignore")


def test_a_damaged_neighbour_is_replaced_with_one_warning(record, caplog):
    path = record["file_name"].replace("010.png", "011.png")
    os.remove(path)
    use = mapper()
    for _ in range(2):
        sample = use({**record, "slice_range": (9, 11)})
        assert torch.equal(sample["image"][2], sample["image"][1])
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: no such slice, though the series has 9 to 11.")


def test_masks_asked_for_but_absent(record):
    message = "010.png: MODEL.MASK_ON needs a 'segmentation' or 'recist' in every annotation. Got one with only bbox"
    with pytest.raises(ValueError, match=message):
        mapper(use_instance_mask=True)(record)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("interval", "thickness"), [(5.0, 5.0), (1.0, 1.0), (0.0, 2.0), (-1.0, 2.0), (float("nan"), 2.0), (math.inf, 2.0)]
)
def test_thickness_is_that_of_the_series(record, is_train, interval, thickness):
    assert mapper(is_train)({**record, "slice_interval": interval})["thickness"] == thickness


def test_resampling(record):
    """At 5 mm the neighbours 2 mm away are made from both slices around them, or the slices taken as they are."""
    record["slice_interval"] = 5.0
    air = mapper(False, resampling="linear")(record)["image"][:, 0, 0]
    torch.testing.assert_close(air.diff(), torch.full((2,), 0.4 * 255 / 3074), rtol=1e-3, atol=0)
    air = mapper(False, resampling="thin")(record)["image"][:, 0, 0]
    torch.testing.assert_close(air.diff(), torch.full((2,), 255 / 3074), rtol=1e-3, atol=0)


def test_size_that_disagrees_with_the_csv(record):
    with pytest.raises(Exception, match=r"010.png"):
        mapper()({**record, "height": 50})


def test_from_config(record):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE,), SIZE
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = SIZE, SIZE
    train, test = DeepLesionMapper(cfg, is_train=True), DeepLesionMapper(cfg, is_train=False)
    assert [type(a).__name__ for a in train.augmentations.augs] == ["ResizeIfNeeded", "RandomFlip", "RandomAffine"]
    cfg.INPUT.HU_JITTER.PROB, cfg.INPUT.HU_JITTER.OFFSET = 0.3, 7.0
    jitter = DeepLesionMapper(cfg, is_train=True).augmentations.augs[3]
    assert (jitter.prob, jitter.offset, jitter.gain) == (0.3, 7.0, 0.05)
    assert len(DeepLesionMapper(cfg, is_train=False).augmentations.augs) == 1
    cfg.INPUT.HU_JITTER.PROB, cfg.INPUT.UNREADABLE_KEY_SLICE = 0.0, "skip"
    assert DeepLesionMapper(cfg).load.unreadable_key_slice == "skip"
    assert [type(a).__name__ for a in test.augmentations.augs] == ["ResizeIfNeeded"]
    torch.testing.assert_close(test(record)["image"], mapper(False)(record)["image"])
    cfg.INPUT.RESAMPLING = "thin"
    assert (train.load.resampling, DeepLesionMapper(cfg).load.resampling) == ("linear", "thin")
    cfg.INPUT.AFFINE.ORDER, cfg.INPUT.AFFINE.BORDER = "first", "reflect"
    published = DeepLesionMapper(cfg, is_train=True)
    assert [type(a).__name__ for a in published.augmentations.augs] == ["RandomAffine", "ResizeIfNeeded", "RandomFlip"]
    assert (published.augmentations.augs[0].fill, published.augmentations.augs[0].border) == (-50.0, "reflect")
    assert published.load.window_first
    assert DeepLesionMapper(cfg, is_train=False).load.window_first
    cfg.INPUT.AFFINE.ORDER = "last"
    cfg.INPUT.CROP.ENABLED = True
    assert isinstance(DeepLesionMapper(cfg, is_train=True).augmentations.augs[0], T.RandomCrop)
    np.random.seed(0)
    first, second = train(record), train(record)
    assert not torch.equal(first["image"], second["image"])


def test_official_record_without_pixels(official_csv):
    record = load_deeplesion(str(official_csv), "no/such", "test")[0]
    with pytest.raises(FileNotFoundError, match="no/such/000001_01_01/109.png: no such slice"):
        mapper()(record)
