import multiprocessing
import os
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from a3d_det2.data.preparation.archives import DamagedArchive, find_sources, link_series, series_in_zip, unpack_series

MEMBERS = {
    "Images_png/000001_01_01/103.png": b"a" * 900,
    "Images_png/000001_01_01/104.png": b"b" * 500,
    "Images_png/000002_01_01/001.png": b"c" * 700,
}
OTHERS = ["Images_png/", "__MACOSX/Images_png/000001_01_01/._103.png", "../../000009_01_01/1.txt", "README.txt"]


@pytest.fixture
def archive(tmp_path):
    path = str(tmp_path / "Images_png_01.zip")
    with zipfile.ZipFile(path, "w") as f:
        for name in OTHERS:
            f.writestr(name, b"")
        for name, content in MEMBERS.items():
            f.writestr(name, content)
    return path


def unpack_all(path, root):
    return sum(unpack_series(path, [m for m, _ in members], str(root)) for members in series_in_zip(path).values())


def test_slices_and_nothing_else(archive, tmp_path):
    root = tmp_path / "out"
    assert unpack_all(archive, root) == 3
    files = {os.path.relpath(os.path.join(a, f), root) for a, _, names in os.walk(root) for f in names}
    assert files == {name.removeprefix("Images_png/") for name in MEMBERS}
    assert (root / "000001_01_01" / "104.png").read_bytes() == b"b" * 500


def test_what_is_there_in_full_is_left_alone(archive, tmp_path):
    root = tmp_path / "out"
    unpack_all(archive, root)
    (root / "000001_01_01" / "103.png").write_bytes(b"a" * 20)
    (root / "000002_01_01" / "001.png").unlink()
    assert unpack_all(archive, root) == 2
    assert (root / "000001_01_01" / "103.png").read_bytes() == b"a" * 900
    assert unpack_all(archive, root) == 0


def test_wrong_content_of_the_right_length(archive, tmp_path):
    unpack_all(archive, tmp_path / "out")
    (tmp_path / "out" / "000002_01_01" / "001.png").write_bytes(b"!" * 700)
    members = [member for member, _ in series_in_zip(archive)["000002_01_01"]]
    assert unpack_series(archive, members, str(tmp_path / "out")) == 0
    assert unpack_series(archive, members, str(tmp_path / "out"), verify=True) == 1


def test_a_member_that_would_leave_the_folder_stays_in_it(tmp_path):
    path = str(tmp_path / "evil.zip")
    with zipfile.ZipFile(path, "w") as f:
        f.writestr("../../../000001_01_01/1.png", b"x")
    unpack_all(path, tmp_path / "out")
    assert (tmp_path / "out" / "000001_01_01" / "1.png").read_bytes() == b"x"


def test_damaged_archives_are_named(archive, tmp_path):
    with open(archive, "rb") as f:
        content = f.read()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedArchive, match=r"cut.zip: expected a complete zip file .* Download it again"):
        series_in_zip(str(cut))
    flipped = tmp_path / "flipped.zip"
    position = content.index(b"b" * 500)
    flipped.write_bytes(content[:position] + b"!" + content[position + 1 :])
    with pytest.raises(DamagedArchive, match=r"flipped.zip: Images_png/000001_01_01/104.png is damaged"):
        unpack_all(str(flipped), tmp_path / "out")
    assert not (tmp_path / "out" / "000001_01_01" / "104.png").exists()


def test_a_later_version_of_the_format(archive):
    with open(archive, "rb") as f:
        content = bytearray(f.read())
    entry = content.index(b"PK\1\2")  # of the directory; the version that is needed is at byte 6
    content[entry + 6] = 99
    with open(archive, "wb") as f:
        f.write(content)
    with pytest.raises(DamagedArchive, match=r"Images_png_01.zip: expected a complete zip file .*version 9.9"):
        series_in_zip(archive)


