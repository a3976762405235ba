import math

import numpy as np
import pycocotools.mask
import pytest
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, ScaleTransform, TransformList

from a3d_det2.data.png import UnreadableSlice
from a3d_det2.data.sample import SampleLoader
from a3d_det2.data.transforms import AffineTransform

HEIGHT, WIDTH = 30, 40
BOX = [8.0, 10.0, 19.0, 17.0]  # first and last pixel, as DeepLesion counts


@pytest.fixture
def record(write_slice):
    """Slice k has k HU, and the box on it 500 more."""
    for number in (9, 10, 11):
        hu = np.full((HEIGHT, WIDTH), number)
        hu[10:18, 8:20] += 500
        path = write_slice(number, hu, shape=hu.shape)
    return {
        "file_name": path.replace("011.png", "010.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "slice_interval": 2.0,
        "annotations": [{"bbox": BOX, "category_id": 0}],
    }


def load(record, *transforms, **options):
    transform = TransformList(list(transforms) or [NoOpTransform()])
    options = {"is_train": True, "num_slices": 3, "slice_interval": 2.0, "hu_window": (-1024, 2050), **options}
    return SampleLoader(**options)(record, lambda image: (transform.apply_image(image), transform))


def test_by_hand(record):
    sample = load(record)
    assert (sample.image.shape, sample.image.dtype) == ((3, HEIGHT, WIDTH), np.float32)
    np.testing.assert_allclose(sample.image[:, 0, 0], (np.array([9, 10, 11]) + 1024) * 255 / 3074 - 50, rtol=1e-5)
    assert (sample.boxes.tolist(), sample.boxes.dtype) == ([BOX], np.float32)
    assert sample.classes.tolist() == [0]
    assert sample.masks is None
    assert sample.thickness == 2.0
    assert sample.original_size == (HEIGHT, WIDTH)
    assert record["annotations"] == [{"bbox": BOX, "category_id": 0}]


def test_no_interval(record):
    del record["slice_interval"]
    with pytest.raises(
        ValueError, match=r"010.png: expected a dict with 'slice_interval', .* got one with file_name, hei"
    ):
        load(record)


@pytest.mark.parametrize("interval", [math.nan, 0, -1, 1e-320, math.inf])
def test_an_interval_that_is_none(record, interval):
    sample = load({**record, "slice_interval": interval})
    assert sample.thickness == 2.0
    assert np.array_equal(sample.image[0], sample.image[1])


def test_the_image_is_contiguous_whatever_the_transform(record):
    """A tensor made of it shares its memory, and a batch is copied from it."""
    for transform in (HFlipTransform(WIDTH), ScaleTransform(HEIGHT, WIDTH, 60, 80, "bilinear")):
        assert load(record, transform).image.flags.c_contiguous


def test_flip_and_resize_name_pixels(record):
    """Columns 8 to 19 of 40, mirrored: 20 to 31. Their edges 20 and 32, doubled: 40 and 64, pixels 40.5 to 62.5."""
    flip, double = HFlipTransform(WIDTH), ScaleTransform(HEIGHT, WIDTH, 2 * HEIGHT, 2 * WIDTH, "bilinear")
    assert load(record, flip).boxes.tolist() == [[20.0, 10.0, 31.0, 17.0]]
    sample = load(record, flip, double)
    assert sample.boxes.tolist() == [[40.5, 20.5, 62.5, 34.5]]
    assert sample.image.shape == (3, 2 * HEIGHT, 2 * WIDTH)
    assert sample.original_size == (HEIGHT, WIDTH)


def test_what_is_not_in_training_has_no_lesions(record):
    sample = load(record, is_train=False)
    assert (sample.boxes.shape, sample.classes.shape) == ((0, 4), (0,))
    for empty in ({**record, "annotations": []}, {k: v for k, v in record.items() if k != "annotations"}):
        assert load(empty).boxes.shape == (0, 4)
        assert load(empty, use_instance_mask=True).masks == []


def test_lesions_that_leave_the_image_are_dropped_with_their_masks(record):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:18, 8:20] = 1
    rle = pycocotools.mask.encode(mask)
    other = {"bbox": [30.0, 2.0, 35.0, 6.0], "category_id": 3, "segmentation": [[30.0, 2, 36, 2, 36, 7, 30, 7]]}
    record["annotations"] = [{**record["annotations"][0], "segmentation": rle}, other]
    sample = load(record, AffineTransform([[1, 0, -25], [0, 1, 0]], fill=-1024), use_instance_mask=True)
    assert sample.boxes.tolist() == [[5.0, 2.0, 10.0, 6.0]]
    assert sample.classes.tolist() == [3]
    (kept,) = sample.masks
    assert (kept.dtype, kept.shape) == (bool, (HEIGHT, WIDTH))
    assert [*np.nonzero(kept.any(0))[0][[0, -1]], *np.nonzero(kept.any(1))[0][[0, -1]]] == [5, 10, 2, 6]


def test_a_lesion_whose_mask_is_empty_is_dropped(record):
    record["annotations"][0]["segmentation"] = pycocotools.mask.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))
    assert len(load(record).boxes) == 1
    assert len(load(record, use_instance_mask=True).boxes) == 0


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_a_lesion_without_any_polygon_is_dropped(record, mask_format):
    record["annotations"][0]["segmentation"] = []
    sample = load(record, use_instance_mask=True, mask_format=mask_format)
    assert (len(sample.boxes), sample.masks) == (0, [])


def test_a_lesion_that_is_narrow_in_the_image_is_kept(record):
    """Columns 8 to 19 moved by 18.5 to the left: from the centre of pixel 0 to 0.5."""
    sample = load(record, AffineTransform([[1, 0, -18.5], [0, 1, 0]], fill=0))
    assert sample.boxes.tolist() == [[0.0, 10.0, 0.5, 17.0]]


def test_polygons_stay_polygons(record):
    record["annotations"][0]["segmentation"] = [[8.0, 10, 20, 10, 20, 18]]
    ((polygon,),) = load(record, HFlipTransform(WIDTH), use_instance_mask=True, mask_format="polygon").masks
    assert polygon.tolist() == [32.0, 10, 20, 10, 20, 18]
    assert record["annotations"][0]["segmentation"] == [[8.0, 10, 20, 10, 20, 18]]


def test_bad_options():
    with pytest.raises(ValueError, match="Unknown mask_format 'rle'. Choose one of polygon, bitmask"):
        load({}, mask_format="rle")
    with pytest.raises(ValueError, match="Unknown unreadable_key_slice 'ignore'. Choose one of error, skip"):
        load({}, unreadable_key_slice="ignore")


def test_another_size_than_the_dict_says(record):
    with pytest.raises(UnreadableSlice, match=r"010.png: expected the height and width \(30, 50\), got \(30, 40\)"):
        load({**record, "width": 50})
    assert load({**record, "width": 50}, unreadable_key_slice="skip") is None


def test_without_an_interval_the_thickness_is_the_usual_one(record):
    for interval in (0.0, -1.0, math.nan, math.inf):
        assert load({**record, "slice_interval": interval}).thickness == 2.0
    assert load({**record, "slice_interval": 5.0}).thickness == 5.0
