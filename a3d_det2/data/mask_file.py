"""weak_masks.json: one weak mask for each row of DL_info.csv, kept beside it.

    {"masks": [
    {"row": 0, "image_id": "000001_01_01_109.png", "bbox": [225.169, 89.0204, 240.252, 110.977], "source": "grabcut",
     "size": [512, 512], "counts": "..."},
    ...
    ]}

``row`` counts the rows of the csv from 0, without the header; ``bbox`` is x1, y1, x2, y2 as :func:`load_deeplesion` has
it; ``size`` (height, width) and ``counts`` are COCO's compressed run-length encoding; ``source`` is "grabcut" or
"ellipse". A lesion whose key slice could not be read has neither size nor counts, and the source "none".
"""

import json
from dataclasses import dataclass

from ..files import replacing
from ..segmentation import encode_mask  # noqa: F401 - where it was in version 0.1.0
from .dl_info import Row

MASK_FILE = "weak_masks.json"


def write_masks(path: str, masks: list[dict]) -> None:
    """Write the file in one step, one line a mask, ordered by row."""
    keys = ("row", "image_id", "bbox", "source", "size", "counts")
    ordered = sorted(masks, key=lambda mask: mask["row"])
    lines = ",\n".join(json.dumps({key: mask[key] for key in keys if key in mask}) for mask in ordered)
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        f.write(f'{{"masks": [\n{lines}\n]}}\n')


@dataclass(frozen=True)
class Masks:
    """What :func:`read_masks` has read.

    Attributes:
        path: of the file.
        by_row: row of the csv, from 0 -> what the file has of it.
    """

    path: str
    by_row: dict[int, dict]

    def segmentation(self, row: Row, lesion: dict) -> dict | None:
        """Give the mask of a row as COCO's run-length encoding; None for a lesion whose key slice could not be read.

        Args:
            row: of the csv.
            lesion: what :meth:`.Row.lesion` made of it.

        Raises:
            ValueError: if the file has no mask for the row, or one of another lesion.
        """
        mask = self.by_row.get(row.index)
        if mask is None or mask["image_id"] != row.image_id or not _same_box(mask["bbox"], lesion["bbox"]):
            found = "none" if mask is None else f"one of {mask['image_id']} with the box {mask['bbox']}"
            raise ValueError(
                f"{self.path}: expected a mask for row {row.index}, {row.image_id}, of {row.csv_path}, got {found}. It "
                "was made for another file: run datasets/prepare_deeplesion.py again, or remove it."
            )
        return None if mask["source"] == "none" else {"size": mask["size"], "counts": mask["counts"]}


def read_masks(path: str) -> Masks:
    """Read a ``weak_masks.json``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    try:
        with open(path, encoding="utf-8") as f:
            by_row = {mask["row"]: mask for mask in json.load(f)["masks"]}
        for mask in by_row.values():
            if mask["source"] != "none":
                mask["size"], mask["counts"]
            mask["image_id"]
            if len(mask["bbox"]) != 4 or not all(isinstance(value, (int, float)) for value in mask["bbox"]):
                raise ValueError(f"the box {mask['bbox']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected weak masks as datasets/prepare_deeplesion.py writes them, got a damaged file "
            f"({type(error).__name__}: {error}). Run it again, or remove the file."
        ) from error
    return Masks(path, by_row)


def _same_box(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) < 0.01 for x, y in zip(a, b, strict=True))
