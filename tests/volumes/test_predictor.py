"""Prediction with a detector that marks what is bright on the middle slice, so that all of the rest can be checked."""

import cv2
import numpy as np
import pytest

from a3d_det2.volumes import LinkingRule, UnreadableVolume
from a3d_det2.volumes.body import body_boxes
from a3d_det2.volumes.predictor import Found, VolumePredictor
from a3d_det2.volumes.scale import network_size
from tests.volumes.volumes import ellipsoids, make_volume

LESIONS = [((60, 70, 30), (8, 6, 9)), ((110, 60, 60), (5, 5, 6)), ((80, 90, 84), (10, 9, 8))]  # mm
SHAPE, SPACING, INTERVAL = (60, 150, 180), (1.0, 1.0), 2.0


class Bright:
    """Finds what is brighter than 100 HU in the window (-200, 300)."""

    def __init__(self, masks=False):
        self.masks, self.sizes, self.intervals = masks, [], []

    def __call__(self, images, slice_interval):
        self.sizes.append(tuple(images.shape))
        self.intervals.append(slice_interval)
        return [self._find(image[len(image) // 2].numpy()) for image in images]

    def _find(self, image):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((image > 103).astype(np.uint8))
        parts = range(1, len(stats))
        boxes = np.array([[x, y, x + w - 1, y + h - 1] for x, y, w, h, _ in stats[1:]], dtype=float).reshape(-1, 4)
        masks = np.array([labels == part for part in parts]).reshape(-1, *image.shape) if self.masks else None
        return Found(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), int), masks)


def predictor(detector=None, **options):
    how = {"num_slices": 3, "slice_interval": 2.0, "hu_window": (-200, 300), "progress": False, **options}
    return VolumePredictor(detector or Bright(), **how)


def phantom(**options):
    return make_volume(ellipsoids(SHAPE, SPACING, INTERVAL, LESIONS), SPACING, INTERVAL, **options)


def centers(lesions):
    return np.array(sorted([*one.center] for one in lesions))


def expected(lesions=LESIONS):
    return np.array(sorted([x, y, -z] for (x, y, z), _ in lesions))


def test_finds_and_measures_what_is_there():
    found = predictor().predict(phantom())
    assert len(found) == 3
    np.testing.assert_allclose(centers(found), expected(), atol=0.6)
    by_place = sorted(found, key=lambda one: one.center[0])
    for one, (_, (rx, ry, rz)) in zip(by_place, sorted(LESIONS), strict=True):
        assert one.long_mm == pytest.approx(2 * max(rx, ry), abs=1.1)
        assert one.short_mm == pytest.approx(2 * min(rx, ry), abs=1.1)
        assert one.extent_mm == pytest.approx(2 * rz, abs=4.1)  # its ends shrink too fast to be linked
        assert one.volume_mm3 == pytest.approx(4 / 3 * np.pi * rx * ry * rz, rel=0.1)
    assert [one.number for one in found] == [1, 2, 3]


def test_masks_are_put_where_they_are():
    boxes, masks = predictor().predict(phantom()), predictor(Bright(masks=True)).predict(phantom())
    assert {one.measured_from for one in masks} == {"mask"}
    np.testing.assert_allclose(centers(masks), centers(boxes), atol=0.1)
    volume = phantom()
    for one in masks:
        for part in one.slices:
            top, left, pixels = part.mask
            region = volume.hu[part.index, top : top + pixels.shape[0], left : left + pixels.shape[1]]
            assert (region[pixels] == 150).all()
            assert (region[~pixels] < 150).all()


def test_no_mask_keeps_those_of_its_slice():
    def one_row(images, slice_interval):
        masks = np.zeros((1, *images.shape[2:]), dtype=bool)
        masks[0, 70, 20:60] = True
        return [Found(np.array([[20.0, 70, 59, 70]]), np.array([0.9]), np.array([0]), masks)] * len(images)

    found = predictor(one_row).detect(phantom())
    assert all(one.mask.pixels.base is None for one in found)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("size", [100, 300])
def test_resized_for_the_detector(size, masks):
    """The detector sees other pixels than the file has, and what it finds is back in those of the file."""
    volume = make_volume(ellipsoids((60, 150, 150), SPACING, INTERVAL, LESIONS), (2.4, 2.4), INTERVAL)
    detector = Bright(masks)
    found = predictor(detector, min_size=size, max_size=size, crop_to_body=False).predict(volume)
    assert detector.sizes[0] == (1, 3, size, size)
    by_place = sorted(found, key=lambda one: one.center[0])
    for one, ((x, y, z), (rx, ry, _)) in zip(by_place, sorted(LESIONS), strict=True):
        np.testing.assert_allclose(one.center, [2.4 * x, 2.4 * y, -z], atol=2.4)
        assert one.long_mm == pytest.approx(2.4 * 2 * max(rx, ry), abs=5)


def test_the_parts_that_the_detector_sees():
    whole, cropped = Bright(), Bright()
    first = predictor(whole, crop_to_body=False).predict(phantom())
    second = predictor(cropped).predict(phantom())
    np.testing.assert_array_equal(centers(first), centers(second))
    assert {size[2:] for size in whole.sizes} == {(150, 180)}
    assert {size[2:] for size in cropped.sizes} == {(150, 180)}  # a body of 105 x 144 px with its margin
    small = make_volume(ellipsoids((60, 300, 400), SPACING, INTERVAL, [], body=False))
    hu = small.hu.copy()
    hu[10:50, 100:200, 150:290] = 0
    hu[30:36, 140:150, 200:210] = 150
    detector = Bright()
    (found,) = predictor(detector).predict(make_volume(hu))
    assert len(detector.sizes) == 40  # no slice of air
    height, width = detector.sizes[0][2:]
    assert height < 200
    assert width <= 256
    np.testing.assert_allclose(found.box_voxel, [[200, 140, 30], [209, 149, 35]])


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_change_nothing(batch_size):
    detector = Bright()
    found = predictor(detector, batch_size=batch_size).predict(phantom())
    np.testing.assert_array_equal(centers(found), centers(predictor().predict(phantom())))
    assert sum(size[0] for size in detector.sizes) == SHAPE[0]
    assert set(detector.intervals) == {INTERVAL}


@pytest.mark.parametrize(("step", "count"), [(0, 60), (2, 60), (4, 30), (5, 25)])
def test_steps(step, count):
    detector = Bright()
    # The ends of a ball overlap less, the further apart the slices are.
    found = predictor(detector, step=step, rule=LinkingRule(iou=0.2)).predict(phantom())
    assert len(detector.sizes) == count
    assert len(found) == 3
    np.testing.assert_allclose(centers(found), expected(), atol=0.6 + step / 2)
    assert all(len(one.slices) == one.slices[-1].index - one.slices[0].index + 1 for one in found)


def test_refined_around_what_was_found():
    detector = Bright()
    found = predictor(detector, step=10, refine=True).predict(phantom())
    assert 12 < len(detector.sizes) < 45
    whole = predictor().predict(phantom())
    np.testing.assert_array_equal(centers(found), centers(whole))
    assert [one.extent_mm for one in found] == [one.extent_mm for one in whole]
    empty = make_volume(ellipsoids(SHAPE, SPACING, INTERVAL, []))
    assert predictor(step=10, refine=True).predict(empty) == []


def test_the_weak_are_left_out():
    assert predictor(min_score=0.95).predict(phantom()) == []


def test_nothing_to_see():
    with pytest.raises(UnreadableVolume, match="expected a body in air, in HU, got -1000 to -1000 HU"):
        predictor().predict(make_volume(np.full((5, 40, 40), -1000)))


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("step", -1), ("step", float("nan"))])
def test_options_that_cannot_be(option, value):
    with pytest.raises(ValueError, match=f"Expected a {option}"):
        predictor(**{option: value})


