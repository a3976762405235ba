"""Which detections hit which lesions: done once, before curves, strata and resampling.

Pure NumPy. Legend: n detections and m lesions of all images together, XYXY boxes in absolute pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OVERLAPS = ("iou", "iobb", "centre")
REPEAT_HITS = ("ignored", "false_positive")


@dataclass(frozen=True)
class MatchRule:
    """When a detection hits a lesion. The default is that of the DeepLesion papers since MULAN.

    Attributes:
        overlap: what is compared with the threshold:
            "iou": intersection over union.
            "iobb": intersection over the area of the detected box, as of the first DeepLesion papers. A small box
                within a lesion hits it.
            "centre": the centre of the detected box lies in the lesion's box or on its border; there is no threshold.
        threshold: lowest overlap of a hit.
        plus_one: the boxes name their last pixels: width = x2 - x1 + 1, as in the published evaluation. Otherwise
            width = x2 - x1, as in COCO's.
        repeat_hits: what a detection is that hits only lesions which were hit before, by a higher score: "ignored", so
            that it is neither a true nor a false positive, or "false_positive", as in COCO's evaluation.

    Raises:
        ValueError: on an unknown name, or a threshold outside (0, 1].
    """

    overlap: str = "iou"
    threshold: float = 0.5
    plus_one: bool = True
    repeat_hits: str = "ignored"

    def __post_init__(self):
        for name, value, choices in (
            ("overlap", self.overlap, OVERLAPS),
            ("repeat_hits", self.repeat_hits, REPEAT_HITS),
        ):
            if value not in choices:
                raise ValueError(f"Unknown {name} {value!r}. Choose one of {', '.join(choices)}.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"The threshold of a hit must be in (0, 1]. Got {self.threshold} instead!")

    def hits(self, detections: np.ndarray, lesions: np.ndarray) -> np.ndarray:
        """Whether paired boxes overlap enough.

        Args:
            detections, lesions: (..., 4), broadcast against each other.

        Returns:
            (...) bool; False where a box is not finite, or ends before it begins.
        """
        valid = _ends_after_it_begins(detections) & _ends_after_it_begins(lesions)
        with np.errstate(invalid="ignore"):  # infinite boxes give NaN, which compares as False
            if self.overlap == "centre":
                centre = (detections[..., :2] + detections[..., 2:]) / 2
                return valid & np.all((lesions[..., :2] <= centre) & (centre <= lesions[..., 2:]), axis=-1)
            return valid & (paired_overlap(detections, lesions, self.overlap, self.plus_one) >= self.threshold)

    def __str__(self) -> str:
        if self.overlap == "centre":
            text = "centre in the lesion's box"
        else:
            text = f"{ {'iou': 'IoU', 'iobb': 'IoBB'}[self.overlap] } >= {self.threshold:g}"
            text += ", width = x2 - x1 + 1" if self.plus_one else ", width = x2 - x1"
        return f"{text}, repeat hits {self.repeat_hits.replace('_', ' ')}"


def is_box(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) -> (...) bool: finite, and not ending before it begins."""
    return np.isfinite(boxes).all(axis=-1) & _ends_after_it_begins(boxes)


def _ends_after_it_begins(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 0] <= boxes[..., 2]) & (boxes[..., 1] <= boxes[..., 3])


def paired_overlap(
    detections: np.ndarray, lesions: np.ndarray, overlap: str = "iou", plus_one: bool = True
) -> np.ndarray:
    """IoU or IoBB of paired boxes; see :class:`MatchRule`.

    Args:
        detections, lesions: (..., 4), broadcast against each other.

    Returns:
        (...) float64; NaN for two boxes without area.
    """
    one = 1 if plus_one else 0
    low = np.maximum(detections[..., :2], lesions[..., :2])
    high = np.minimum(detections[..., 2:], lesions[..., 2:])
    size = np.maximum(high - low + one, 0)
    intersection = size[..., 0] * size[..., 1]
    area, other_area = (
        (boxes[..., 2] - boxes[..., 0] + one) * (boxes[..., 3] - boxes[..., 1] + one) for boxes in (detections, lesions)
    )
    with np.errstate(invalid="ignore"):
        return intersection / (area if overlap == "iobb" else area + other_area - intersection)


