import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

from detectron2.data import transforms as T

from a3d_det2 import AffineTransform, RandomAffine


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
    np.random.seed(1)
    transform = RandomAffine(prob=1.0).get_transform(image)
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
        np.random.seed(seed)
        transform = T.TransformList([RandomAffine(prob=1.0, fill=0).get_transform(image), T.HFlipTransform(120)])
        mask = transform.apply_segmentation(image.astype(np.uint8))
        ys, xs = np.nonzero(mask)
        x1, y1, x2, y2 = transform.apply_box(box)[0]
        # The upright box of the turned box is the extent of the turned mask, to about a pixel.
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=1.5)
        assert np.abs(transform.apply_image(image) - mask).mean() < 0.02
        assert set(np.unique(mask)) == {0, 1}


def test_draws_stay_within_their_limits():
    image = np.zeros((200, 100), dtype=np.float32)
    np.random.seed(0)
    augmentation = RandomAffine(prob=0.8, shift=0.04, scale=0.2, rotation=15)
    drawn = [augmentation.get_transform(image) for _ in range(2000)]
    kept = [t for t in drawn if isinstance(t, AffineTransform)]
    assert len(kept) / 2000 == pytest.approx(0.8, abs=0.03)
    scales = np.array([math.sqrt(np.linalg.det(t.matrix[:, :2])) for t in kept])
    angles = np.degrees([math.atan2(t.matrix[1, 0], t.matrix[0, 0]) for t in kept])
    shifts = np.array([t.apply_coords(np.array([[50.0, 100.0]]))[0] - [50, 100] for t in kept])
    for values, limit, centre in ((scales, 0.2, 1), (angles, 15, 0), (shifts[:, 0], 4, 0), (shifts[:, 1], 8, 0)):
        assert np.abs(values - centre).max() <= limit + 1e-9
        assert np.abs(values - centre).max() > 0.95 * limit
        assert abs((values - centre).mean()) < 0.1 * limit
        assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)  # uniform


def test_inverse():
    transform = AffineTransform([[0.9, -0.2, 5], [0.2, 0.9, -3]], fill=0)
    points = np.random.default_rng(0).uniform(0, 100, (10, 2))
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)
