"""What the model sees of a volume is what an evaluation sees of the same slices as files."""

import numpy as np
import pytest

from a3d_det2.data.png import write_png
from a3d_det2.data.slices import load_slice_stack, window_hu
from a3d_det2.data.torch_dataset import augment
from a3d_det2.volumes.stacks import SliceStacks
from tests.volumes.volumes import make_volume

WINDOW = (-200.0, 300.0)


def noise(depth=15, height=24, width=20, seed=0):
    return np.random.default_rng(seed).integers(-400, 500, (depth, height, width))


def stacks_of(volume, **options):
    return SliceStacks(volume, **{"num_slices": 7, "slice_interval": 2.0, "hu_window": WINDOW, **options})


@pytest.mark.parametrize("resampling", ["linear", "published", "thin", "none"])
@pytest.mark.parametrize("interval", [0.4, 0.7, 1.0, 1.5, 2.0, 2.5, 5.0])
def test_stacks_are_those_of_the_files(tmp_path, interval, resampling):
    hu = noise()
    for k, image in enumerate(hu):
        write_png(str(tmp_path / f"{k:03d}.png"), (image + 32768).astype(np.uint16))
    stacks = stacks_of(make_volume(hu, interval=interval), resampling=resampling)
    for key in range(len(hu)):
        expected = load_slice_stack(str(tmp_path / f"{key:03d}.png"), 7, interval, 2.0, resampling)
        np.testing.assert_allclose(stacks.stack(key), window_hu(expected, WINDOW), atol=1e-4)


@pytest.mark.parametrize("size", [(48, 40), (13, 11)])
@pytest.mark.parametrize("window_first", [False, True])
def test_resized_as_the_engines_do(size, window_first):
    volume = make_volume(noise(), interval=1.5)
    made = stacks_of(volume, size=size, window_first=window_first).stack(7)
    whole = stacks_of(volume, hu_window=(-1e4, 1e4)).stack(7)
    hu = (whole + 50) * np.float32(2e4 / 255) - np.float32(1e4)
    before = window_hu(hu, WINDOW) if window_first else hu
    resized, _ = augment(before.transpose(1, 2, 0), np.random.default_rng(0), [min(size)], max(size))
    expected = resized.transpose(2, 0, 1) if window_first else window_hu(resized.transpose(2, 0, 1), WINDOW)
    assert made.shape == (7, *size)
    np.testing.assert_allclose(made, expected, atol=0.02)


def test_parts_are_parts_of_the_whole():
    stacks = stacks_of(make_volume(noise()))
    whole = stacks.stack(5)
    np.testing.assert_array_equal(stacks.stack(6, slice(4, 12), slice(8, 16)), stacks.stack(6)[:, 4:12, 8:16])
    np.testing.assert_array_equal(stacks.stack(5), whole)  # slices that are no longer kept are made anew


def test_each_slice_is_made_once(monkeypatch):
    volume = make_volume(noise(40), interval=1.0)
    stacks, made = stacks_of(volume), []
    make = stacks._make
    monkeypatch.setattr(stacks, "_make", lambda *place: made.append(place) or make(*place))
    for key in range(40):
        stacks.stack(key)
        assert len(stacks._slices) <= 14  # what the stack spans, 12 mm, and its ends
    assert sorted(made) == [(k, k, 0.0) for k in range(40)]


def linear_volume(positions):
    """HU say where a slice lies: 10 HU a mm."""
    hu = np.repeat(np.repeat(np.rint(10 * np.array(positions))[:, None, None], 4, 1), 4, 2)
    return make_volume(hu, positions=positions)


def places(volume, key, **options):
    """mm from the first slice that each slice of a stack shows."""
    windowed = stacks_of(volume, hu_window=(-1000.0, 3000.0), **options).stack(key)[:, 2, 2]
    return ((windowed + 50) / 255 * 4000 - 1000) / 10


def test_a_missing_slice_is_interpolated():
    positions = [0, 2, 4, 6, 10, 12, 14, 16, 18]
    np.testing.assert_allclose(places(linear_volume(positions), 4), [4, 6, 8, 10, 12, 14, 16], atol=1e-3)
    np.testing.assert_allclose(places(linear_volume(positions), 0), [0, 0, 0, 0, 2, 4, 6], atol=1e-3)


def test_nothing_is_interpolated_across_a_wide_gap():
    volume = linear_volume([0, 2, 4, 6, 56, 58, 60, 62])
    np.testing.assert_allclose(places(volume, 3), [0, 2, 4, 6, 6, 6, 6], atol=1e-3)
    np.testing.assert_allclose(places(volume, 4), [56, 56, 56, 56, 58, 60, 62], atol=1e-3)


def test_uneven_slices_are_interpolated_by_their_place():
    positions = [0, 1.7, 4.1, 6.0, 8.3, 9.9, 12.2]
    np.testing.assert_allclose(places(linear_volume(positions), 3), [0, 2, 4, 6, 8, 10, 12], atol=0.06)


@pytest.mark.parametrize("size", [None, (80, 64)])
def test_a_tilted_gantry_puts_above_each_other_what_is_so_in_the_patient(size):
    depth, shift = 9, 1.5  # px a slice
    hu = np.full((depth, 40, 32), -1000)
    for k in range(depth):
        # A rod along the normal, seen by slices that move on by ``shift`` towards higher rows.
        top = 20 - k * shift
        hu[k, int(top) : int(top) + 4, 14:18] = 400
    volume = make_volume(hu, tilt=(0.0, shift))
    stack = stacks_of(volume, size=size).stack(4)
    rows = np.arange(stack.shape[1])
    middle = [(image.sum(axis=1) - image.sum(axis=1).min()) for image in stack]
    centers = [float((profile * rows).sum() / profile.sum()) for profile in middle]
    scale = 1 if size is None else 2
    assert np.ptp(centers) < 0.6 * scale  # the rod is drawn to whole pixels
    straight = stacks_of(make_volume(hu), size=size).stack(4)
    profiles = [image.sum(axis=1) - image.sum(axis=1).min() for image in straight]
    assert np.ptp([float((p * rows).sum() / p.sum()) for p in profiles]) > 6 * scale
