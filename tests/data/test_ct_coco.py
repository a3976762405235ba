"""A CT dataset that is not DeepLesion: other names, another offset, several classes, crowds."""

import json
import pickle

import numpy as np
import pytest

from a3d_det2.data.ct_coco import LAST_NUMBER, load_ct_coco
from a3d_det2.data.png import write_png
from a3d_det2.data.sample import SampleLoader
from a3d_det2.data.series import NumberedFiles

SIZE = 24


@pytest.fixture
def coco(tmp_path):
    """Slice k of "scan A" has k HU, stored + 1024; the key slice is 12."""
    for k in range(8, 16):
        write_png(str(tmp_path / f"scan A_slice{k:04d}_v2.png"), np.full((SIZE, SIZE), k + 1024, np.uint16))
    (tmp_path / "scan B_slice0011_v2.png").write_bytes(b"of another series")
    image = {"id": "A", "file_name": "scan A_slice0012_v2.png", "height": SIZE, "width": SIZE, "slice_interval": 1.0}
    lesion = {"id": 1, "image_id": "A", "category_id": 7, "bbox": [2, 3, 10, 8], "iscrowd": 0}
    crowd = {**lesion, "id": 2, "iscrowd": 1}
    categories = [{"id": 9, "name": "cyst"}, {"id": 3, "name": "never"}, {"id": 7, "name": "node"}]
    content = {"images": [image], "annotations": [lesion, crowd], "categories": categories}

    def write(**changes):
        (tmp_path / "truth.json").write_text(json.dumps({**content, **changes}))
        return str(tmp_path / "truth.json")

    write.content, write.root = content, str(tmp_path)
    return write


def stack_of(record, **options):
    options = {"is_train": True, "num_slices": 5, "slice_interval": 2.0, "hu_window": (-1024, 1024), **options}
    return SampleLoader(**options)(pickle.loads(pickle.dumps(record)), lambda image: (image, Nothing()))


class Nothing:
    """No transform at all."""

    def apply_box(self, box):
        return box

    def apply_coords(self, coords):
        return coords


def hu_of(sample):
    return ((sample.image[:, 0, 0] + 50) * 2048 / 255 - 1024).tolist()


def test_slices_of_other_names_and_offset(coco):
    ((record,), categories) = load_ct_coco(coco(), coco.root, hu_offset=1024, number_pattern=r"slice(\d+)")
    assert categories == {3: "never", 7: "node", 9: "cyst"}
    assert [(a["category_id"], a["iscrowd"]) for a in record["annotations"]] == [(1, 0), (1, 1)]
    sample = stack_of(record)
    assert hu_of(sample) == pytest.approx([8, 10, 12, 14, 15], abs=1e-2)  # the series ends at 15
    assert sample.classes.tolist() == [1]  # without the crowd
    assert hu_of(stack_of({**record, "slice_interval": float("nan")})) == pytest.approx([12] * 5, abs=1e-2)


def test_a_pattern_that_finds_no_neighbours_is_named_once(coco, caplog):
    ((record,), _) = load_ct_coco(coco(), coco.root, hu_offset=1024)  # the last number is that of "v2"
    loader = SampleLoader(is_train=False, num_slices=3, slice_interval=2.0, hu_window=(-1024, 1024))
    for _ in range(2):
        assert hu_of(loader(record, lambda image: (image, Nothing()))) == pytest.approx([12] * 3, abs=1e-2)
    assert caplog.text.count("no other slice lies beside it whose name differs in the number '2' alone") == 1


def volume(record):
    """A function as users write it."""
    assert record["file_name"].endswith("case.npy")
    return np.arange(30, dtype=np.int16)[:, None, None] * np.ones((1, SIZE, SIZE), np.int16) * 10, 20


def test_slices_from_elsewhere(coco):
    image = {**coco.content["images"][0], "file_name": "case.npy", "slice_interval": 4.0}
    ((record,), _) = load_ct_coco(coco(images=[image]), coco.root, read_stack=volume)
    assert hu_of(stack_of(record)) == pytest.approx([190, 195, 200, 205, 210], abs=1e-2)
    assert hu_of(stack_of(record, resampling="none")) == pytest.approx([180, 190, 200, 210, 220], abs=1e-2)
    ends = {**record, "read_stack": first_slice_is_the_key}
    assert hu_of(stack_of(ends, resampling="none")) == pytest.approx([0, 0, 0, 10, 20], abs=1e-2)
    with pytest.raises(ValueError, match=r"case.npy: expected of read_stack slices"):
        stack_of({**record, "read_stack": no_such_key})


