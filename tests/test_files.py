import os
import subprocess
import sys
from pathlib import Path

import pytest

from a3d_det2.files import replacing, slice_number


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "one.json"
    path.write_text("old")
    with replacing(path) as part:
        assert part == f"{path}.{os.getpid()}.part"
        Path(part).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["one.json"]


def write(path, content):
    with replacing(path) as part:
        if content:
            Path(part).write_text(content)
        raise RuntimeError("on the way")


@pytest.mark.parametrize("content", ["half", None])
def test_an_error_leaves_the_old_file(tmp_path, content):
    path = str(tmp_path / "one.json")
    Path(path).write_text("old")
    with pytest.raises(RuntimeError, match="on the way"):
        write(path, content)
    assert Path(path).read_text() == "old"
    assert os.listdir(tmp_path) == ["one.json"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="part"), replacing(tmp_path / "one.json"):
        pass
    assert not os.listdir(tmp_path)


def test_a_target_that_cannot_be_replaced(tmp_path):
    (tmp_path / "one.json").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "one.json") as part:
        Path(part).write_text("new")
    assert os.listdir(tmp_path) == ["one.json"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("Images_png/000001_01_01/109.png", 109),
        ("007.png", 7),
        (Path("a/12.nii"), 12),
        ("12", 12),
        ("model_12.pth", None),
        ("000001_01_01_109.png", None),
        ("-3.png", None),
        ("1.5.png", None),
        ("²³.png", None),
        (".png", None),
        ("", None),
    ],
)
def test_slice_number(path, number):
    assert slice_number(path) == number


def test_it_imports_nothing_of_ours():
    loaded = "import sys, a3d_det2.files; print(*(m for m in sys.modules if m.startswith(('a3d_det2.', 'numpy'))))"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {
        "a3d_det2.files",
        "a3d_det2.optional",
    }  # the package's __init__ has the latter
