"""Lesions that nobody has annotated, as a model has found them: a file beside the annotations of a training set.

    {"format": "a3d_det2 mined lesions", "version": 1, "how": {...}, "images": {
    "000001_01_01_109.png": [{"bbox": [225.2, 89.0, 240.3, 111.0], "score": 0.93, "category_id": 0}],
    "000001_02_01_014.png": []
    }}

It has each key slice of the datasets, by its image_id; ``bbox`` is x1, y1, x2, y2 as of annotations. ``how`` also says
which series could not be read, whose key slices have none.
"""

import json
import math
from collections.abc import Iterable, Mapping

from ..files import replacing, shortened

FORMAT, VERSION = "a3d_det2 mined lesions", 1
IGNORED = -1  # class of a lesion that is to be neither found nor not found
Mined = Mapping[str, list[dict]]  # image_id -> lesions


def write_mined(path: str, images: Mined, how: dict) -> None:
    """Write the file in one step.

    Args:
        path: of the file.
        images: lesions of each key slice, also where there are none.
        how: they were found.
    """
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(lesions)}" for name, lesions in sorted(images.items()))
    head = json.dumps({"format": FORMAT, "version": VERSION, "how": how})[:-1]
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        f.write(f'{head}, "images": {{\n{lines}\n}}}}\n')


def read_mined(path: str) -> Mined:
    """Read such a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another one, or damaged; the message names the image.
    """
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"the format {shortened(content['format'])}, version {shortened(content['version'])}")
        images = content["images"]
        for name, lesions in images.items():
            for lesion in lesions:
                box, score, category = lesion["bbox"], lesion["score"], lesion["category_id"]
                is_box = len(box) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in box)
                if not (is_box and box[0] < box[2] and box[1] < box[3]):
                    raise ValueError(f"{name}: the box {shortened(box)}")
                if not (type(score) in (int, float) and 0 <= score <= 1 and type(category) is int and category >= 0):
                    raise ValueError(f"{name}: the score {shortened(score)} and the class {shortened(category)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected mined lesions as tools/mine_lesions.py writes them, got another file, or a damaged one "
            f"({type(error).__name__}: {error})."
        ) from error
    return images


def check_mined(mined: Mined, image_ids: Iterable[str], classes: int) -> None:
    """
    Raises:
        ValueError: if there are key slices of which it knows nothing, or lesions of classes that there are not.
    """
    unknown = [image_id for image_id in image_ids if image_id not in mined]
    if unknown:
        raise ValueError(
            f"DATASETS.MINED: expected all key slices of DATASETS.TRAIN, got {len(mined)} without {len(unknown)} of "
            f"them, such as {unknown[0]}. Was it made for another dataset?"
        )
    for name, lesions in mined.items():
        for lesion in lesions:
            if lesion["category_id"] >= classes:
                raise ValueError(
                    f"DATASETS.MINED: expected classes from 0 to {classes - 1}, got {lesion['category_id']} ({name})."
                )
