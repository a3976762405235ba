"""A dataset that is damaged: the training ends well, with damage that it can replace, or with a sentence that names the
file."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.damage import Dataset, make_8_bit, resize, truncate

COLUMNS = (
    "File_name Patient_index Measurement_coordinates Bounding_boxes Lesion_diameters_Pixel_ Coarse_lesion_type "
    "Possibly_noisy Slice_range Spacing_mm_px_ Image_size Train_Val_Test".split()
)
MASKS = ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"]


def of_csv(change):
    """Damage made to the bytes of DL_info.csv."""

    def damage(dataset):
        path = dataset.root / "DL_info.csv"
        path.write_bytes(change(path.read_bytes()))

    return damage


def of_column(column, value):
    """Damage made to a value in the row of each key slice of the training split."""

    def damage(dataset):
        for row in dataset.key_slices(1):
            row[column] = value
        dataset.save()

    return damage


def of_slices(damage_one, offset=0, of_all=True):
    def damage(dataset):
        for row in dataset.key_slices(1)[: None if of_all else 1]:
            damage_one(dataset.path(row, offset))

    return damage


def of_masks(change):
    """Damage made to each mask of weak_masks.json."""

    def damage(dataset):
        masks = []
        for index, row in enumerate(dataset.rows):
            box = [float(x) - 1 for x in row["Bounding_boxes"].split(",")]
            size = [int(x) for x in reversed(row["Image_size"].split(","))]
            entry = {"row": index, "image_id": row["File_name"], "bbox": box, "source": "grabcut"}
            masks.append(change({**entry, "size": size, "counts": [size[0] * size[1]]}))
        (dataset.root / "weak_masks.json").write_text(json.dumps({"masks": masks}))

    return damage


def without_column(name):
    def damage(dataset):
        for row in dataset.rows:
            del row[name]
        dataset.save()

    return damage


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_file(dataset):
    shutil.rmtree(dataset.root / "Images_png")
    (dataset.root / "Images_png").write_text("")


def other_size(dataset):
    for row in dataset.rows:
        row["Image_size"] = "120, 120"
    dataset.save()


def packed(dataset):
    (dataset.root / "Images_packed").mkdir()
    for folder in (dataset.root / "Images_png").iterdir():
        (dataset.root / "Images_packed" / f"{folder.name}.b2nd").write_bytes(b"b2nd" * 100)


def packed_alone(dataset):
    packed(dataset)
    shutil.rmtree(dataset.root / "Images_png")


CSV = {
    "empty": lambda text: b"",
    "binary": lambda text: bytes(range(256)) * 4,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "a header alone": lambda text: text[: text.index(b"\n") + 1],
    "semicolons": lambda text: text.replace(b",", b";"),
    "cut in a row": lambda text: text[: len(text) // 3],
    "NUL": lambda text: text.replace(b"\n0", b"\n\0"),
    "a long field": lambda text: text + b"x" * 200_000,
    "no quotes": lambda text: text.replace(b'"', b""),
    "a page": lambda text: b"<html>404</html>",
}
LONG = "000001_01_01_" + "9" * 5000 + ".png"
VALUES = {
    "File_name": [
        "",
        "../../000001_01_01_001.png",
        "000001_01_01_abc.png",
        "/etc/passwd",
        "000001_01_01_001.jpg",
        "..._1.png",
        LONG,
    ],
    "Bounding_boxes": ["", "1,2,3", "nan, nan, nan, nan", "40, 40, 30, 30", "500, 500, 600, 600", "a, b, c, d"],
    "Measurement_coordinates": ["", "1, 2", "inf, 1, 1, 1, 1, 1, 1, 1", "x"],
    "Image_size": ["", "0, 0", "-96, 96", "96", "1e3, 1e3", "48, 48", "9" * 401 + ", 96"],
    "Spacing_mm_px_": ["", "1, 1", "x, y, z"],
    "Slice_range": ["", "5", "9, 3", "1, 99999999"],
    "Train_Val_Test": ["", "4", "train"],
    "Patient_index": ["", "x"],
    "Possibly_noisy": ["", "x"],
    "Coarse_lesion_type": ["", "x", "9" * 30],
    "Lesion_diameters_Pixel_": ["", "1"],
}
# Name -> what is done, a part of the message, and options.
FATAL = {f"csv: {name}": (of_csv(change), "DL_info.csv", []) for name, change in CSV.items()}
FATAL |= {f"no {column}": (without_column(column), f"DL_info.csv.*{column}", []) for column in COLUMNS}
FATAL |= {
    f"{column}: {value[:40]!r}": (of_column(column, value), f"DL_info.csv, line .*, column {column}", [])
    for column, values in VALUES.items()
    for value in values
    if value != "48, 48"
}
FATAL |= {
    "another size": (other_size, r"png: expected the height and width", []),
    "no csv": (lambda dataset: (dataset.root / "DL_info.csv").unlink(), "there is no .*DL_info.csv", []),
    "no slices": (lambda dataset: shutil.rmtree(dataset.root / "Images_png"), "there is no .*Images_png", []),
    "a file of slices": (to_file, r"Images_png.*\.png", []),
    "no key slices": (of_slices(lambda path: path.unlink()), r"\.png: no such slice", []),
    "cut key slices": (of_slices(truncate), r"\.png: expected a complete 16-bit PNG", []),
    "8-bit key slices": (of_slices(make_8_bit), r"\.png: expected a 16-bit grey PNG", []),
    "key slices of another size": (of_slices(resize), r"\.png: expected the height and width", []),
    "key slices that are folders": (of_slices(to_folder), r"\.png: expected a complete 16-bit PNG", []),
    "key slices in a worker": (of_slices(truncate), r"\.png: expected a complete", ["DATALOADER.NUM_WORKERS", 1]),
    "none is readable": (of_slices(truncate), r"readable|population", ["INPUT.UNREADABLE_KEY_SLICE", "skip"]),
    "packed series alone": (packed_alone, r"\.b2nd: expected a packed series", []),
    "masks: no JSON": (lambda d: (d.root / "weak_masks.json").write_text("{"), "weak_masks.json: .*damaged", MASKS),
    "masks: a list": (lambda d: (d.root / "weak_masks.json").write_text("[]"), "weak_masks.json: .*damaged", MASKS),
    "masks: others": (of_masks(lambda mask: {**mask, "image_id": "a.png"}), "weak_masks.json: expected a mask", MASKS),
    "masks: too short": (of_masks(lambda mask: {**mask, "counts": [5]}), r"\.png: expected runs", MASKS),
    "masks: too long": (of_masks(lambda mask: {**mask, "counts": [10**8]}), r"\.png: expected runs", MASKS),
    "masks: text": (of_masks(lambda mask: {**mask, "counts": "oooooo0"}), r"\.png: expected runs", MASKS),
    "masks: size": (of_masks(lambda mask: {**mask, "size": [1, 1]}), r"\.png: expected a mask of the image", MASKS),
    **{
        f"masks: bbox {box}": (of_masks(lambda mask, box=box: {**mask, "bbox": box}), "weak_masks.json: .*dam", MASKS)
        for box in (None, 5, [None] * 4, ["1"] * 4, [1.0])
    },
    "masks: no counts": (of_masks(lambda mask: {**mask, "counts": None}), r"\.png: expected runs", MASKS),
}
REPLACED = {
    "no neighbours": of_slices(lambda path: path.unlink(missing_ok=True), offset=1),
    "a cut neighbour": of_slices(truncate, offset=1, of_all=False),
    "an 8-bit neighbour": of_slices(make_8_bit, offset=1, of_all=False),
    "intervals that are none": lambda dataset: [
        of_column("Spacing_mm_px_", value)(dataset) for value in ("0.7, 0.7, NaN", "0.7, 0.7, -2", "1, 1, 1e-320")
    ],
    "packed series beside PNG files": packed,
    "empty masks": of_masks(lambda mask: mask),
    "a split file that is none": lambda dataset: (
        (dataset.root / "splits").mkdir() or (dataset.root / "splits" / "fold.txt").write_bytes(bytes(range(256)))
    ),
}


@pytest.fixture
def dataset(phantom_root, tmp_path, monkeypatch, start):
    shutil.copytree(phantom_root / "phantom", tmp_path / "phantom")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return Dataset(tmp_path / "phantom")


def test_there_are_many():
    assert len(FATAL) + len(REPLACED) >= 50


# Both engines read the csv by the same code; a part of its damage is enough for the second.
# Workers take five seconds to stop, so that one engine has them.
CASES = [("torchvision_loop", name) for name in FATAL if "worker" not in name]
CASES += [("launching", name) for i, name in enumerate(FATAL) if "DL_info" not in FATAL[name][1] or i % 5 == 0]


@pytest.mark.parametrize(("engine", "name"), CASES, indirect=["engine"])
def test_the_file_is_named(start, dataset, name):
    damage, message, options = FATAL[name]
    damage(dataset)
    printed = start(*options)
    assert printed is not None
    assert re.search(message, printed), printed


# What is replaced is replaced by code that both engines share.
@pytest.mark.parametrize(
    ("engine", "name"),
    [("launching", name) for name in list(REPLACED)[::3]] + [("torchvision_loop", name) for name in REPLACED],
    indirect=["engine"],
)
def test_it_trains_all_the_same(start, dataset, name):
    REPLACED[name](dataset)
    assert start(*MASKS) is None


def test_the_images_of_this_file_are_16_bit(dataset):
    with Image.open(dataset.path(dataset.key_slices(1)[0])) as image:
        assert np.asarray(image).dtype == np.uint16
