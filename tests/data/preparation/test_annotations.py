import pytest

from a3d_det2.data.preparation.annotations import OFFICIAL_COUNTS, check_annotations
from a3d_det2.data.preparation.report import KINDS


def kinds(*changes, write_csv):
    ordinary = {"Train_Val_Test": "1", "Patient_index": "9", "File_name": "000009_01_01_014.png"}
    findings = check_annotations(write_csv(ordinary, *changes)).findings
    return [finding.kind for finding in findings if finding.kind != "counts"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"Slice_range": "14, 23"}, ["key_slice_at_end"]),
        ({"Slice_range": "3, 14"}, ["key_slice_at_end"]),
        ({"Slice_range": "15, 23"}, ["key_slice_outside"]),
        ({"Spacing_mm_px_": "0.7, 0.7, 25"}, ["spacing_outlier"]),
        ({"Spacing_mm_px_": "7, 0.7, 5"}, ["spacing_outlier"]),
        ({"Spacing_mm_px_": "0.7, 0, 5"}, ["spacing_invalid"]),
        ({"Bounding_boxes": "16, 21, 46, 50"}, ["box_and_recist"]),
        ({"Bounding_boxes": "16, 21, 46, 300"}, ["box_outside"]),
        ({"Bounding_boxes": "16, 21, 46"}, ["row"]),
        ({"Bounding_boxes": "600, 21, 700, 41"}, ["row"]),
        ({"Train_Val_Test": "4"}, ["row"]),
    ],
)
def test_findings_of_one_row(write_csv, change, expected):
    assert kinds(change, write_csv=write_csv) == expected


def test_rows_that_disagree_on_a_size(write_csv):
    second = {"Bounding_boxes": "2,2,9,9", "Image_size": "512, 512"}
    findings = check_annotations(write_csv({}, second)).findings
    assert [f.where for f in findings if f.kind == "row"] == ["line 3"]


def test_nothing_to_train_on(write_csv, tmp_path):
    for changes in ((), ({},)):
        findings = check_annotations(write_csv(*changes)).findings
        assert [f.kind for f in findings if f.is_blocking] == ["empty"]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "mine.txt").write_text("1")
    assert not any(f.is_blocking for f in check_annotations(write_csv({})).findings)


def test_files_that_cannot_be_read(tmp_path):
    for content in (None, b"", b"\xff\xfe,"):
        if content is not None:
            (tmp_path / "DL_info.csv").write_bytes(content)
        annotations = check_annotations(str(tmp_path / "DL_info.csv"))
        assert [finding.kind for finding in annotations.findings if finding.is_blocking] == ["csv", "empty"]


def test_official_rows(official_csv):
    annotations = check_annotations(str(official_csv))
    assert annotations.counts["test"] == OFFICIAL_COUNTS["test"]
    number = {kind: sum(f.kind == kind for f in annotations.findings) for kind in KINDS}
    assert {kind: count for kind, count in number.items() if count} == {
        "counts": 2,
        "empty": 1,
        "key_slice_at_end": 27,
        "box_outside": 1,
    }
