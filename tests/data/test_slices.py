import logging
import math
import re
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import a3d_det2.data.slices
from a3d_det2.data import load_slice_stack, window_hu
from a3d_det2.data.png import read_png

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


def test_none_takes_the_neighbours_as_they_are(ramp):
    for interval in (0.3, 1.0, 5.0):
        assert stack_values(ramp, 5, interval, 2.0, "none") == [-20, -10, 0, 10, 20]


def test_published_repeats_the_first_neighbours_fraction(ramp):
    """At 5 mm: slices 2 mm and 4 mm away both 0.4 of the way to the neighbour, and the next 1.4."""
    assert stack_values(ramp, 7, 5.0, 2.0, "published") == pytest.approx([-14, -4, -4, 0, 4, 4, 14])
    # At 4 mm the fractions are all 0.5 or 0, at 2.5 mm they would be 0.8, 0.6, 0.4.
    assert stack_values(ramp, 7, 4.0, 2.0, "published") == pytest.approx([-15, -10, -5, 0, 5, 10, 15])
    assert stack_values(ramp, 7, 2.5, 2.0, "published") == pytest.approx([-28, -18, -8, 0, 8, 18, 28])


INTERVALS = [0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 3.75, 4, 5]  # mm


@pytest.mark.parametrize("num_slices", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("interval", INTERVALS)
def test_resampling_of_a_volume_that_is_linear_in_z(ramp, interval, num_slices):
    """Linear: the analytic value. Published: the same where all positions have the fraction of the first one or lie on
    a slice; elsewhere its formula, by hand with exact fractions."""
    half = num_slices // 2
    slope = 10 / interval  # HU per mm
    analytic = [slope * 2 * i for i in range(-half, half + 1)]
    assert stack_values(ramp, num_slices, interval) == pytest.approx(analytic, abs=0.5)

    ratio = Fraction(2) / Fraction(str(interval))
    expected = []
    for i in range(-half, half + 1):
        distance = abs(i) * ratio
        if distance.denominator != 1:
            distance = math.floor(distance) + ratio % 1
        expected.append(float(10 * distance * (1 if i > 0 else -1)))
    published = stack_values(ramp, num_slices, interval, 2.0, "published")
    assert published == pytest.approx(expected, abs=0.01)
    differs = [abs(a - b) > 0.01 for a, b in zip(expected, analytic, strict=True)]
    assert [abs(a - b) > 0.5 for a, b in zip(published, analytic, strict=True)] == differs
    assert not any(differs[half - 1 : half + 2])  # the key slice and its first neighbours are right


def test_each_file_is_decoded_once(ramp, monkeypatch):
    read = []
    for module in (a3d_det2.data.series, a3d_det2.data.slices):
        monkeypatch.setattr(module, "read_png", lambda path: read.append(path) or read_png(path))
    stack_values(ramp, 7, 5.0)
    assert len(read) == len(set(read)) == 5
    read.clear()
    stack_values(ramp, 7, 1.0)
    assert len(read) == len(set(read)) == 7


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


@pytest.fixture
def nothing_logged_yet():
    """As in a new process."""
    a3d_det2.data.slices._log_once.cache_clear()


@pytest.mark.parametrize("interval", [math.nan, 0.0, -1.0, math.inf])
def test_bad_interval_repeats_the_key_slice_and_warns_once(ramp, interval, nothing_logged_yet, caplog):
    with caplog.at_level(logging.WARNING):
        assert stack_values(ramp, 3, interval) == [0, 0, 0]
        assert stack_values(ramp, 5, interval) == [0] * 5
    assert len(caplog.records) == 1
    assert "100.png: expected a positive slice interval in mm, got" in caplog.text


def test_data_loader_workers_leave_the_warning_to_the_reader(ramp):
    code = (
        "import sys, multiprocessing as m; from a3d_det2.data import load_slice_stack as load; "
        "p = m.get_context('fork').Process(target=load, args=(sys.argv[1], 3, 0.0)); p.start(); p.join(); "
        "print(p.exitcode, flush=True); load(sys.argv[1], 3, 0.0)"
    )
    command = [sys.executable, "-c", code, str(ramp / "100.png")]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    first, warning = run.stdout.splitlines()
    assert first == "0"
    assert "expected a positive slice interval" in warning


def test_reading_needs_no_torch():
    code = "import sys, a3d_det2.data.slices; print({'torch', 'cv2', 'fvcore'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_tiny_interval_is_no_trap(ramp):
    start = time.perf_counter()
    assert stack_values(ramp, 7, 1e-7) == [-400] * 3 + [0] + [400] * 3  # the ends of the series
    assert time.perf_counter() - start < 1


def test_hu_range_is_signed(tmp_path):
    save(tmp_path, KEY, -1024)
    assert stack_values(tmp_path, 3, 1.0) == [-1024] * 3


def test_missing_key_slice(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"100.png: no such slice. Those of DeepLesion are Images_png"):
        load_slice_stack(str(tmp_path / "100.png"), 3, 1.0)


def test_the_named_file_is_read_where_two_have_its_number(tmp_path):
    save(tmp_path, KEY, 10)
    for name, hu in (("0100.png", 20), ("0101.png", 30), ("101.png", 40)):
        Image.fromarray(np.full(SHAPE, hu + 32768, np.uint16)).save(tmp_path / name)
    assert stack_values(tmp_path, 1, 2.0) == [10]
    assert load_slice_stack(str(tmp_path / "0100.png"), 1, 2.0)[0, 0, 0] == 20


def test_truncated_png(ramp, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65535, (64, 64), dtype=np.uint16)).save(tmp_path / "100.png")
    content = (tmp_path / "100.png").read_bytes()
    for length in (0, 10, 40, len(content) // 2, len(content) - 100):
        (tmp_path / "100.png").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"100.png: expected a complete 16-bit PNG"):
            load_slice_stack(str(tmp_path / "100.png"), 1, 1.0)


