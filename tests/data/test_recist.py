import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.data import load_deeplesion
from a3d_det2.data.recist import is_recist_box, recist_box, transform_recist_box

RECIST = [[20.0, 30.0], [40.0, 30.0], [30.0, 25.0], [30.0, 35.0]]


def test_box_by_hand():
    assert recist_box(RECIST).tolist() == [15, 20, 45, 40]
    assert is_recist_box(np.array([15.0, 20, 45, 40]), RECIST, (100, 100))
    assert is_recist_box(np.array([15.0, 20, 42, 38]), RECIST, (38, 42))  # clipped
    assert is_recist_box(np.array([15.0, 20, 45, 40]), RECIST, (38, 42))  # or not
    assert not is_recist_box(np.array([15.0, 20, 44, 40]), RECIST, (100, 100))


def affine(matrix, offset):
    return lambda points: points @ np.array(matrix).T + offset


def test_a_quarter_turn_by_hand():
    turned = transform_recist_box(RECIST, affine([[0, -1], [1, 0]], [100, 0]))  # (x, y) -> (100 - y, x)
    np.testing.assert_allclose(turned, [60, 15, 80, 45])


@given(*[st.floats(-100, 100)] * 2, *[st.floats(0.2, 3)] * 2, *[st.booleans()] * 2)
def test_without_a_rotation_it_is_the_transformed_box(dx, dy, sx, sy, flip_x, flip_y):
    matrix, offset = [[-sx if flip_x else sx, 0], [0, -sy if flip_y else sy]], [dx, dy]
    corners = affine(matrix, offset)(recist_box(RECIST).reshape(2, 2))
    expected = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    np.testing.assert_allclose(transform_recist_box(RECIST, affine(matrix, offset)), expected, atol=1e-9)


@given(st.floats(-math.pi, math.pi), st.floats(0.5, 2))
def test_a_rotation_does_not_inflate_it(angle, scale):
    """The extent of the turned points with the margin, scaled; never larger than the turned box."""
    rotation = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    x1, y1, x2, y2 = transform_recist_box(RECIST, affine(rotation, [0, 0]))
    points = np.array(RECIST) @ rotation.T
    np.testing.assert_allclose([x1, y1], points.min(axis=0) - 5 * scale)
    np.testing.assert_allclose([x2, y2], points.max(axis=0) + 5 * scale)
    bx1, by1, bx2, by2 = recist_box(RECIST)
    corners = np.array([[bx1, by1], [bx2, by1], [bx1, by2], [bx2, by2]]) @ rotation.T
    assert (corners.min(axis=0) <= [x1 + 1e-9, y1 + 1e-9]).all()
    assert (corners.max(axis=0) >= [x2 - 1e-9, y2 - 1e-9]).all()


def test_transforms_that_change_their_argument():
    def shift(points):
        points += 1
        return points

    recist = np.array(RECIST)
    assert transform_recist_box(recist, shift).tolist() == [16, 21, 46, 41]
    assert recist.tolist() == RECIST


def test_official_rows(official_csv):
    records = load_deeplesion(str(official_csv), "", "test")
    lesions = [(record, lesion) for record in records for lesion in record["annotations"]]
    good = [is_recist_box(np.array(a["bbox"]), a["recist"], (r["height"], r["width"])) for r, a in lesions]
    assert np.mean(good) == pytest.approx(1, abs=0.001)
