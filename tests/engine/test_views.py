"""Views of slices: what was found in them lies where it is in the slices."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.engine.views import View
from a3d_det2.volumes.predictor import Found

NAMES = ["hflip", "vflip", "hflip+vflip", "x0.5", "x2", "x1.25", "vflip+x0.8"]


def test_names():
    assert View.named("hflip") == (True, False, 1)
    assert View.named("x1.25+vflip") == (False, True, 1.25)
    assert View() == (False, False, 1)


@pytest.mark.parametrize(
    "name", ["", "flip", "x", "x0", "x20", "hflip+", "hflip+hflip", "x2+x0.5", "hflip,vflip", "X2"]
)
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match=f"Expected a view .*got {re.escape(repr(name))}"):
        View.named(name)


@given(
    st.sampled_from(NAMES),
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.sampled_from([1.0, 0.5, 2.0, 1.3]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_come_back(name, image, ratio, corners):
    """Of a box in the image, by continuous coordinates: into the view, as a detector gives it, and back."""
    view, (height, width) = View.named(name), image
    size = round(ratio * height), round(ratio * width)
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = np.array([xs[0] * (width - 1), ys[0] * (height - 1), xs[1] * (width - 1), ys[1] * (height - 1)])
    seen = tuple(view.of(torch.zeros(3, height, width)).shape[1:])
    inside = box.reshape(2, 2) + 0.5  # corners (x, y), 0 the edge of the first pixel
    inside *= np.array([seen[1] / width, seen[0] / height])
    if view.horizontal:
        inside[:, 0] = seen[1] - inside[::-1, 0]
    if view.vertical:
        inside[:, 1] = seen[0] - inside[::-1, 1]
    scales = np.array([size[1] / seen[1], size[0] / seen[0]])
    found = Found(((inside - 0.5) * scales).reshape(1, 4), np.ones(1), np.zeros(1, int), None)
    back = view.undo(found, seen, image, size).boxes
    expected = box.reshape(2, 2) * np.array([size[1] / width, size[0] / height])
    np.testing.assert_allclose(back, expected.reshape(1, 4), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pixels(name):
    """A bright rectangle, found by its pixels."""
    view, image = View.named(name), torch.zeros(3, 40, 60)
    image[:, 8:20, 30:54] = 1.0
    seen = view.of(image)
    rows, columns = np.nonzero(seen[1].numpy() > 0.5)
    box = np.array([[columns.min(), rows.min(), columns.max(), rows.max()]], dtype=np.float64)
    ratio = np.array([60 / seen.shape[2], 40 / seen.shape[1]] * 2)
    mask = (image[1].numpy() > 0.5)[None]
    mask = mask[:, ::-1] if view.vertical else mask
    mask = mask[:, :, ::-1] if view.horizontal else mask
    back = view.undo(Found(box * ratio, np.ones(1), np.zeros(1, int), mask), seen.shape[1:], (40, 60), (40, 60))
    np.testing.assert_allclose(back.boxes, [[30, 8, 53, 19]], atol=0.75 if view.scale != 1 else 0)
    assert np.array_equal(back.masks[0], image[1].numpy() > 0.5)


def test_the_slices_as_they_are():
    image = torch.rand(3, 5, 7)
    assert View().of(image) is image
    found = Found(np.array([[1.0, 2, 3, 4]]), np.ones(1), np.zeros(1, int), None)
    assert np.array_equal(View().undo(found, (5, 7), (5, 7), (5, 7)).boxes, found.boxes)
