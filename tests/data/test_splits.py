import time

import pytest

from a3d_det2.data import load_deeplesion
from a3d_det2.data.dl_info import read_rows
from a3d_det2.data.phantom import COLUMNS
from a3d_det2.data.splits import rows_of_split, split_files

ROWS = (
    {"File_name": "000001_01_01_010.png", "Patient_index": "1", "Fold": "a", "Train_Val_Test": "1"},
    {"File_name": "000002_01_01_020.png", "Patient_index": "2", "Fold": "b", "Train_Val_Test": "2"},
    {"File_name": "000002_01_01_020.png", "Patient_index": "2", "Fold": "c", "Train_Val_Test": "2"},
    {"File_name": "000003_01_01_030.png", "Patient_index": "3", "Fold": "b", "Train_Val_Test": "3"},
)


@pytest.fixture
def table(write_csv):
    return write_csv(*ROWS, columns=(*COLUMNS, "Fold"))


def chosen(table, folder, text):
    (folder / "mine.txt").write_text(text)
    return [row.index for row in rows_of_split(list(read_rows(table)), str(folder / "mine.txt"))]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1\n3\n", [0, 3]),
        ("000003  # the third\n", [3]),
        ("# a comment\n\n000002_01_01_020.png\n", [1, 2]),
        ("Fold = b\n", [1, 3]),
        ("Fold=a , c\n", [0, 2]),
        ("\ufeff3\r\n", [3]),
        ("Train_Val_Test = 1\n3\n000001_01_01_010.png", [0, 3]),
    ],
)
def test_lines_choose_rows(table, tmp_path, text, rows):
    assert chosen(table, tmp_path, text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.txt: expected patients, file names or COLUMN = VALUES, one per line, got none"),
        ("# nothing\n", "got none"),
        ("1\n4\n", "mine.txt, line 2: no row of .*DL_info.csv is chosen by it"),
        ("000009_01_01_001.png", "mine.txt, line 1: no row"),
        ("Fold = d", "line 1: no row"),
        ("Flod = a", "line 1: .*DL_info.csv has no column 'Flod'"),
        ("patient 1", "line 1: expected a patient such as 17, .* got 'patient 1'"),
        ("-1", "line 1: expected a patient"),
        ("Fold =", "line 1: expected a patient"),
        ("= a", "line 1: expected a patient"),
        ("1\n\0\x1b", "line 2: expected a patient"),
    ],
)
def test_a_bad_line_is_named(table, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        chosen(table, tmp_path, text)


def test_dataset_of_a_split_file(table, tmp_path):
    (tmp_path / "fold.txt").write_text("Fold = c\n1")
    records = load_deeplesion(table, "root", str(tmp_path / "fold.txt"))
    assert [record["image_id"] for record in records] == [ROWS[0]["File_name"], ROWS[1]["File_name"]]
    assert [annotation["row"] for record in records for annotation in record["annotations"]] == [0, 2]
    with pytest.raises(FileNotFoundError):
        load_deeplesion(table, "root", str(tmp_path / "none.txt"))


def test_split_files_of_a_folder(tmp_path):
    assert split_files(str(tmp_path / "none")) == {}
    for name in ("b.txt", "a.txt", "notes.md"):
        (tmp_path / name).write_text("1")
    assert split_files(str(tmp_path)) == {"a": str(tmp_path / "a.txt"), "b": str(tmp_path / "b.txt")}


def test_a_long_file_takes_no_time(write_csv, tmp_path):
    names = [f"{i:06d}_01_01_001.png" for i in range(1, 5001)]
    table = write_csv(*({"File_name": name} for name in names))
    start = time.perf_counter()
    assert len(chosen(table, tmp_path, "\n".join(names))) == 5000
    assert time.perf_counter() - start < 2
