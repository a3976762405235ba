import numpy as np
import pytest
from pycocotools import mask as coco_mask

from a3d_det2.data import load_deeplesion
from a3d_det2.data.mask_file import encode_mask, read_masks, write_masks

NAME = "000001_02_03_014.png"
BOX = [15.0, 20.0, 45.0, 40.0]


@pytest.fixture
def entry():
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:4, 2] = True
    return {"row": 0, "image_id": NAME, "bbox": BOX, "source": "grabcut", **encode_mask(mask)}


def test_round_trip(entry, tmp_path, write_csv):
    decoded = coco_mask.decode(entry)
    assert np.argwhere(decoded).tolist() == [[1, 2], [2, 2], [3, 2]]
    path = str(tmp_path / "weak_masks.json")
    unreadable = {"row": 1, "image_id": NAME, "bbox": [4, 4, 7, 7], "source": "none"}
    write_masks(path, [unreadable, entry])
    table = write_csv({}, {"Bounding_boxes": "5,5,8,8"})
    (record,) = load_deeplesion(table, "", "test", mask_path=path)
    first, second = record["annotations"]
    assert first["segmentation"] == {"size": [5, 7], "counts": entry["counts"]}
    assert "segmentation" not in second


def test_the_same_masks_give_the_same_bytes(entry, tmp_path):
    other = {**entry, "row": 1}
    write_masks(str(tmp_path / "a"), [entry, other])
    write_masks(str(tmp_path / "b"), [dict(reversed(other.items())), entry])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_masks_of_another_file(entry, tmp_path, write_csv):
    path = str(tmp_path / "weak_masks.json")
    write_masks(path, [entry])
    with pytest.raises(ValueError, match=r"weak_masks.json: expected a mask for row 0, 000009_.*, got one of 000001_"):
        load_deeplesion(write_csv({"File_name": "000009_01_01_001.png"}), "", "test", mask_path=path)
    with pytest.raises(ValueError, match=r"for row 0, 000001_02_.*, got one of 000001_02_.* with the box \[15.0, 20.0"):
        load_deeplesion(write_csv({"Bounding_boxes": "5,5,8,8"}), "", "test", mask_path=path)  # rows that were swapped
    with pytest.raises(ValueError, match=r"expected a mask for row 1, .*, got none"):
        load_deeplesion(write_csv({}, {"Bounding_boxes": "5,5,8,8"}), "", "test", mask_path=path)


def test_a_truncated_file_is_found_wherever_it_ends(entry, tmp_path):
    path = tmp_path / "weak_masks.json"
    write_masks(str(path), [entry, {**entry, "row": 1}])
    content = path.read_bytes()
    for length in range(len(content.rstrip())):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="weak_masks.json: expected weak masks as .* got a damaged file"):
            read_masks(str(path))
    for text in (
        "[" * 100_000,
        "[]",
        "{}",
        '{"masks": [{"row": 0}]}',
        '{"masks": 3}',
        '{"masks": [{"row": 0, "source": "grabcut"}]}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="damaged file"):
            read_masks(str(path))
    with pytest.raises(FileNotFoundError):
        read_masks(str(tmp_path / "none.json"))
