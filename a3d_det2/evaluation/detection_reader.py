"""The detections of a split, read from results in COCO's format or CSV, with every entry checked.

An entry that cannot be understood is an error that names it. What can be understood but is suspicious is counted in a
warning, and takes part as the rule of the metric says.
"""

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..files import shortened
from .matching import is_box

CSV_COLUMNS = ("image_id", "x1", "y1", "x2", "y2", "score")


@dataclass(frozen=True)
class Detections:
    """Detections of all images, in the order of the results.

    Attributes:
        image: (n,) int64, index of each detection's image.
        boxes: (n, 4) float64 XYXY in absolute pixels.
        scores: (n,) float64, none of them NaN.
        masks: (n,) COCO's run-length encoding of each, or None where it has no mask.
        warnings: what is suspicious, with how often.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: list[dict | None]
    warnings: list[str]


def read_detections(path: str, image_ids: Sequence) -> Detections:
    """Read ``coco_instances_results.json``, or a CSV file with the columns image_id, x1, y1, x2, y2, score.

    Args:
        path: of the file; a name that ends in ``.csv`` is CSV, with XYXY boxes in 0-based absolute pixels.
        image_ids: of the ground truth; those of a CSV file are compared as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be understood; the message names the file and entry.
    """
    if path.lower().endswith(".csv"):
        return _read_csv(path, image_ids)
    try:
        with open(path, encoding="utf-8-sig") as f:
            results = json.load(f)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON or UTF-8
        raise ValueError(f"{path}: expected detections as JSON, got a damaged file ({error}).") from error
    return detections_from_results(results, image_ids, path)


def detections_from_results(results: list[dict], image_ids: Sequence, source: str = "results") -> Detections:
    """Check results in COCO's format and put them into arrays.

    Args:
        results: dicts with image_id, bbox (x, y, width, height), score and, with masks, segmentation. The category is
            not looked at.
        image_ids: of the ground truth.
        source: what to call them in errors.

    Raises:
        ValueError: if an entry has not these keys, its score or box is no number, or its image is unknown.
    """
    if not isinstance(results, list):
        raise ValueError(f"{source}: expected a list of detections, got {_kind(results)}.")
    for i, result in enumerate(results):
        if not isinstance(result, dict) or not {"image_id", "bbox", "score"} <= result.keys():
            got = f"the keys {', '.join(result)}" if isinstance(result, dict) else _kind(result)
            raise ValueError(f"{source}, entry {i}: expected image_id, bbox and score, got {got}.")
    scores = _numbers([result["score"] for result in results], source, "a number as the score")
    bboxes = [result["bbox"] for result in results]
    for i, box in enumerate(bboxes):
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise ValueError(f"{source}, entry {i}: expected a bbox of 4 numbers, got {shortened(box)}.")
    flat = list(itertools.chain.from_iterable(bboxes))
    boxes = _numbers(flat, source, "a bbox of 4 numbers", per_entry=4).reshape(-1, 4)
    with np.errstate(invalid="ignore"):  # inf - inf
        boxes[:, 2:] += boxes[:, :2]
    image = _image_indices([result["image_id"] for result in results], image_ids, source)
    masks = [result.get("segmentation") for result in results]
    for i, mask in enumerate(masks):
        if mask is not None and not (isinstance(mask, dict) and {"size", "counts"} <= mask.keys()):
            raise ValueError(
                f"{source}, entry {i}: expected the segmentation as run-length encoding, got {shortened(mask)}."
            )
    warnings, ids = [], [str(result["id"]) for result in results if "id" in result]
    if repeated := len(ids) - len(set(ids)):
        warnings.append(f"{repeated} of {len(results)} detections have an id that another has; ids are not used.")
    categories = {str(result.get("category_id")) for result in results}
    if len(categories) > 1:
        warnings.append(
            f"The detections have {len(categories)} categories, which are not told apart: each is a lesion."
        )
    return _detections(image, boxes, scores, masks, warnings)


def _read_csv(path: str, image_ids: Sequence) -> Detections:
    with open(path, newline="", encoding="utf-8-sig") as f:
        try:
            reader = csv.DictReader(f)
            found = list(reader.fieldnames or ())
            if any(found.count(name) != 1 for name in CSV_COLUMNS):
                got = ", ".join(found) or "none"
                raise ValueError(f"{path}: expected the columns {', '.join(CSV_COLUMNS)}, each once; got {got}.")
            rows = []
            for i, row in enumerate(reader):
                if None in row or None in row.values():
                    raise ValueError(f"{path}, entry {i}: expected {len(found)} values, one for each column.")
                rows.append([row[name] for name in CSV_COLUMNS])
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8, got something else ({error}).") from error
    numbers = np.empty((len(rows), 5))
    for i, (_, *values) in enumerate(rows):
        try:
            numbers[i] = [float(value.replace("_", "?")) for value in values]  # Python alone reads 1_0 as 10
        except ValueError:
            raise ValueError(f"{path}, entry {i}: expected numbers as x1, y1, x2, y2, score, got {values}.") from None
    image = _image_indices([row[0] for row in rows], [str(image_id) for image_id in image_ids], path)
    return _detections(image, numbers[:, :4], numbers[:, 4], [None] * len(rows), [])


def _detections(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, masks: list, warnings: list) -> Detections:
    counted = (
        (np.isnan(scores), "have NaN as their score; without a place in the order they are left out"),
        (~is_box(boxes), "have a box that is not finite or of negative size; they count as false positives"),
        (_repeated(image, boxes, scores), "repeat another with the same image, box and score; they all count"),
    )
    warnings = warnings + [f"{bad.sum()} of {len(bad)} detections {what}." for bad, what in counted if bad.any()]
    known = ~np.isnan(scores)
    masks = [mask for mask, keep in zip(masks, known, strict=True) if keep]
    return Detections(image[known], boxes[known], scores[known], masks, warnings)


def _numbers(values: list, source: str, expected: str, per_entry: int = 1) -> np.ndarray:
    """Numbers as a float64 array. Text, which NumPy would read as well, is an error."""
    others = {kind for kind in set(map(type, values)) if not issubclass(kind, Real) or kind is bool}
    if others:
        i, value = next((i, value) for i, value in enumerate(values) if type(value) in others)
        raise ValueError(f"{source}, entry {i // per_entry}: expected {expected}, got {shortened(value)}.")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise ValueError(f"{source}: expected {expected}, got one that no float holds ({error}).") from error


def _image_indices(ids: list, image_ids: Sequence, source: str) -> np.ndarray:
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    if len(index) < len(image_ids):
        raise ValueError(f"The ground truth has {len(image_ids)} images, but only {len(index)} different image ids.")
    indices = np.empty(len(ids), dtype=np.int64)
    for i, image_id in enumerate(ids):
        try:
            indices[i] = index[image_id]
        except (KeyError, TypeError):  # TypeError: a list cannot be looked up
            known = "none" if not index else f"{len(index)} images, such as {next(iter(index))!r}"
            raise ValueError(
                f"{source}, entry {i}: expected an image of the ground truth, which has {known}; got "
                f"{shortened(image_id)}."
            ) from None
    return indices


def _repeated(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n,) bool: which detections have an earlier one with the same image, box and score."""
    rows = np.ascontiguousarray(np.column_stack([image, boxes, scores]))
    repeated = np.ones(len(rows), dtype=bool)
    repeated[np.unique(rows.view(f"V{rows.dtype.itemsize * rows.shape[1]}"), return_index=True)[1]] = False
    return repeated


def _kind(value) -> str:
    return {dict: "an object", list: "a list", str: "text"}.get(type(value), repr(value))