def test_sources_however_nested(archive, tmp_path):
    folder = tmp_path / "downloads" / "deep" / "Images_png"
    (folder / "000003_01_01").mkdir(parents=True)
    (folder / "DL_info.csv").write_text("")
    os.symlink("..", folder / "loop1")
    os.symlink("../..", folder / "loop2")
    (tmp_path / "other.csv").write_text("")
    sources = find_sources([str(tmp_path / "downloads"), archive, str(tmp_path / "other.csv")])
    assert sources.zips == [archive]
    assert sources.series == {"000003_01_01": str(folder / "000003_01_01")}
    assert sources.tables == [str(folder / "DL_info.csv"), str(tmp_path / "other.csv")]


def test_key_slices_are_refused(tmp_path):
    (tmp_path / "Key_slices").mkdir()
    (tmp_path / "Key_slices" / "000001_01_01_109.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Key_slices: expected slices as SERIES/NNN.png, got .* as in Key_slices.zip"):
        find_sources([str(tmp_path)])
    with zipfile.ZipFile(tmp_path / "Key_slices.zip", "w") as f:
        f.writestr("Key_slices/000001_01_01_109.png", b"")
    with pytest.raises(ValueError, match=r"Key_slices.zip: expected slices as SERIES/NNN.png"):
        series_in_zip(str(tmp_path / "Key_slices.zip"))


def test_several_processes_unpack_one_archive(tmp_path):
    """That was opened before they were forked: none may move the file position of another."""
    path, rng = str(tmp_path / "one.zip"), np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as f:
        for series in range(1, 61):
            for number in range(10):
                f.writestr(f"Images_png/{series:06d}_01_01/{number:03d}.png", rng.bytes(20000))
    members = series_in_zip(path)
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        root = str(tmp_path / "out")
        done = [pool.submit(unpack_series, path, [m for m, _ in names], root) for names in members.values()]
        assert sum(future.result() for future in done) == 600


def test_sources_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        find_sources([str(tmp_path / "none")])
    (tmp_path / "a" / "000003_01_01").mkdir(parents=True)
    (tmp_path / "b" / "000003_01_01").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Series 000003_01_01 lies in .*a.* and in .*b"):
        find_sources([str(tmp_path / "a"), str(tmp_path / "b")])
    (tmp_path / "x.tar").write_text("")
    with pytest.raises(ValueError, match=r"x.tar: expected a folder, a zip file or DL_info.csv"):
        find_sources([str(tmp_path / "x.tar")])


def test_links(tmp_path):
    source = tmp_path / "there" / "000003_01_01"
    source.mkdir(parents=True)
    (source / "001.png").write_text("x")
    root = tmp_path / "here"
    root.mkdir()
    for _ in range(2):
        link_series(str(source), str(root))
    assert (root / "000003_01_01" / "001.png").read_text() == "x"
    link_series(str(root / "000003_01_01"), str(root))  # itself
    (tmp_path / "else" / "000003_01_01").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"here/000003_01_01 exists and is not .*else"):
        link_series(str(tmp_path / "else" / "000003_01_01"), str(root))


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_members_of_another_kind_are_refused(tmp_path, compression):
    path = str(tmp_path / "odd.zip")
    with zipfile.ZipFile(path, "w", compression) as f:
        f.writestr("000001_01_01/001.png", b"x" * 100)
    with pytest.raises(DamagedArchive, match=r"odd.zip: expected slices .*, got 000001_01_01/001.png of 100 b"):
        unpack_all(path, tmp_path / "out")


def test_a_member_that_would_fill_the_disk_is_refused(tmp_path):
    path = str(tmp_path / "bomb.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as f, f.open("000001_01_01/001.png", "w") as member:
        for _ in range(129):
            member.write(bytes(1 << 20))
    with pytest.raises(DamagedArchive, match=r"bomb.zip: expected slices of at most 134217728 bytes"):
        unpack_all(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
