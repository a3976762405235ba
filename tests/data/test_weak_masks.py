import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.data.weak_masks import recist_ellipse


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
    from a3d_det2.data import load_deeplesion

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