@dataclass(frozen=True)
class Matches:
    """The match table. Ranks count the detections of all images from 0, by falling score.

    Attributes:
        num_images: images, with or without detections and lesions.
        detection: (n,) which of the detections that were given has the rank.
        score: (n,) falling.
        image: (n,) index of the detection's image.
        false_positive: (n,) bool.
        lesion_image: (m,) index of the lesion's image.
        hit_by: (m,) rank of the first detection to hit the lesion; n where none does.
    """

    num_images: int
    detection: np.ndarray
    score: np.ndarray
    image: np.ndarray
    false_positive: np.ndarray
    lesion_image: np.ndarray
    hit_by: np.ndarray

    @property
    def num_lesions(self) -> int:
        return len(self.lesion_image)

    def select(
        self, images: np.ndarray | None = None, lesions: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What counts in a part of the split.

        Args:
            images: (num_images,) bool, with their lesions and false positives; None is all.
            lesions: (num_lesions,) bool, against the false positives of all ``images``; a hit of another lesion is
                neither a true nor a false positive. None is all.

        Returns:
            (num_images,) and (num_lesions,) bool; no lesion of another image.
        """
        images = np.ones(self.num_images, dtype=bool) if images is None else images
        lesions = np.ones(self.num_lesions, dtype=bool) if lesions is None else lesions
        return images, lesions & images[self.lesion_image]


def match(
    boxes: np.ndarray,
    scores: np.ndarray,
    image: np.ndarray,
    lesion_boxes: np.ndarray,
    lesion_image: np.ndarray,
    num_images: int,
    rule: MatchRule | None = None,
) -> Matches:
    """Match the detections of all images to the lesions of the same images.

    A detection that overlaps no lesion of its image enough is a false positive. Any other hits every lesion it
    overlaps enough. Equal scores keep the order of the input.

    Args:
        boxes: (n, 4). A box that is not finite or ends before it begins hits nothing.
        scores: (n,). A detection with NaN as its score has no place in the order: it is left out, with a warning that
            counts them.
        image: (n,) index of each detection's image.
        lesion_boxes: (m, 4).
        lesion_image: (m,) index of each lesion's image.
        num_images: all images, those without detections and lesions included.
        rule: None is the published one.

    Raises:
        ValueError: if a lesion's box is not finite or ends before it begins, or an image's index is out of range.
    """
    rule = rule or MatchRule()
    for name, index in (("image", image), ("lesion_image", lesion_image)):
        if len(index) and not (index.min() >= 0 and index.max() < num_images):
            raise ValueError(f"{name}: expected indices in [0, {num_images}), got {index.min()} to {index.max()}.")
    if not is_box(lesion_boxes).all():
        first = int(np.argmin(is_box(lesion_boxes)))
        raise ValueError(f"Lesion {first}: expected a box x1 <= x2, y1 <= y2, got {lesion_boxes[first].tolist()}.")
    nan = np.isnan(scores)
    if nan.any():
        warnings.warn(f"{nan.sum()} of {len(nan)} detections have NaN as their score and are left out.", stacklevel=2)
    detection = np.argsort(-scores, kind="stable")[: len(scores) - nan.sum()]  # NaN is sorted to the end
    rank = np.full(len(scores), -1)
    rank[detection] = np.arange(len(detection))

    # All pairs of a detection and a lesion of the same image.
    by_image = np.argsort(lesion_image, kind="stable")
    per_image = np.bincount(lesion_image, minlength=num_images)
    first_lesion = np.cumsum(per_image) - per_image
    partners = np.where(nan, 0, per_image[image])
    candidate = np.repeat(np.arange(len(scores)), partners)
    within = np.arange(len(candidate)) - np.repeat(np.cumsum(partners) - partners, partners)
    lesion = by_image[first_lesion[image[candidate]] + within]
    hit = rule.hits(boxes[candidate], lesion_boxes[lesion])
    hitting, lesion = rank[candidate[hit]], lesion[hit]

    hit_by = np.full(len(lesion_image), len(detection))
    np.minimum.at(hit_by, lesion, hitting)
    false_positive = np.ones(len(detection), dtype=bool)
    false_positive[hitting if rule.repeat_hits == "ignored" else hit_by[hit_by < len(detection)]] = False
    return Matches(num_images, detection, scores[detection], image[detection], false_positive, lesion_image, hit_by)


def match_per_image(
    detections: Sequence[np.ndarray], ground_truths: Sequence[np.ndarray], rule: MatchRule | None = None
) -> Matches:
    """:func:`match` for one pair of arrays per image.

    Args:
        detections: per image an (n, 5) array of x1, y1, x2, y2, score.
        ground_truths: per image an (m, 4) array of x1, y1, x2, y2.
        rule: None is the published one.

    Raises:
        ValueError: if the two have different lengths, or an array has the wrong shape; see also :func:`match`.
    """
    if len(detections) != len(ground_truths):
        raise ValueError(f"Expected one entry per image in both. Got {len(detections)} and {len(ground_truths)}.")
    found = [_as_rows(d, 5, "detections", i) for i, d in enumerate(detections)]
    lesions = [_as_rows(g, 4, "ground_truths", i) for i, g in enumerate(ground_truths)]
    images = np.arange(len(found))
    image, lesion_image = (np.repeat(images, [len(a) for a in arrays]) for arrays in (found, lesions))
    flat = np.concatenate([np.zeros((0, 5)), *found])
    lesion_boxes = np.concatenate([np.zeros((0, 4)), *lesions])
    return match(flat[:, :4], flat[:, 4], image, lesion_boxes, lesion_image, len(found), rule)


def _as_rows(array: np.ndarray, columns: int, name: str, index: int) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name}[{index}]: expected shape (n, {columns}), got {array.shape}.")
    return array