def nothing(record):
    return None


def slices_alone(record):
    return volume(record)[0]


def no_number(record):
    return volume(record)[0] * np.float32(np.nan), 3


def text(record):
    return "slices", "key"


@pytest.mark.parametrize("function", [nothing, slices_alone, no_number, text])
def test_a_function_that_gives_something_else(coco, function):
    image = {**coco.content["images"][0], "file_name": "case.npy"}
    ((record,), _) = load_ct_coco(coco(images=[image]), coco.root, read_stack=function)
    with pytest.raises(
        ValueError,
        match=r"case.npy: expected of read_stack (slices in HU, \(S, H, W\), and which of them|HU, got values that)",
    ):
        stack_of(record)


def first_slice_is_the_key(record):
    return volume(record)[0], 0


def no_such_key(record):
    return volume(record)[0], 30


def test_what_is_missing_is_named(coco):
    image = {k: v for k, v in coco.content["images"][0].items() if k != "slice_interval"}
    with pytest.raises(
        ValueError, match=r"truth.json, image 'A': expected 'slice_interval', .* got file_name, image_id"
    ):
        load_ct_coco(coco(images=[image]), coco.root)
    lesion = {**coco.content["annotations"][0], "category_id": 8}
    with pytest.raises(ValueError, match=r"truth.json, annotation 1: expected a category_id of 3, 7, 9, got 8"):
        load_ct_coco(coco(annotations=[lesion]), coco.root)
    with pytest.raises(ValueError, match="expected one category or more, .*, got none"):
        load_ct_coco(coco(categories=[]), coco.root)
    with pytest.raises(ValueError, match="categories"):
        load_ct_coco(coco(categories=None), coco.root)


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (
            "images",
            {"slice_interval": 0},
            "image 'A': expected a positive number of mm or null as slice_interval, got 0",
        ),
        ("images", {"slice_interval": -1.25}, "image 'A': expected a positive number of mm or null"),
        ("images", {"slice_interval": True}, r"image 'A': expected 1 number\(s\) as slice_interval"),
        ("images", {"slice_range": [1.7, 9]}, r"image 'A': expected 2 number\(s\) as slice_range"),
        ("annotations", {"segmentation": [[1, 2, 3]]}, "annotation 1: expected a polygon"),
        (
            "annotations",
            {"segmentation": {"size": [10, 10], "counts": "a"}},
            r"annotation 1: expected runs of the image's",
        ),
        ("categories", {"name": "node"}, "each with a name of its own, got never, node, node"),
    ],
)
def test_what_is_wrong_is_named_when_it_is_read(coco, where, changes, message):
    first, *others = coco.content[where]
    with pytest.raises(ValueError, match=message):
        load_ct_coco(coco(**{where: [{**first, **changes}, *others]}), coco.root)


def test_intervals_that_are_not_known_are_counted(coco, caplog):
    image = {**coco.content["images"][0], "slice_interval": None}
    load_ct_coco(coco(images=[image]), coco.root)
    assert "truth.json: 1 of 1 images have no slice_interval ('A' is the first); their key slice is" in caplog.text


def test_numbers_in_names(tmp_path):
    for name in ("IM-0001-0034.png", "IM-0001-0035.png", "IM-0002-0034.png", "IM-0001-0036.dcm", "IM-0001-x.png"):
        (tmp_path / name).write_bytes(b"")
    files = NumberedFiles(str(tmp_path / "IM-0001-0034.png"), LAST_NUMBER)
    assert (files.key, files.numbers) == (34, [34, 35])
    assert files.path(36).endswith("IM-0001-0036.png")
    by_series = NumberedFiles(str(tmp_path / "IM-0001-0034.png"), r"IM-(\d+)-")
    assert (by_series.key, by_series.numbers) == (1, [1, 2])
    uid = NumberedFiles(str(tmp_path / f"{'1' * 20}.png"), LAST_NUMBER)
    assert uid.numbers == []
    with pytest.raises(ValueError, match=r"a.png: expected a name with a slice number, as .* finds it"):
        NumberedFiles(str(tmp_path / "a.png"), LAST_NUMBER)


def test_a_window_that_shows_nothing_is_named_once(coco, caplog):
    ((record,), _) = load_ct_coco(coco(), coco.root)  # with an offset of 32768 all is far below air
    loader = SampleLoader(is_train=False, num_slices=3, slice_interval=2.0, hu_window=(-1024, 1024))
    for _ in range(2):
        loader(record, lambda image: (image, Nothing()))
    assert caplog.text.count("all pixels are -50 within the window (-1024, 1024) HU. Is the offset") == 1
