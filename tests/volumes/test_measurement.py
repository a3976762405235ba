"""Lesions of known shape; the expected values are written out."""

import numpy as np
import pytest

from a3d_det2.volumes import Detection, Mask
from a3d_det2.volumes.label_map import draw_labels, stored_grid, stored_indices
from a3d_det2.volumes.linking import Linked
from a3d_det2.volumes.measurement import fill_gaps, measure_lesion
from tests.volumes.volumes import make_volume

NO_MARGIN = np.zeros(2)


def measured(detections, volume, margin=NO_MARGIN):
    return measure_lesion(1, Linked(list(detections), 0.9), volume, np.asarray(margin, dtype=float))


def flat_volume(shape=(12, 60, 80), **options):
    return make_volume(np.zeros(shape), **options)


def ellipse_mask(long, short, angle, center=(40.0, 30.0), spacing=(1.0, 1.0), shape=(60, 80)) -> Mask:
    """Pixels of an ellipse with semi-axes in mm, turned by ``angle`` degrees."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x, y = (columns - center[0]) * spacing[0], (rows - center[1]) * spacing[1]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return Mask(0, 0, ((x * c + y * s) / long) ** 2 + ((y * c - x * s) / short) ** 2 <= 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0), (0.8, 0.5)])
@pytest.mark.parametrize("angle", [0, 20, 45, 90, 130])
def test_axes_of_a_turned_ellipse(angle, spacing):
    mask = ellipse_mask(12, 7, angle, spacing=spacing)
    lesion = measured([Detection(5, np.array([28.0, 18, 52, 42]), 0.9, mask)], flat_volume(spacing=spacing))
    assert lesion.measured_from == "mask"
    assert lesion.long_mm == pytest.approx(24, abs=1.2 * max(spacing))
    assert lesion.short_mm == pytest.approx(14, abs=1.2 * max(spacing))
    direction = (lesion.long_axis[1] - lesion.long_axis[0]) * spacing
    got = np.degrees(np.arctan2(direction[1], direction[0])) % 180
    assert min(abs(got - angle % 180), 180 - abs(got - angle % 180)) < 12  # as far as pixels tell
    across = (lesion.short_axis[1] - lesion.short_axis[0]) * spacing
    assert abs(direction @ across) < 1e-3 * 24 * 14
    assert lesion.volume_mm3 == pytest.approx(np.pi * 12 * 7 * 2, rel=0.03)


def test_one_pixel_and_a_line():
    pixel = Mask(7, 9, np.ones((1, 1), bool))
    lesion = measured([Detection(5, np.array([9.0, 7, 9, 7]), 0.9, pixel)], flat_volume(spacing=(0.5, 2.0)))
    assert (lesion.long_mm, lesion.short_mm) == (pytest.approx(2.0), pytest.approx(0.5))
    line = Mask(7, 9, np.ones((1, 10), bool))
    lesion = measured([Detection(5, np.array([9.0, 7, 18, 7]), 0.9, line)], flat_volume())
    assert (lesion.long_mm, lesion.short_mm) == (pytest.approx(10.0), pytest.approx(1.0))
    np.testing.assert_allclose(np.sort(lesion.long_axis[:, 0]), [8.5, 18.5])


def test_a_rectangle_of_pixels():
    """Its longest diameter runs from the middle of an edge of one corner's pixel to that of the opposite one."""
    lesion = measured([Detection(5, np.zeros(4), 0.9, Mask(0, 0, np.ones((3, 4), bool)))], flat_volume())
    assert lesion.long_mm == pytest.approx(np.hypot(4, 2), abs=1e-5)  # 4 wide and 2 high is longer than 3 and 3


def test_boxes_lose_their_margin():
    box = np.array([20.0, 10.0, 39.0, 29.0])  # 20 x 20 pixels, of which 5 on each side are no lesion
    lesion = measured([Detection(k, box, 0.9) for k in (4, 5)], flat_volume(spacing=(0.5, 1.5)), [5, 5])
    assert lesion.measured_from == "box"
    assert (lesion.long_mm, lesion.short_mm) == (pytest.approx(15), pytest.approx(5))
    np.testing.assert_allclose(lesion.long_axis, [[29.5, 14.5], [29.5, 24.5]])
    np.testing.assert_allclose(lesion.short_axis, [[24.5, 19.5], [34.5, 19.5]])
    assert lesion.volume_mm3 == pytest.approx(np.pi / 4 * 15 * 5 * 2 * 2)
    assert lesion.extent_mm == pytest.approx(4)
    tiny = measured([Detection(4, np.array([20.0, 10, 24, 14]), 0.9)], flat_volume(), [5, 5])
    assert tiny.long_mm == pytest.approx(1)  # never less than a pixel


