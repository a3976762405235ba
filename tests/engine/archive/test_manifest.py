"""Manifests: what they may be, and how they are shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3d_det2.engine.archive.manifest import (
    Item,
    Shard,
    check_manifest,
    folder_name,
    id_of_folder,
    read_manifest,
    shard_items,
    write_manifest,
)


@pytest.fixture
def manifest(tmp_path):
    def write(content, encoding="utf-8"):
        path = tmp_path / "archive.csv"
        path.write_bytes(content.encode(encoding))
        return str(path)

    return write


def test_rows_and_paths(manifest, tmp_path):
    path = manifest("id,path,series\na,cts/a.nii,\n\nb,/data/b,1.2.3\n")
    assert list(read_manifest(path)) == [Item("a", f"{tmp_path}/cts/a.nii"), Item("b", "/data/b", "1.2.3")]
    assert check_manifest(path) == 2
    assert list(read_manifest(manifest("id,path\na,/x\n"))) == [Item("a", "/x")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_windows(manifest, encoding, end):
    path = manifest(end.join(["id,path,series", "é 1,/x y,", "b,/data/b,1.2.3", ""]), encoding)
    assert list(read_manifest(path)) == [Item("é 1", "/x y"), Item("b", "/data/b", "1.2.3")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,path\na,/x\nb,/y\na,/z\n", "expected each id once, got 'a' again"),
        ("id,path\n", "expected a row for each volume, got none"),
        ("", "expected the columns id, path, each once; got none"),
        ("name,path\na,/x\n", "expected the columns id, path, each once; got name, path"),
        ("id,path,id\na,/x,b\n", "each once"),
        ("id,path\na\n", "line 2: expected 2 values"),
        ("id,path\na,/x,y\n", "line 2: expected 2 values"),
        ("id,path\n,/x\n", "line 2: expected an id and a path, got '' and '/x'"),
        ("id,path\na,\n", "expected an id and a path, got 'a' and ''"),
        (f"id,path\n{'a' * 201},/x\n", "expected an id of at most 200 letters"),
        (f"id,path\n{'é' * 40},/x\n", "got 240 in"),
        ("id,path\na,/x\0\n", "expected a"),
    ],
)
def test_bad(manifest, content, message):
    with pytest.raises(ValueError, match=message) as error:
        check_manifest(manifest(content))
    assert "archive.csv" in str(error.value)


def test_no_text(manifest):
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        check_manifest(manifest("id,path\na,/é\n", "latin-1"))


@given(st.text(min_size=1))
def test_any_id_is_a_folder(text):
    if any("\ud800" <= c <= "\udfff" for c in text):
        return  # no text of a file in UTF-8
    name = folder_name(text)
    assert id_of_folder(name) == text
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert name.isascii()


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_shards_share_the_rows(tmp_path, count):
    path = str(tmp_path / "archive.csv")
    items = [Item(f"{i}", f"/data/{i}") for i in range(13)]
    assert write_manifest(path, items) == 13
    parts = [list(shard_items(path, Shard(index, count))) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "", "1/99999999999999"])
def test_bad_shards(text):
    with pytest.raises(ValueError, match="such as 1/64 to 64/64, got"):
        Shard.parse(text)
    assert Shard.parse("2/4") == Shard(2, 4)
