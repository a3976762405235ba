from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from a3d_det2.segmentation import LONGEST_OUTLINE, decode_mask, draw_polygons, encode_mask

SIZES = st.integers(1, 70)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_every_mask_comes_back(mask):
    encoded = encode_mask(mask)
    assert np.array_equal(decode_mask(encoded, *mask.shape), mask)
    assert np.array_equal(decode_mask({**encoded, "counts": encoded["counts"].encode()}, *mask.shape), mask)
    pixels = mask.T.ravel()
    listed = [len(list(run)) for _, run in groupby(pixels)]
    listed = [0, *listed] if pixels[0] else listed
    assert np.array_equal(decode_mask({**encoded, "counts": listed}, *mask.shape), mask)


def test_a_large_mask_with_one_run_of_many_characters():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[2900:, 1990:] = True
    encoded = encode_mask(mask)
    assert np.array_equal(decode_mask(encoded, 3000, 2000), mask)
    assert np.array_equal(coco_mask.decode(encoded), mask)


@given(st.text(st.characters(min_codepoint=30, max_codepoint=130), max_size=20), SIZES, SIZES)
def test_text_is_a_mask_of_the_image_or_an_error(counts, height, width):
    try:
        mask = decode_mask({"size": [height, width], "counts": counts}, height, width)
    except ValueError as error:
        assert str(error).startswith("expected ")  # noqa: PT017 - whether there is one depends on the text
        return
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    # Only now is it certain that pycocotools can be asked as well.
    assert np.array_equal(coco_mask.decode({"size": [height, width], "counts": counts}), mask)


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "o7",
        "0o7",
        "T",
        "ä",
        "oooooooo0",
        None,
        7,
        [],
        [64, 1],
        [1, 2, 3],
        [-1, 65],
        [64.0],
        ["64"],
        [True] * 64,
        {},
    ],
)
def test_runs_that_do_not_cover_the_image(counts):
    with pytest.raises(ValueError, match="^expected runs"):
        decode_mask({"size": [8, 8], "counts": counts}, 8, 8)


def test_runs_whose_sum_passes_the_largest_integer():
    for counts in ([1 << 31] * 3, [0, 1 << 31, 0, 64]):
        with pytest.raises(ValueError, match="^expected runs"):
            decode_mask({"size": [8, 8], "counts": counts}, 8, 8)
    text = encode_mask(np.zeros((1023, 1024), dtype=bool))["counts"]
    with pytest.raises(ValueError, match="^expected runs"):
        decode_mask({"size": [8, 8], "counts": text * 5000}, 8, 8)


@pytest.mark.parametrize("size", [[8, 7], [7, 8], [64], 64, None, "88", [8.5, 8]])
def test_masks_of_another_size(size):
    with pytest.raises(ValueError, match="^expected a mask of the image's size 8 x 8, got one of"):
        decode_mask({"size": size, "counts": [64]}, 8, 8)


def test_polygons():
    mask = decode_mask([[1, 1, 4, 1, 4, 3, 1, 3], [6.0, 6, 8, 6, 8, 8, 6, 8]], 8, 8)
    expected = np.zeros((8, 8), dtype=bool)
    expected[1:3, 1:4] = expected[6:, 6:] = True
    assert np.array_equal(mask, expected)
    assert not draw_polygons([[100, 100, 110, 100, 110, 110]], 8, 8).any()


@given(st.lists(st.floats(width=32) | st.floats(-1e6, 1e6) | st.integers(-20, 20), max_size=12), SIZES, SIZES)
def test_numbers_are_a_polygon_or_an_error(polygon, height, width):
    try:
        mask = draw_polygons([polygon], height, width)
    except ValueError as error:
        assert str(error).startswith("expected a polygon")  # noqa: PT017
        return
    assert mask.shape == (height, width)
    assert np.abs(polygon).max() <= LONGEST_OUTLINE


@pytest.mark.parametrize(
    "polygons",
    [
        "text",
        None,
        3,
        [],
        [[]],
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [1, 2, 3, 4, 5, 6],
        [["a"] * 6],
        [[None] * 6],
        [[10**400] * 6],
        [["1", "2", "3", "4", "5", "6"]],
        [[True] * 6],
        [[[1, 2], [3, 4], [5, 6]]],
    ],
)
def test_what_is_no_polygon(polygons):
    with pytest.raises(ValueError, match="^expected a (list of )?polygon"):
        decode_mask(polygons, 8, 8)


def test_images_that_no_memory_holds():
    for mask in ({"size": [1 << 15, 1 << 14], "counts": [1 << 29]}, [[1, 1, 4, 1, 4, 3]]):
        with pytest.raises(
            ValueError, match=r"^expected an image of at most 268435456 pixels, got one of 32768 x 16384$"
        ):
            decode_mask(mask, 1 << 15, 1 << 14)


def test_messages_are_short():
    for mask in ({"size": [8, 8], "counts": "o" * 10**6}, [[0.5] * 10**6 + ["a"]], {"size": "8" * 10**6}):
        with pytest.raises(ValueError, match="^expected") as error:
            decode_mask(mask, 8, 8)
        assert len(str(error.value)) < 300


def test_a_polygon_that_would_take_all_memory():
    for far in (1e9, -1e9, float("inf"), float("nan"), 2.0**40):
        with pytest.raises(ValueError, match="at most 1000000 pixels long"):
            draw_polygons([[0, 0, far, 5, 3, 3]], 8, 8)
    with pytest.raises(ValueError, match="at most 1000000 pixels long"):
        draw_polygons([[0, 0, 9e5, 0] * 4], 8, 8)