def test_places():
    volume = flat_volume(spacing=(0.5, 0.8), interval=3.0)
    box = np.array([20.0, 10.0, 29.0, 19.0])
    lesion = measured([Detection(2, box, 0.4), Detection(3, box + 2, 0.9), Detection(4, box, 0.5)], volume)
    assert (lesion.largest, lesion.extent_mm) == (3, pytest.approx(9))
    third = 2 / 3
    np.testing.assert_allclose(lesion.center_voxel, [24.5 + third, 14.5 + third, 3])
    np.testing.assert_allclose(lesion.center, [(24.5 + third) * 0.5, (14.5 + third) * 0.8, -9])
    np.testing.assert_allclose(lesion.box_voxel, [[20, 10, 2], [31, 21, 4]])
    np.testing.assert_allclose(lesion.box, [[9.75, 7.6, -13.5], [15.75, 17.2, -4.5]])


def test_the_volume_of_a_ball():
    hu = np.zeros((21, 60, 60))
    volume = make_volume(hu, interval=1.5)
    found = []
    for k in range(21):
        radius = np.sqrt(max(12**2 - (k * 1.5 - 15) ** 2, 0))
        if radius > 0:
            box = np.array([30 - radius, 30 - radius, 30 + radius, 30 + radius]) + [0.5, 0.5, -0.5, -0.5]
            found.append(Detection(k, box, 0.9))
    lesion = measured(found, volume)
    assert lesion.volume_mm3 == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    np.testing.assert_allclose(lesion.center, [30, 30, -15], atol=1e-6)
    assert lesion.largest == 10


def test_gaps_within_a_lesion_are_filled():
    mask = Mask(10, 20, np.ones((2, 3), bool))
    box = np.array([20.0, 10.0, 22.0, 11.0])
    filled = fill_gaps([Detection(2, box, 0.4, mask), Detection(5, box + 9, 0.6, mask)], np.arange(8) * 2.0, (60, 60))
    assert [one.index for one in filled] == [2, 3, 4, 5]
    np.testing.assert_allclose([one.box[0] for one in filled], [20, 23, 26, 29])
    assert [one.mask[:2] for one in filled] == [(10, 20), (13, 23), (7, 17), (10, 20)]
    np.testing.assert_array_equal([one.score for one in filled], [0.4, np.nan, np.nan, 0.6])


def test_a_gap_between_slices_counts_for_its_neighbours():
    volume = make_volume(np.zeros((4, 60, 60)), positions=[0, 2, 8, 10])
    box = np.array([20.0, 20, 29, 29])
    lesion = measured([Detection(1, box, 0.9), Detection(2, box, 0.9)], volume)
    assert lesion.extent_mm == pytest.approx(8)  # from 1 mm before the first to 1 mm beyond the second


def test_label_map_of_boxes_and_masks():
    volume = flat_volume((6, 20, 20))
    square = Mask(3, 4, np.ones((2, 2), bool))
    first = measured([Detection(1, np.array([4.0, 3, 5, 4]), 0.9, square)], volume)
    ellipse = measured([Detection(k, np.array([10.0, 10, 14, 14]), 0.9) for k in (1, 2)], volume)
    labels = draw_labels(
        volume, [first, measure_lesion(2, Linked(list_of(ellipse), 0.5), volume, NO_MARGIN)], NO_MARGIN
    )
    assert labels.dtype == np.uint16
    assert (labels[1, 3:5, 4:6] == 1).all()
    assert (labels == 1).sum() == 4
    drawn = labels[2, 9:16, 9:16]
    expected = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 2, 2, 2, 0, 0],
            [0, 2, 2, 2, 2, 2, 0],
            [0, 2, 2, 2, 2, 2, 0],
            [0, 2, 2, 2, 2, 2, 0],
            [0, 0, 2, 2, 2, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    np.testing.assert_array_equal(drawn, expected)


def list_of(lesion):
    return [Detection(one.index, one.box, one.score, one.mask) for one in lesion.slices]


@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (False, False, True)), ((2, 0, 1), (True, False, True)), ((1, 0, 2), (True, True, False))],
)
def test_the_grid_of_the_file(axes, flips):
    """A voxel of the stored map lies where it does in the volume."""
    rng = np.random.default_rng(0)
    volume = make_volume(
        np.zeros((5, 6, 7)), spacing=(0.5, 0.7), interval=2.0, tilt=(0.1, 0.3), stored_axes=axes, stored_flips=flips
    )
    labels = rng.integers(0, 3, (5, 6, 7)).astype(np.uint16)
    stored, affine = stored_grid(volume, labels)
    assert stored.shape == tuple((7, 6, 5)[axis] for axis in axes)
    for _ in range(30):
        x, y, z = (int(rng.integers(n)) for n in (7, 6, 5))
        i, j, k = stored_indices(volume, np.array([[x, y, z]]))[0].astype(int)
        assert stored[i, j, k] == labels[z, y, x]
        ras = affine @ [i, j, k, 1]
        np.testing.assert_allclose(ras[:3] * [-1, -1, 1], volume.position_of(x, y, z), atol=1e-9)


