import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

blosc2 = pytest.importorskip("blosc2")

import a3d_det2.data.slices
from a3d_det2.data import load_slice_stack
from a3d_det2.data.packed import PackedSeries, import_blosc2, packed_path, write_packed
from a3d_det2.data.png import UnreadableSlice
from a3d_det2.data.series import PngSeries, open_series

NUMBERS = [7, 8, 9, 12, 13]


def noise(seed, shape=(40, 30)):
    return np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)


@pytest.fixture
def series(tmp_path, write_slice):
    """A folder of PNG slices and the packed file made from them."""
    for number in NUMBERS:
        path = write_slice(number, noise(number).astype(int) - 32768, shape=(40, 30))
    folder = str(tmp_path / "Images_png" / "000001_02_03")
    (tmp_path / "Images_packed").mkdir()
    pngs = PngSeries(folder)
    write_packed(packed_path(folder), pngs.numbers, map(pngs.read, pngs.numbers))
    assert path.startswith(folder)
    return tmp_path / "Images_packed" / "000001_02_03.b2nd", folder


def test_same_bits(series):
    _, folder = series
    opened = open_series(folder)
    assert isinstance(opened, PackedSeries)
    assert opened.numbers == NUMBERS
    for number in NUMBERS:
        for verify in (False, True):
            stored = opened.read(number, verify)
            assert stored.dtype == np.uint16
            assert np.array_equal(stored, noise(number))
    assert isinstance(open_series(folder, packed=False), PngSeries)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70))
def test_any_size(tmp_path_factory, count, height, width):
    path = str(tmp_path_factory.mktemp("packed") / "x.b2nd")
    images = [noise(k, (height, width)) for k in range(count)]
    write_packed(path, list(range(count)), images)
    opened = PackedSeries(path)
    assert all(np.array_equal(opened.read(k, True), image) for k, image in enumerate(images))


def test_blosc2_alone_reads_it(series):
    array = blosc2.open(str(series[0]))
    assert np.array_equal(array[array.schunk.vlmeta["numbers"].index(12)], noise(12))


def test_the_loader_takes_it(series, monkeypatch):
    _, folder = series
    png = load_slice_stack(f"{folder}/009.png", 5, 1.5, packed=False)
    monkeypatch.setattr(a3d_det2.data.series, "read_png", None)  # nothing else is read
    assert np.array_equal(load_slice_stack(f"{folder}/009.png", 5, 1.5), png)


def test_the_png_files_are_not_needed(series):
    path, folder = series
    expected = load_slice_stack(f"{folder}/009.png", 5, 1.5)
    for number in NUMBERS:
        (path.parent.parent / "Images_png" / "000001_02_03" / f"{number:03d}.png").unlink()
    assert np.array_equal(load_slice_stack(f"{folder}/009.png", 5, 1.5), expected)


def test_same_slices_same_bytes(series, tmp_path):
    write_packed(str(tmp_path / "000001_02_03.b2nd"), NUMBERS, map(noise, NUMBERS))
    assert (tmp_path / "000001_02_03.b2nd").read_bytes() == series[0].read_bytes()


def test_truncated_wherever_it_ends(series, caplog):
    path, folder = series
    content = path.read_bytes()
    expected = load_slice_stack(f"{folder}/009.png", 5, 1.0, packed=False)
    for length in [*range(0, len(content) - 1, 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableSlice, match="b2nd: expected a packed series, got a damaged file .* --pack again"):
            PackedSeries(str(path))
    a3d_det2.data.slices._log_once.cache_clear()
    for _ in range(2):
        assert np.array_equal(load_slice_stack(f"{folder}/009.png", 5, 1.0), expected)
    (warning,) = caplog.messages
    assert warning.endswith("The PNG files are read instead.")


def test_truncated_and_nothing_else_there(tmp_path, series):
    path, folder = series
    path.write_bytes(path.read_bytes()[:-5])
    for number in NUMBERS:
        (tmp_path / "Images_png" / "000001_02_03" / f"{number:03d}.png").unlink()
    (tmp_path / "Images_png" / "000001_02_03").rmdir()
    with pytest.raises(UnreadableSlice, match="000001_02_03.b2nd: expected a packed series"):
        load_slice_stack(f"{folder}/009.png", 5, 1.0)


def test_a_flipped_bit_is_found_by_the_checksum(series):
    path, _ = series
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableSlice, match="damaged file"):
        [PackedSeries(str(path)).read(number, verify=True) for number in NUMBERS]


