import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.data import load_deeplesion, window_hu
from a3d_det2.data.phantom import random_series, render_slice
from a3d_det2.data.weak_masks import GrabCutFailed, grabcut_mask, recist_ellipse, weak_mask


def test_axes_that_halve_each_other_give_an_ellipse():
    outline = recist_ellipse([[0, 5], [20, 5], [10, 1], [10, 9]], points_per_quarter=16)
    assert outline.shape == (64, 2)
    x, y = outline.T
    np.testing.assert_allclose(((x - 10) / 10) ** 2 + ((y - 5) / 4) ** 2, 1, atol=1e-12)


def test_by_hand_with_one_point_per_quarter():
    recist = [[0, 0], [8, 0], [2, -3], [2, 1]]
    assert recist_ellipse(recist, points_per_quarter=1).tolist() == [[0, 0], [2, -3], [8, 0], [2, 1]]


def test_axes_that_cross_off_the_middle():
    """Each quarter is a quarter of an ellipse around the crossing (2, 0)."""
    outline = recist_ellipse([[0, 0], [8, 0], [2, -3], [2, 1]])
    x, y = outline.T - np.array([[2], [0]])
    width, height = np.where(x < 0, 2, 6), np.where(y < 0, 3, 1)
    np.testing.assert_allclose((x / width) ** 2 + (y / height) ** 2, 1, atol=1e-12)


points = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=4, max_size=4)


@given(points)
def test_it_passes_through_the_four_points_whatever_they_are(recist):
    outline = recist_ellipse(recist)
    assert np.isfinite(outline).all()
    long_a, long_b, short_a, short_b = np.array(recist)
    np.testing.assert_allclose(outline[::8], [long_a, short_a, long_b, short_b], atol=1e-9)


def test_official_rows(official_csv):
    """The outline of real lesions is almost within their boxes (5 pixels around the RECIST points), with the area that
    the diameters say."""
    lesions = [a for image in load_deeplesion(str(official_csv), "", "test") for a in image["annotations"]]
    areas, inside = [], []
    for lesion in lesions:
        outline = recist_ellipse(lesion["recist"])
        x, y = outline.T
        areas.append(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
        x1, y1, x2, y2 = lesion["bbox"]
        inside.append(np.mean((x > x1 - 1) & (x < x2 + 1) & (y > y1 - 1) & (y < y2 + 1)))
    assert np.mean(inside) > 0.98
    expected = [np.pi / 4 * np.prod(lesion["diameters"]) for lesion in lesions]
    assert np.median(np.array(areas) / expected) == pytest.approx(1, abs=0.05)


def cross_section(lesion, shape):
    """(H, W) bool: the ellipse that the phantom draws."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    along = ((columns - lesion.x) * cos + (rows - lesion.y) * sin) / lesion.long
    across = ((rows - lesion.y) * cos - (columns - lesion.x) * sin) / lesion.short
    return np.hypot(along, across) <= 1


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def phantom_lesions(count, size=256):
    """Lesions with the windowed key slice that they are on."""
    for index in range(count):
        series, rows = random_series(index, "train", size=size, intervals=(2.0,), context=2.0, seed=11)
        image = window_hu(render_slice(series, int(rows[0]["Key_slice_index"])))
        for lesion in series.blobs:
            if not lesion.is_vessel:
                yield image, lesion


def test_grabcut_finds_the_lesions_of_the_phantom():
    overlaps = []
    for image, lesion in phantom_lesions(20):
        mask, source = weak_mask(image, lesion.box(), lesion.recist())
        assert source == "grabcut"
        assert mask.any()
        overlaps.append(iou(mask, cross_section(lesion, image.shape)))
    assert len(overlaps) >= 20
    assert np.median(overlaps) >= 0.75


def test_grabcut_is_deterministic():
    (image, lesion), *_ = phantom_lesions(1)
    first = grabcut_mask(image, lesion.box(), lesion.recist())
    cv2.setRNGSeed(99)
    cv2.randu(np.zeros(7), 0, 1)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        assert np.array_equal(grabcut_mask(image, lesion.box(), lesion.recist()), first)
    finally:
        cv2.setNumThreads(threads)


def disc(inside=160, outside=90):
    rows, columns = np.mgrid[:64, :64]
    truth = np.hypot(columns - 30, rows - 34) <= 8
    image = np.where(truth, inside, outside) + np.random.default_rng(0).normal(0, 3, truth.shape)
    return image, truth, (17, 21, 43, 47), [[22, 34], [38, 34], [30, 26], [30, 42]]


def test_grabcut_follows_the_grey_values():
    image, truth, box, recist = disc()
    assert iou(grabcut_mask(image, box, recist), truth) > 0.95
    # Outside the box nothing is lesion, whatever it looks like; the quadrilateral is, whatever it looks like.
    image[:, 50:] = 160
    image[34, 30] = 0
    mask = grabcut_mask(image, box, recist)
    assert not mask[:, 44:].any()
    assert mask[34, 30]


def test_negative_values_are_clipped_not_wrapped():
    """Lung is below 0 in the window; cast to 8 bits as it is, -50 would become 206, brighter than any lesion."""
    image, truth, box, recist = disc(inside=30, outside=-45)
    mask = grabcut_mask(image, box, recist)
    assert iou(mask, truth) > 0.95
    assert np.array_equal(mask, grabcut_mask(image.clip(0), box, recist))


def test_an_ellipse_where_grabcut_has_no_background():
    image, truth, _, recist = disc()
    with pytest.raises(GrabCutFailed, match=r"GrabCut failed for the box \[0, 0, 63, 63\] in an image of \(64, 64\)"):
        grabcut_mask(image, [0, 0, 63, 63], recist)
    mask, source = weak_mask(image, [0, 0, 63, 63], recist)
    assert source == "ellipse"
    assert iou(mask, truth) > 0.85


def test_a_lesion_of_one_pixel():
    image, *_ = disc()
    mask, _ = weak_mask(image, [10, 10, 20, 20], [[15, 15]] * 4)
    assert mask[15, 15]


def test_more_than_one_slice():
    with pytest.raises(ValueError, match=r"one slice of shape \(H, W\). Got \(3, 64, 64\)"):
        grabcut_mask(np.zeros((3, 64, 64)), [1, 1, 9, 9], [[2, 2]] * 4)
