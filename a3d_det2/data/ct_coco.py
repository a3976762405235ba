"""Key slices of any CT dataset, in COCO's annotation format -> dataset dicts."""

import logging
import math
from collections.abc import Callable

import numpy as np

from .coco import read_coco_categories
from .png import HU_OFFSET
from .slices import is_interval

LAST_NUMBER = r"(\d+)\D*$"  # the last digits of the name
ReadStack = Callable[[dict], tuple[np.ndarray, int]]


def load_ct_coco(
    json_file: str,
    image_root: str,
    *,
    hu_offset: float = HU_OFFSET,
    number_pattern: str = LAST_NUMBER,
    read_stack: ReadStack | None = None,
) -> tuple[list[dict], dict[int, str]]:
    """Read key slices and their lesions from COCO's annotation format.

    An image is a key slice; "file_name" is that of its 16-bit grey PNG, and the slices beside it are the files in the
    same folder whose names differ in the slice number alone. Beside COCO's keys an image has "slice_interval", the
    distance between the slices on disk in mm (null where it is not known: the key slice then stands alone), and may
    have "patient", by which confidence intervals are made, "spacing" (x, y in mm), "slice_range" (first and last number
    of the series) and "series".

    Args:
        json_file: path of the annotations.
        image_root: folder that file names are relative to.
        hu_offset: what was added to the HU in the PNG files: 32768, or 1024 or 0 as other tools do it.
        number_pattern: regular expression whose one group is the slice number in the name of a file.
        read_stack: called with an image's dict instead of reading PNG files, gives slices (S, H, W) in HU, from head to
            feet, and which of them is the key slice; "file_name" may then name anything, such as a volume. It has to be
            a function that can be pickled.

    Returns:
        a dict for each image, as those of :func:`load_deeplesion`, and the names of the categories by their id in the
        file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not in this format, or an image has no slice_interval; the message names file and entry.
    """
    records, categories = read_coco_categories(json_file, image_root)
    for record in records:
        if "slice_interval" not in record:
            raise ValueError(
                f"{json_file}, image {record['image_id']!r}: expected 'slice_interval', the distance between slices on "
                f"disk in mm, or null where it is not known; got {', '.join(record)}."
            )
        if not (is_interval(record["slice_interval"]) or math.isnan(record["slice_interval"])):
            raise ValueError(
                f"{json_file}, image {record['image_id']!r}: expected a positive number of mm or null as "
                f"slice_interval, got {record['slice_interval']}."
            )
        record |= {"read_stack": read_stack} if read_stack else {}
        record |= {"hu_offset": hu_offset, "number_pattern": number_pattern}
    unknown = [record["image_id"] for record in records if math.isnan(record["slice_interval"])]
    if unknown:
        logging.getLogger(__name__).warning(
            f"{json_file}: {len(unknown)} of {len(records)} images have no slice_interval ({unknown[0]!r} is the "
            "first); their key slice is repeated in place of the neighbours."
        )
    return records, categories
