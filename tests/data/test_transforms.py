import cv2
import numpy as np
import pytest
from fvcore.transforms.transform import HFlipTransform, TransformList

from a3d_det2.data.transforms import AffineTransform, draw_affine, draw_hu_jitter


def drawn(seed, size, shift=0.04, scale=0.2, rotation=15.0, fill=0.0):
    return draw_affine(size, shift, scale, rotation, fill, np.random.default_rng(seed).uniform)


def test_shift_by_hand():
    transform = AffineTransform([[1, 0, 2], [0, 1, -1]], fill=-1024)
    image = np.arange(20.0, dtype=np.float32).reshape(4, 5)
    expected = np.full((4, 5), -1024.0)
    expected[:3, 2:] = image[1:, :3]
    assert np.array_equal(transform.apply_image(image), expected)
    assert transform.apply_coords(np.array([[0.0, 1.0]])).tolist() == [[2.0, 0.0]]
    assert transform.apply_box(np.array([[1.0, 2, 3, 4]])).tolist() == [[3.0, 1.0, 5.0, 3.0]]


def test_quarter_turn_about_the_centre_is_exact():
    """Pixel centres lie at +0.5: a turn by 90 degrees about the centre maps pixels onto pixels."""
    size = 6
    turn = AffineTransform([[0, -1, size], [1, 0, 0]], fill=0)
    image = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    np.testing.assert_allclose(turn.apply_image(image), np.rot90(image, -1), atol=1e-5)
    assert turn.apply_coords(np.array([[0.0, 0.0]])).tolist() == [[6.0, 0.0]]


@pytest.mark.parametrize("channels", [1, 3, 5, 7, 9])
def test_any_number_of_slices(channels):
    rng = np.random.default_rng(channels)
    image = rng.normal(size=(20, 30, channels)).astype(np.float32)
    transform = drawn(1, (20, 30))
    warped = transform.apply_image(image)
    assert warped.shape == image.shape
    assert warped.dtype == np.float32
    for k in range(channels):
        assert np.array_equal(warped[:, :, k], transform.apply_image(image[:, :, k].copy()))


def test_box_mask_and_image_move_together():
    image = np.zeros((100, 120), dtype=np.float32)
    image[40:60, 30:70] = 1
    box = np.array([[30.0, 40, 70, 60]])
    for seed in range(20):
        transform = TransformList([drawn(seed, image.shape), HFlipTransform(120)])
        mask = transform.apply_segmentation(image.astype(np.uint8))
        ys, xs = np.nonzero(mask)
        x1, y1, x2, y2 = transform.apply_box(box)[0]
        # The upright box of the turned box is the extent of the turned mask, to about a pixel.
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=1.5)
        assert np.abs(transform.apply_image(image) - mask).mean() < 0.02
        assert set(np.unique(mask)) == {0, 1}


def test_bicubic_and_reflected_as_opencv():
    image = np.random.default_rng(0).normal(size=(20, 30, 2)).astype(np.float32)
    transform = AffineTransform([[1.1, 0.2, -3.3], [-0.1, 0.8, 2.2]], 7.0, "bicubic", "reflect")
    # OpenCV's matrix, between centres of pixels.
    matrix = transform.matrix.copy()
    matrix[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    expected = cv2.warpAffine(image, matrix, (30, 20), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(transform.apply_image(image), expected, atol=1e-5)
    ones = np.ones((20, 30), np.uint8)
    assert np.array_equal(transform.apply_segmentation(ones), ones)  # the border is mirrored
    assert transform.inverse().inverse().border == "reflect"
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:20] = 1
    assert set(np.unique(transform.apply_segmentation(mask))) == {0, 1}


def test_inverse():
    transform = AffineTransform([[0.9, -0.2, 5], [0.2, 0.9, -3]], fill=0)
    points = np.random.default_rng(0).uniform(0, 100, (10, 2))
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)


def test_slices_stay_contiguous_in_memory():
    image = np.zeros((7, 20, 30), dtype=np.float32).transpose(1, 2, 0)
    assert AffineTransform([[1, 0, 2], [0, 1, -1]], fill=0).apply_image(image).transpose(2, 0, 1).flags.c_contiguous


def test_the_extreme_draw_by_hand():
    """Every draw at its upper limit: turned by 90 degrees about the centre (20, 10), doubled, shifted by a tenth."""
    transform = draw_affine((20, 40), 0.1, 1.0, 90.0, -1024.0, lambda low, high: high)
    np.testing.assert_allclose(transform.matrix, [[0, -2, 20 + 4 + 20], [2, 0, 10 + 2 - 40]], atol=1e-12)
    assert transform.fill == -1024.0


def test_hu_jitter_at_its_limits():
    image = np.array([[[-1000.0, 0, 50]]], dtype=np.float32)
    for side, expected in ((1, [-1030.0, 20, 72.5]), (0, [-970.0, -20, 27.5])):
        jittered = draw_hu_jitter(20.0, 0.05, lambda *limits, side=side: limits[side]).apply_image(image)
        assert jittered.dtype == np.float32
        np.testing.assert_allclose(jittered[0, 0], expected, rtol=1e-6)
