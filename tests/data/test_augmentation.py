import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

from detectron2.data import transforms as T

from a3d_det2 import AffineTransform, RandomAffine, RandomHUJitter


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


def test_hu_jitter_by_hand():
    image = np.array([[[-1000.0, 0, 50]]], dtype=np.float32)
    np.random.seed(0)
    transform = RandomHUJitter(prob=1.0, offset=20, gain=0.05).get_transform(image)
    jittered = transform.apply_image(image)
    assert jittered.dtype == np.float32
    offset = jittered[0, 0, 1]
    gain = (jittered[0, 0, 2] - offset) / 50
    assert 0 < abs(offset) <= 20
    assert 0 < abs(gain - 1) <= 0.05
    assert jittered[0, 0, 0] == pytest.approx(-1000 * gain + offset, abs=1e-3)
    assert image.tolist() == [[[-1000, 0, 50]]]
    coords, mask = np.array([[1.0, 2]]), np.eye(3, dtype=np.uint8)
    assert transform.apply_coords(coords.copy()).tolist() == coords.tolist()
    assert np.array_equal(transform.apply_segmentation(mask), mask)


def test_hu_jitter_is_drawn_uniformly_with_its_probability():
    image = np.array([[0.0, 1000.0]], dtype=np.float32)
    np.random.seed(0)
    augmentation = RandomHUJitter(prob=0.5, offset=20, gain=0.05)
    drawn = [augmentation.get_transform(image) for _ in range(2000)]
    kept = np.array([t.apply_image(image)[0] for t in drawn if not isinstance(t, T.NoOpTransform)])
    assert len(kept) / 2000 == pytest.approx(0.5, abs=0.04)
    offsets, gains = kept[:, 0], (kept[:, 1] - kept[:, 0]) / 1000
    for values, limit, centre in ((offsets, 20, 0), (gains, 0.05, 1)):
        assert 0.95 * limit < np.abs(values - centre).max() <= limit + 1e-5
        assert abs((values - centre).mean()) < 0.1 * limit
    assert abs(np.corrcoef(offsets, gains)[0, 1]) < 0.1


@pytest.mark.parametrize("channels", [1, 3, 7, 9])
def test_image_box_mask_and_recist_move_together(channels):
    """A disc whose RECIST points and box are known: all of them agree after all augmentations at once."""
    rows, columns = np.mgrid[:120, :100]
    disc = np.hypot(columns + 0.5 - 45, rows + 0.5 - 65) < 15
    image = np.repeat(np.where(disc, 100, -1000).astype(np.float32)[:, :, None], channels, axis=2)
    recist = np.array([[30.0, 65], [60, 65], [45, 50], [45, 80]])
    for seed in range(10):
        np.random.seed(seed)
        augmentations = [RandomAffine(prob=1.0), T.RandomFlip(), T.RandomFlip(horizontal=False, vertical=True)]
        augmentations.append(RandomHUJitter(prob=1.0))
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList(augmentations)(aug_input)
        mask = transforms.apply_segmentation(disc.astype(np.uint8)).astype(bool)
        bright = aug_input.image > -400
        assert aug_input.image.shape == image.shape
        assert (bright != mask[:, :, None]).mean() < 0.01
        assert (bright == bright[:, :, :1]).all()
        ys, xs = np.nonzero(mask)
        x1, y1, x2, y2 = transforms.apply_box(np.array([[30.0, 50, 60, 80]]))[0]
        centre = pytest.approx([xs.mean() + 0.5, ys.mean() + 0.5], abs=0.5)  # masks move by whole pixels
        assert [(x1 + x2) / 2, (y1 + y2) / 2] == centre
        points = transforms.apply_coords(recist.copy())
        assert points.mean(axis=0) == centre
        radii = np.hypot(*(points - points.mean(axis=0)).T)
        assert radii == pytest.approx([np.sqrt(mask.sum() / np.pi)] * 4, rel=0.02)