def test_other_formats_by_the_name_of_a_png(tmp_path):
    Image.fromarray(np.zeros((64, 64), dtype=np.uint16)).save(tmp_path / "100.png", format="TIFF")
    with pytest.raises(ValueError, match=r"100.png: expected a complete 16-bit PNG, got .*cannot identify"):
        load_slice_stack(str(tmp_path / "100.png"), 1, 1.0)


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_not_16_bit(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "100.png")
    with pytest.raises(ValueError, match=rf"100.png: expected a 16-bit grey PNG .* of mode {mode}"):
        load_slice_stack(str(tmp_path / "100.png"), 1, 1.0)


def damaged(folder, kind):
    """Damage slice 101 in one way."""
    path = folder / "101.png"
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "8-bit":
        Image.new("L", SHAPE[::-1]).save(path)
    elif kind == "size":
        Image.fromarray(np.zeros((5, 5), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "101.png: no such slice, though the series has 98 to 102. The next slice"),
        ("truncated", "101.png: expected a complete 16-bit PNG"),
        ("8-bit", "101.png: expected a 16-bit grey PNG"),
        ("size", r"101.png: expected the size of the key slice 100, \(3, 4\), got \(5, 5\). The next slice"),
    ],
)
def test_a_damaged_neighbour_is_replaced_with_one_warning(tmp_path, kind, message, nothing_logged_yet, caplog):
    for index in range(98, 103):
        save(tmp_path, index, 10 * (index - KEY))
    damaged(tmp_path, kind)
    for _ in range(2):
        assert stack_values(tmp_path, 5, 2.0, slice_range=(98, 102)) == [-20, -10, 0, 0, 20]
        # At 4 mm: +1 lies on the damaged slice, -1 between -1 and 0.
        assert stack_values(tmp_path, 5, 4.0, slice_range=(98, 102)) == pytest.approx([-10, -5, 0, 0, 0])
    (warning,) = caplog.messages
    assert re.search(message, warning)


def test_slices_beyond_the_range_of_the_series_are_no_damage(tmp_path, caplog):
    for index in (99, 100, 101):
        save(tmp_path, index, 10 * (index - KEY))
    assert stack_values(tmp_path, 5, 2.0, slice_range=(99, 101)) == [-10, -10, 0, 10, 10]
    assert not caplog.messages


def test_damage_is_reported_to_whom_it_may_concern(ramp, tmp_path):
    for index in (99, 100, 101):
        save(tmp_path, index, 0)
    damaged(tmp_path, "8-bit")
    reports = []
    stack_values(tmp_path, 3, 2.0, on_damage=lambda path, message: reports.append((path, message)))
    ((path, message),) = reports
    assert path == str(tmp_path / "101.png")
    assert message.startswith(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1.0), "num_slices must be odd.* Got 4"),
        ((0, 1.0), "num_slices must be odd.* Got 0"),
        ((3, 1.0, 0.0), "target_interval must be a positive number of mm. Got 0.0"),
        ((3, 1.0, 2.0, "cubic"), "Unknown resampling 'cubic'. Choose one of linear, published, thin, none"),
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