def test_an_error_of_the_detector_ends_it():
    def broken(images, slice_interval):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        predictor(broken).predict(phantom())


@pytest.mark.parametrize("wall", [0, 10, 24, 40])
def test_a_nodule_in_a_lung_that_was_cut_out(wall):
    """Of a chest no more than a part of the lung, and of the wall ``wall`` rows."""
    hu = np.full((12, 128, 128), -850)
    hu[:, :wall] = 40
    hu[4:9, 70:80, 60:70] = 150
    (found,) = predictor().predict(make_volume(hu, (0.8, 0.8)))
    np.testing.assert_allclose(found.box_voxel, [[60, 70, 4], [69, 79, 8]])


def test_body():
    hu = np.full((4, 100, 120), -1000)
    hu[0, 30:70, 20:90] = 40
    hu[0, 40:60, 30:50] = -850  # a lung
    hu[1, 30:70, 20:90] = 40
    hu[1, 80:84, 10:110] = 100  # the table, 4 mm
    hu[2, 30:33, 30:33] = 40  # too small
    hu[3] = 40
    boxes = body_boxes(make_volume(hu))
    for box, wanted in zip(boxes, [[20, 30, 90, 70], [20, 30, 90, 70], [0, 0, 0, 0], [0, 0, 120, 100]], strict=True):
        assert np.abs(box - wanted).max() <= 3


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((512, 512), (0.3, 0.3), (512, 512)),  # as an evaluation has it, whatever the pixels
        ((512, 512), (0.8, 0.8), (512, 512)),
        ((768, 768), (0.456, 0.456), (512, 512)),
        ((256, 256), (1.6, 1.6), (512, 512)),
        ((400, 400), (0.8, 0.8), (512, 512)),  # a square of 320 mm: as if it were whole
        ((360, 440), (0.8, 0.8), (360, 440)),  # cut out
        ((300, 300), (0.8, 0.8), (300, 300)),
        ((180, 220), (1.6, 1.6), (369, 451)),  # cut out and resized: 0.78 mm
        ((512, 512), (1.37, 1.37), (898, 898)),  # 700 mm
        ((400, 400), (1.4, 0.7), (800, 400)),  # pixels that are no squares
    ],
)
def test_sizes(size, spacing, expected):
    assert network_size(size, spacing, 512, 512) == expected


def test_any_size_where_the_config_resizes_nothing():
    assert network_size((300, 200), (3.0, 0.1), 0, 512) == (300, 200)
