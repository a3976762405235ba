import copy
import os

import pytest

from a3d_det2.data.preparation import check_annotations, make_jobs, prepare_series
from a3d_det2.data.preparation.series import _fingerprint

ROW = {"Measurement_coordinates": "3, 4, 5, 4, 4, 3, 4, 5", "Bounding_boxes": "1, 1, 8, 6", "Image_size": "8, 6"}
ROW = {**ROW, "Slice_range": "13, 15"}


@pytest.fixture
def make_job(write_csv, write_slice, tmp_path):
    """Slices 13 to 15 of a series, the middle one with two lesions."""
    for number in (13, 14, 15):
        write_slice(number, number)
    records = check_annotations(write_csv(ROW, {**ROW, "Bounding_boxes": "2, 2, 8, 6"})).records

    def make(pack=False, done=None):
        (job,) = make_jobs(records, str(tmp_path / "Images_png"), pack, {} if done is None else {"000001_02_03": done})
        return job

    return make


def test_a_job_by_hand(make_job):
    job = make_job()
    assert (job.series.name, job.series.key_slices, job.series.ranges) == ("000001_02_03", {14: (6, 8)}, ((13, 15),))
    assert job.lesions[1] == {
        "row": 1,
        "image_id": "000001_02_03_014.png",
        "number": 14,
        "bbox": [1.0, 1.0, 7.0, 5.0],
        "recist": [[2.0, 3.0], [4.0, 3.0], [3.0, 2.0], [3.0, 4.0]],
    }
    assert [lesion["row"] for lesion in job.lesions] == [0, 1]


def test_results_of_earlier_releases_are_taken_over(make_job, tmp_path):
    """What is in the fingerprint, and how, must stay; only names and sizes of the PNG files count."""
    for number in (13, 14, 15):
        (tmp_path / "Images_png" / "000001_02_03" / f"{number:03d}.png").write_bytes(b"x" * number)
    expected = "717afb060cc0d0f9988b5047a78c6c4ed03fcdcc95c7b95a69b5e21beb8a94b6"
    assert _fingerprint(make_job()) == expected


def test_what_is_done_is_not_done_again(make_job, tmp_path):
    done = prepare_series(make_job())
    assert (done["series"], done["findings"], done["packed"]) == ("000001_02_03", [], "not asked for")
    assert [mask["row"] for mask in done["masks"]] == [0, 1]
    marked = {**copy.deepcopy(done), "masks": "as they were"}
    assert prepare_series(make_job(done=marked)) is marked
    os.remove(tmp_path / "Images_png" / "000001_02_03" / "013.png")
    again = prepare_series(make_job(done=marked))
    assert [finding["kind"] for finding in again["findings"]] == ["neighbour_missing"]
    assert again["masks"] == done["masks"]


def test_packing_can_come_later(make_job, tmp_path):
    pytest.importorskip("blosc2")
    done = prepare_series(make_job())
    packed = prepare_series(make_job(pack=True, done=done))
    assert packed["packed"] == "yes"
    assert os.listdir(tmp_path / "Images_packed") == ["000001_02_03.b2nd"]
    assert packed["fingerprint"] != done["fingerprint"]
    marked = {**packed, "masks": "as they were"}
    for pack in (False, True):
        assert prepare_series(make_job(pack, marked)) is marked


def test_slices_that_one_array_cannot_hold(make_job, write_slice, tmp_path):
    pytest.importorskip("blosc2")
    job = make_job(pack=True)
    two = {**job.series.key_slices, 15: (3, 4)}
    write_slice(15, 15, shape=(3, 4))
    object.__setattr__(job.series, "key_slices", two)
    assert prepare_series(job)["packed"] == "sizes differ"
    for path in (tmp_path / "Images_png" / "000001_02_03").iterdir():
        path.unlink()
    assert prepare_series(make_job(pack=True))["packed"] == "nothing to pack"
    assert not (tmp_path / "Images_packed").exists()