def test_a_missing_slice_is_in_the_grid():
    volume = make_volume(np.zeros((4, 5, 5)), positions=[0, 2, 6, 8])
    labels = np.zeros((4, 5, 5), np.uint16)
    labels[1, 1, 1], labels[2, 1, 2], labels[2, 3, 3] = 1, 1, 2
    stored, affine = stored_grid(volume, labels)
    assert stored.shape == (5, 5, 5)
    assert affine[2, 2] == pytest.approx(-2)
    np.testing.assert_array_equal(stored[:, :, 2], labels[1].T)  # as the slice before it
    assert stored[2, 1, 3] == 1
    np.testing.assert_allclose(stored_indices(volume, np.array([[1, 1, 2.0], [1, 1, 1.5]]))[:, 2], [3, 2])


def test_nothing_goes_on_across_a_wide_gap():
    volume = make_volume(np.zeros((4, 5, 5)), positions=[0, 2, 42, 44])
    stored, _ = stored_grid(volume, np.ones((4, 5, 5), np.uint16))
    assert stored.shape[2] == 23
    np.testing.assert_array_equal(stored[0, 0], [1, 1, *[0] * 19, 1, 1])


def test_uneven_slices_lie_where_they_do_in_the_patient():
    positions = np.concatenate([np.arange(12) * 1.25, 13.75 + np.arange(1, 26) * 5])
    volume = make_volume(np.zeros((37, 5, 5)), positions=positions)
    for k in (0, 5, 11, 12, 20, 36):
        labels = np.zeros((37, 5, 5), np.uint16)
        labels[k, 2, 3] = 1
        stored, affine = stored_grid(volume, labels)
        places = np.argwhere(stored)
        got = affine @ [*places.mean(axis=0), 1]
        assert got[2] == pytest.approx(volume.position_of(3, 2, k)[2], abs=2)
        index = stored_indices(volume, np.array([[3, 2, k]]))[0]
        assert (affine @ [*index, 1])[2] == pytest.approx(volume.position_of(3, 2, k)[2], abs=1e-6)


def test_masks_that_are_moved_are_cut_at_the_border():
    mask = Mask(84, 40, np.ones((12, 40), bool))
    boxes = np.array([[40.0, 20, 80, 95], [40.0, 52, 80, 95]])
    found = [Detection(0, boxes[0], 0.9, mask), Detection(3, boxes[1], 0.9, mask)]
    volume = flat_volume((5, 96, 100))
    lesion = measured(found, volume)
    draw_labels(volume, [lesion], NO_MARGIN)
    assert all(one.mask.top + len(one.mask.pixels) <= 96 for one in lesion.slices)


def test_tight_boxes():
    """Around the masks; without them, the boxes without their margin, and at least a pixel of each."""
    mask = Mask(10, 20, np.pad(np.ones((3, 4), bool), ((1, 2), (2, 1))))
    box = np.array([15.0, 8, 35, 25])
    masked = measured([Detection(5, box, 0.9, mask), Detection(6, box, 0.9, mask)], flat_volume(), (5, 4))
    assert masked.tight_box(np.array([5, 4])).tolist() == [[22, 11, 5], [25, 13, 6]]
    boxed = measured([Detection(5, box, 0.9), Detection(6, box + 3, 0.9)], flat_volume(), (5, 4))
    assert boxed.tight_box(np.array([5, 4])).tolist() == [[20, 12, 5], [33, 24, 6]]
    assert boxed.tight_box(np.array([50, 50])).tolist() == [[25, 16.5, 5], [28, 19.5, 6]]
