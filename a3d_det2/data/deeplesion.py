"""DeepLesion's DL_info.csv -> dataset dicts in Detectron2's format.

Reading needs no Detectron2 and opens no image.
"""

import logging
import os
from importlib import import_module

from .dl_info import SPLITS, read_rows
from .mask_file import MASK_FILE, read_masks
from .packed import PACKED_DIR
from .slices import is_interval
from .splits import rows_of_split, split_files


def load_deeplesion(
    csv_path: str, image_root: str, split: str, *, drop_noisy: bool = False, mask_path: str | None = None
) -> list[dict]:
    """Read one split of DL_info.csv, or of a file with the same columns.

    Args:
        csv_path: path of DL_info.csv.
        image_root: folder with the slices, ``Images_png``: slice 109 of series 000001_01_01 is
            ``image_root/000001_01_01/109.png``.
        split: "train", "val" or "test", or the path of a split file; see :class:`.SplitFile`.
        drop_noisy: leave out rows marked ``Possibly_noisy``, as the published evaluation does.
        mask_path: a ``weak_masks.json``, see :mod:`.mask_file`; None reads no masks.

    Returns:
        one dict per key slice, in the order of the file:
            file_name (str): path of the key slice.
            image_id (str): File_name of the row, such as "000001_01_01_109.png".
            height, width (int): pixels.
            patient (int): Patient_index.
            slice_interval (float): distance between slices in mm, as in the file: it can be NaN, zero or negative.
            spacing (tuple): pixel size (x, y) in mm.
            slice_range (tuple): first and last slice of the series on disk.
            annotations: a list of dicts, one per lesion:
                bbox: [x1, y1, x2, y2], 0-based pixels (the file counts from 1), clipped to the image.
                bbox_mode: BoxMode.XYXY_ABS. category_id: 0. iscrowd: 0.
                row (int): of the file, from 0, without the header.
                recist: 4 points [x, y], 0-based: both ends of the long axis, then of the short axis.
                diameters: long and short axis in pixels.
                lesion_type (int): key of ``dl_info.LESION_TYPES``, or -1.
                segmentation: the weak mask as COCO's RLE, with ``mask_path``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: on an unknown split, a missing column, a malformed value, rows of one key slice that disagree on its
            size, or masks of another file; the message names the file, line and column.
    """
    masks = None if mask_path is None else read_masks(mask_path)
    records: dict[str, dict] = {}
    for row in rows_of_split(list(read_rows(csv_path)), split):
        if drop_noisy and row.is_noisy:
            continue
        key_slice = row.key_slice(image_root)
        record = records.setdefault(key_slice["image_id"], key_slice)
        if (record["width"], record["height"]) != (key_slice["width"], key_slice["height"]):
            raise row.error("Image_size", "what the row above says of the same File_name")
        lesion = row.lesion()
        segmentation = None if masks is None else masks.segmentation(row, lesion)
        if segmentation is not None:
            lesion["segmentation"] = segmentation
        record["annotations"].append(lesion)
    bad = [name for name, record in records.items() if not is_interval(record["slice_interval"])]
    if bad:
        logging.getLogger(__name__).warning(
            f"{csv_path}: {len(bad)} of {len(records)} key slices in the {split} split have no positive slice interval "
            f"in Spacing_mm_px_ ({bad[0]} is the first); their key slice is repeated in place of the neighbours."
        )
    return list(records.values())


def load_with_masks(csv_path: str, image_root: str, split: str, drop_noisy: bool = True) -> list[dict]:
    """Call :func:`load_deeplesion` with the masks of ``weak_masks.json`` beside the csv where it exists, and by default
    without the noisy rows, as in the published evaluation.
    """
    mask_path = os.path.join(os.path.dirname(csv_path), MASK_FILE)
    masks = mask_path if os.path.exists(mask_path) else None
    return load_deeplesion(csv_path, image_root, split, drop_noisy=drop_noisy, mask_path=masks)


def datasets_root() -> str:
    """Give the folder of the datasets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def named_splits(root: str) -> dict[str, tuple[str, str, str]]:
    """List the splits of what lies under ``root``, by the names that configs call them.

    deeplesion_{train,val,test} and phantom_{train,val,test}, and for each split file ``deeplesion/splits/NAME.txt`` or
    ``phantom/splits/NAME.txt``, deeplesion_NAME or phantom_NAME. A file called as one of the csv's own splits is left
    out, with a warning.

    Returns:
        name -> csv_path, image_root and split of :func:`load_deeplesion`.
    """
    splits = {}
    for dataset in ("deeplesion", "phantom"):
        folder = os.path.join(root, dataset)
        custom = split_files(os.path.join(folder, "splits"))
        for name in sorted(set(custom) & set(SPLITS)):
            logging.getLogger(__name__).warning(
                f"{custom[name]}: left out, as {dataset}_{name} is the csv's own split; rename it."
            )
        for name, split in {**custom, **{name: name for name in SPLITS}}.items():
            csv_path, image_root = os.path.join(folder, "DL_info.csv"), os.path.join(folder, "Images_png")
            splits[f"{dataset}_{name}"] = csv_path, image_root, split
    return splits


def load_named(name: str) -> list[dict]:
    """Read the dataset that a config calls ``name``, under :func:`datasets_root`; see :func:`load_with_masks`.

    Raises:
        ValueError: if there is none of that name, or nothing in it; see also :func:`load_deeplesion`.
    """
    csv_path, image_root, split = _named(name)
    records = load_with_masks(csv_path, image_root, split)
    if not records:
        raise ValueError(f"{csv_path}: expected rows of the split {split!r}, for the dataset {name!r}, got none.")
    return records


def dataset_files(name: str) -> list[str]:
    """List what :func:`load_named` and a training cannot do without: the csv, and the folder of the slices, PNG files
    or packed.

    Raises:
        ValueError: if there is none of that name.
    """
    csv_path, image_root, _ = _named(name)
    packed = os.path.join(os.path.dirname(image_root), PACKED_DIR)
    return [csv_path, packed if os.path.isdir(packed) else image_root]


def _named(name: str) -> tuple[str, str, str]:
    splits = named_splits(datasets_root())
    if name not in splits:
        raise ValueError(f"Unknown dataset {name!r}. Choose one of {', '.join(splits)}.")
    return splits[name]


def __getattr__(name: str):
    if name in ("register_deeplesion", "register_all_deeplesion"):  # of the module that needs Detectron2
        return getattr(import_module(f"{__package__}.registration"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