def test_slices_of_several_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"x.b2nd: expected slices of size \(4, 5\), got \(5, 4\)"):
        write_packed(str(tmp_path / "x.b2nd"), [1, 2], [noise(0, (4, 5)), noise(0, (5, 4))])
    assert list(tmp_path.iterdir()) == []


def test_no_such_slice(series):
    with pytest.raises(FileNotFoundError, match="b2nd, slice 10: no such slice"):
        PackedSeries(str(series[0])).read(10)


def test_the_packed_file_of_another_series(series):
    path, _ = series
    other = path.with_name("000009_01_01.b2nd")
    path.rename(other)
    with pytest.raises(UnreadableSlice, match="000009_01_01.b2nd: .* got a damaged file .that of series 000001_02_03"):
        PackedSeries(str(other))


def test_other_files(tmp_path):
    (tmp_path / "text").write_text("no array")
    blosc2.asarray(np.zeros(3), urlpath=str(tmp_path / "array.b2nd"))
    for name in ("text", "array.b2nd"):
        with pytest.raises(UnreadableSlice, match="expected a packed series"):
            PackedSeries(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        PackedSeries(str(tmp_path / "none.b2nd"))


@pytest.mark.parametrize("numbers", [{"a": 1}, [{}, 1], [1, 2, 3], ["1", "2"], None, 5])
def test_numbers_that_are_none(tmp_path, numbers):
    path = str(tmp_path / "000001_02_03.b2nd")
    array = blosc2.asarray(np.zeros((2, 4, 4), np.uint16), urlpath=path, mode="w")
    for key, value in (("numbers", numbers), ("series", "000001_02_03"), ("crc32", [0, 0])):
        array.schunk.vlmeta[key] = value
    with pytest.raises(UnreadableSlice, match=r"000001_02_03.b2nd: expected a packed series"):
        PackedSeries(path)


def no_memory(*_):
    raise MemoryError("32 GiB")


def test_an_array_that_no_memory_holds(tmp_path, monkeypatch):
    path = str(tmp_path / "000001_02_03.b2nd")
    array = blosc2.zeros((2, 1 << 17, 1 << 17), np.uint16, urlpath=path, mode="w", chunks=(1, 1 << 14, 1 << 14))
    for key, value in (("numbers", [1, 2]), ("series", "000001_02_03"), ("crc32", [0, 0])):
        array.schunk.vlmeta[key] = value
    series = PackedSeries(path)
    monkeypatch.setattr(type(series._array), "__getitem__", no_memory)
    with pytest.raises(UnreadableSlice, match=r"000001_02_03.b2nd: expected a packed series, .*32 GiB"):
        series.read(1)


HARMFUL = """
def harmful(inputs, output, offset, created=open("created", "w")):
    output[:] = inputs[0]
"""


def test_a_file_that_holds_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmful_function.py").write_text(HARMFUL)
    harmful = importlib.import_module("harmful_function").harmful
    zeros = blosc2.asarray(np.zeros((2, 4, 4), np.uint16), urlpath="zeros.b2nd", mode="w")
    blosc2.lazyudf(harmful, (zeros,), dtype=np.uint16).save(urlpath="000001_02_03.b2nd", mode="w")
    (tmp_path / "created").unlink()
    with pytest.raises(UnreadableSlice, match=r"000001_02_03.b2nd: expected a packed series, .* active serialized"):
        PackedSeries(str(tmp_path / "000001_02_03.b2nd"))
    assert not (tmp_path / "created").exists()


def test_a_blosc2_that_runs_code_is_refused(monkeypatch):
    monkeypatch.delattr(blosc2, "UnsafeDeserializationError")
    with pytest.raises(ImportError, match=r"from version 4.14.1 on, which is not installed .*'blosc2>=4.14.1'"):
        import_blosc2()
