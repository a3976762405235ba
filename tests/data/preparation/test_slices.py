import os
from types import SimpleNamespace

import pytest

import a3d_det2.data.packed
from a3d_det2.data.packed import packed_path, write_packed
from a3d_det2.data.preparation import SeriesAnnotations, group_by_series, inspect_series
from a3d_det2.data.series import PngSeries
from tests.damage import make_8_bit, resize, truncate

NAME = "000001_02_03"
SERIES = SeriesAnnotations(NAME, {9: (6, 8)}, ((8, 10),))


@pytest.fixture
def folder(write_slice):
    """Slices 8 to 10, slice k of k HU, as PNG files."""
    for number in (8, 9, 10):
        path = write_slice(number, number)
    return os.path.dirname(path)


def inspect(folder, series=SERIES):
    """Kinds of findings and where; HU of the slices that are as they should be."""
    good = {}
    findings = inspect_series(
        series, os.path.dirname(folder), lambda number, stored: good.update({number: int(stored[0, 0]) - 32768})
    )
    return [(finding.kind, finding.where.removeprefix(f"{NAME}/")) for finding in findings], good


def pack(folder):
    pytest.importorskip("blosc2")
    pngs = PngSeries(folder)
    os.makedirs(os.path.dirname(packed_path(folder)), exist_ok=True)
    write_packed(packed_path(folder), pngs.numbers, map(pngs.read, pngs.numbers))


def test_series_of_records():
    base = {"height": 6, "width": 8}
    records = [
        {"file_name": "000002_01_01/005.png", "slice_range": (4, 6), **base},
        {"file_name": "000001_02_03/009.png", "slice_range": (8, 10), **base},
        {"file_name": "000002_01_01/012.png", "slice_range": (11, 12), "height": 7, "width": 9},
        {"file_name": "000002_01_01/005.png", "slice_range": (4, 6), **base},
    ]
    first, second = group_by_series(records)
    assert first == SERIES
    assert second == SeriesAnnotations("000002_01_01", {5: (6, 8), 12: (7, 9)}, ((4, 6), (11, 12)))
    assert second.numbers() == {4, 5, 6, 11, 12}


def test_nothing_is_wrong(folder):
    assert inspect(folder) == ([], {8: 8, 9: 9, 10: 10})
    pack(folder)
    assert inspect(folder) == ([], {8: 8, 9: 9, 10: 10})


@pytest.mark.parametrize(
    ("damage", "kind"), [(os.remove, "missing"), (truncate, "unreadable"), (make_8_bit, "8_bit"), (resize, "size")]
)
def test_damage(folder, tmp_path, damage, kind):
    for number in (9, 10):
        damage(tmp_path / "Images_png" / NAME / f"{number:03d}.png")
    assert inspect(folder) == ([(f"key_slice_{kind}", "009"), (f"neighbour_{kind}", "010")], {8: 8})


def test_a_link_that_leads_nowhere(folder):
    os.rename(f"{folder}/010.png", f"{folder}/elsewhere")
    os.symlink("nowhere.png", f"{folder}/010.png")
    assert inspect(folder) == ([("neighbour_missing", "010")], {8: 8, 9: 9})


def test_slices_outside_the_range_are_looked_at_too(folder, tmp_path, write_slice):
    truncate(tmp_path / "Images_png" / NAME / "010.png")
    series = SeriesAnnotations(NAME, {9: (6, 8)}, ((8, 9),))
    assert inspect(folder, series) == ([("neighbour_unreadable", "010")], {8: 8, 9: 9})


def test_the_packed_series_has_what_the_png_files_have_not(folder, tmp_path):
    pack(folder)
    os.remove(f"{folder}/008.png")
    truncate(tmp_path / "Images_png" / NAME / "009.png")
    assert inspect(folder) == ([("png_damaged", "009")], {8: 8, 9: 9, 10: 10})


def test_a_packed_series_of_other_slices(folder, write_slice):
    os.remove(f"{folder}/010.png")
    pack(folder)
    write_slice(8, 80)
    write_slice(10, 10)
    findings, good = inspect(folder)
    assert findings == [("packed_outdated", NAME)]
    assert good == {8: 80, 9: 9, 10: 10}


def test_a_damaged_packed_series(folder, tmp_path):
    pack(folder)
    path = tmp_path / "Images_packed" / f"{NAME}.b2nd"
    truncate(path)
    assert inspect(folder) == ([("packed_damaged", NAME)], {8: 8, 9: 9, 10: 10})


def test_a_packed_slice_that_is_not_what_was_written(folder, monkeypatch):
    pack(folder)
    monkeypatch.setattr(a3d_det2.data.packed, "zlib", SimpleNamespace(crc32=lambda stored: 0))
    assert inspect(folder) == ([("packed_damaged", NAME)] * 3, {8: 8, 9: 9, 10: 10})
