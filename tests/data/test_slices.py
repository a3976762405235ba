import logging
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import a3d_det2.data.slices
from a3d_det2.data import load_slice_stack, window_hu

KEY = 100
SHAPE = (3, 4)


def save(folder, index, hu):
    stored = (np.full(SHAPE, hu) + 32768).astype(np.uint16)
    Image.fromarray(stored).save(folder / f"{index:03d}.png")


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """Slice k has 10 * (k - KEY) HU, from 60 to 140."""
    folder = tmp_path_factory.mktemp("000001_01_01")
    for index in range(60, 141):
        save(folder, index, 10 * (index - KEY))
    return folder


def stack_values(folder, *args, **kwargs):
    stack = load_slice_stack(str(folder / f"{KEY:03d}.png"), *args, **kwargs)
    assert stack.dtype == np.float32
    assert stack.shape[1:] == SHAPE
    assert (stack == stack[:, :1, :1]).all()
    return stack[:, 0, 0].tolist()


def test_slices_on_the_grid_are_taken_as_they_are(ramp):
    assert stack_values(ramp, 3, 2.0) == [-10, 0, 10]
    assert stack_values(ramp, 7, 1.0) == [-60, -40, -20, 0, 20, 40, 60]
    assert stack_values(ramp, 7, 0.4) == [-150, -100, -50, 0, 50, 100, 150]
    assert stack_values(ramp, 1, 1.0) == [0]


def test_each_position_has_its_own_fraction(ramp):
    # At 5 mm, +-2 mm and +-4 mm lie 0.4 and 0.8 of the way to the neighbour.
    assert stack_values(ramp, 5, 5.0) == pytest.approx([-8, -4, 0, 4, 8])


def test_thin_resamples_only_what_is_closer_than_the_target(ramp):
    assert stack_values(ramp, 5, 5.0, 2.0, "thin") == [-20, -10, 0, 10, 20]
    assert stack_values(ramp, 5, 2.0, 2.0, "thin") == [-20, -10, 0, 10, 20]
    assert stack_values(ramp, 5, 1.0, 2.0, "thin") == [-40, -20, 0, 20, 40]
    assert stack_values(ramp, 5, 1.6, 2.0, "thin") == pytest.approx([-25, -12.5, 0, 12.5, 25])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 3, 7, 9]), st.floats(0.25, 5), st.floats(0.5, 2.4))
def test_linear_volume_is_resampled_exactly(ramp, num_slices, interval, target):
    half = num_slices // 2
    positions = np.arange(-half, half + 1) * target
    if np.abs(positions).max() / interval > 39:
        return
    assert stack_values(ramp, num_slices, interval, target) == pytest.approx(10 * positions / interval, abs=1e-3)


def test_ends_and_gaps_step_back_towards_the_key_slice(tmp_path):
    for index in (98, 99, 100, 101, 104):
        save(tmp_path, index, 10 * (index - KEY))
    # +2 and +3 are a gap, filled by +1; below -2 the series ends.
    assert stack_values(tmp_path, 9, 2.0) == [-20, -20, -20, -10, 0, 10, 10, 10, 40]
    # At 4 mm: -1.5 lies between -2 and -1; +1.5 between +1 and the missing +2, for which +1 stands in.
    assert stack_values(tmp_path, 7, 4.0) == [-15, -10, -5, 0, 5, 10, 10]


@pytest.mark.parametrize("interval", [math.nan, 0.0, -1.0, math.inf])
def test_bad_interval_repeats_the_key_slice_and_warns_once(ramp, interval, monkeypatch, caplog):
    monkeypatch.setattr(a3d_det2.data.slices, "_bad_interval_reported", False)
    with caplog.at_level(logging.WARNING):
        assert stack_values(ramp, 3, interval) == [0, 0, 0]
        assert stack_values(ramp, 5, interval) == [0] * 5
    assert len(caplog.records) == 1
    assert "100.png: expected a positive slice interval in mm, got" in caplog.text


def test_data_loader_workers_leave_the_warning_to_the_reader(ramp):
    code = (
        "import sys, multiprocessing as m; from a3d_det2.data import load_slice_stack as load; "
        "p = m.get_context('fork').Process(target=load, args=(sys.argv[1], 3, 0.0)); p.start(); p.join()"
    )
    run = subprocess.run([sys.executable, "-c", code, str(ramp / "100.png")], capture_output=True, text=True)
    assert run.returncode == 0
    assert "slice interval" not in run.stderr


def test_a_tiny_interval_is_no_trap(ramp):
    start = time.perf_counter()
    assert stack_values(ramp, 7, 1e-7) == [-400] * 3 + [0] + [400] * 3  # the ends of the series
    assert time.perf_counter() - start < 1


def test_hu_range_is_signed(tmp_path):
    save(tmp_path, KEY, -1024)
    assert stack_values(tmp_path, 3, 1.0) == [-1024] * 3


def test_missing_key_slice(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"100.png: no such slice. Expected DeepLesion's layout"):
        load_slice_stack(str(tmp_path / "100.png"), 3, 1.0)


def test_truncated_png(ramp, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65535, (64, 64), dtype=np.uint16)).save(tmp_path / "100.png")
    content = (tmp_path / "100.png").read_bytes()
    for length in (0, 10, 40, len(content) // 2, len(content) - 100):
        (tmp_path / "100.png").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"100.png: expected a complete 16-bit PNG"):
            load_slice_stack(str(tmp_path / "100.png"), 1, 1.0)


def test_truncated_neighbour_is_not_skipped(tmp_path):
    save(tmp_path, KEY, 0)
    (tmp_path / "101.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"101.png: expected a complete 16-bit PNG"):
        load_slice_stack(str(tmp_path / "100.png"), 3, 2.0)


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_not_16_bit(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "100.png")
    with pytest.raises(ValueError, match=rf"100.png: expected a 16-bit grey PNG .* of mode {mode}"):
        load_slice_stack(str(tmp_path / "100.png"), 1, 1.0)


def test_neighbour_of_another_size(tmp_path):
    save(tmp_path, KEY, 0)
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(tmp_path / "101.png")
    with pytest.raises(
        ValueError, match=r"101.png: expected the size of the key slice .*100.png, \(3, 4\), got \(5, 5\)"
    ):
        load_slice_stack(str(tmp_path / "100.png"), 3, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1.0), "num_slices must be odd.* Got 4"),
        ((0, 1.0), "num_slices must be odd.* Got 0"),
        ((3, 1.0, 0.0), "target_interval must be a positive number of mm. Got 0.0"),
        ((3, 1.0, 2.0, "cubic"), "Unknown resampling 'cubic'. Choose one of linear, thin"),
    ],
)
def test_bad_arguments(ramp, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_slice_stack(str(ramp / "100.png"), *arguments)


def test_window():
    hu = np.array([[-2000.0, -1024, 513, 2050, 3000]])
    windowed = window_hu(hu)
    assert windowed.dtype == np.float32
    np.testing.assert_allclose(windowed, [[-50, -50, 77.5, 205, 205]])
    np.testing.assert_allclose(window_hu(np.array([0.0]), (-100, 100)), [77.5])
    with pytest.raises(ValueError, match="low < high"):
        window_hu(hu, (100, 100))
