"""Which detections hit which lesions: done once, before curves, strata and resampling.

Legend: n detections and m lesions of all images together; boxes in absolute pixels, (x1, y1, x2, y2), or in volumes
(x1, y1, z1, x2, y2, z2). "Image" is said of both.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OVERLAPS = ("iou", "iobb", "centre")
REPEAT_HITS = ("ignored", "false_positive")
ASSIGNMENTS = ("several", "greedy", "optimal")


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
        repeat_hits: what a detection is that overlaps enough only lesions which are hit by others: "ignored", so that
            it is neither a true nor a false positive, or "false_positive", as in COCO's evaluation.
        assignment: which lesions a detection hits, of those that it overlaps enough:
            "several": all of them.
            "greedy": by falling score, that which it overlaps most of those not hit yet, and of equals the last one, as
                in COCO's evaluation.
            "optimal": one each, so that in each image the sum of 1 + overlap over the pairs is greatest; scores play no
                part.

    Raises:
        ValueError: on an unknown name, or a threshold outside (0, 1].
    """

    overlap: str = "iou"
    threshold: float = 0.5
    plus_one: bool = True
    repeat_hits: str = "ignored"
    assignment: str = "several"

    def __post_init__(self):
        for name, value, choices in (
            ("overlap", self.overlap, OVERLAPS),
            ("repeat_hits", self.repeat_hits, REPEAT_HITS),
            ("assignment", self.assignment, ASSIGNMENTS),
        ):
            if value not in choices:
                raise ValueError(f"Unknown {name} {value!r}. Choose one of {', '.join(choices)}.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"The threshold of a hit must be in (0, 1]. Got {self.threshold} instead!")

    def overlaps(self, detections: np.ndarray, lesions: np.ndarray) -> np.ndarray:
        """How much paired boxes overlap.

        Args:
            detections, lesions: (..., 2 d), broadcast against each other.

        Returns:
            (...) float64: with "centre" 1 or 0; 0 where a box is not finite, or ends before it begins.
        """
        valid = _ends_after_it_begins(detections) & _ends_after_it_begins(lesions)
        with np.errstate(invalid="ignore"):  # infinite boxes give NaN
            if self.overlap == "centre":
                d = detections.shape[-1] // 2
                centre = (detections[..., :d] + detections[..., d:]) / 2
                found = np.all((lesions[..., :d] <= centre) & (centre <= lesions[..., d:]), axis=-1).astype(np.float64)
            else:
                found = paired_overlap(detections, lesions, self.overlap, self.plus_one)
            return np.where(valid & (found > 0), found, 0.0)

    def hits(self, detections: np.ndarray, lesions: np.ndarray) -> np.ndarray:
        """Whether paired boxes overlap enough, (...) bool; see :meth:`overlaps`."""
        return self.overlaps(detections, lesions) >= self.least

    @property
    def least(self) -> float:
        """The lowest overlap of a hit."""
        return 1.0 if self.overlap == "centre" else self.threshold

    def __str__(self) -> str:
        if self.overlap == "centre":
            text = "centre in the lesion's box"
        else:
            text = f"{ {'iou': 'IoU', 'iobb': 'IoBB'}[self.overlap] } >= {self.threshold:g}"
            text += ", width = x2 - x1 + 1" if self.plus_one else ", width = x2 - x1"
        one = "" if self.assignment == "several" else f", one lesion each ({self.assignment})"
        return f"{text}{one}, repeat hits {self.repeat_hits.replace('_', ' ')}"


def is_box(boxes: np.ndarray) -> np.ndarray:
    """(..., 2 d) -> (...) bool: finite, and not ending before it begins."""
    return np.isfinite(boxes).all(axis=-1) & _ends_after_it_begins(boxes)


def _ends_after_it_begins(boxes: np.ndarray) -> np.ndarray:
    d = boxes.shape[-1] // 2
    return (boxes[..., :d] <= boxes[..., d:]).all(axis=-1)


def paired_overlap(
    detections: np.ndarray, lesions: np.ndarray, overlap: str = "iou", plus_one: bool = True
) -> np.ndarray:
    """IoU or IoBB of paired boxes; see :class:`MatchRule`.

    Args:
        detections, lesions: (..., 2 d), broadcast against each other.

    Returns:
        (...) float64; NaN for two boxes without area.
    """
    one, d = 1 if plus_one else 0, detections.shape[-1] // 2
    low = np.maximum(detections[..., :d], lesions[..., :d])
    high = np.minimum(detections[..., d:], lesions[..., d:])
    intersection = np.maximum(high - low + one, 0).prod(axis=-1)
    area, other_area = ((boxes[..., d:] - boxes[..., :d] + one).prod(axis=-1) for boxes in (detections, lesions))
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

    A detection that overlaps no lesion of its image enough is a false positive. Any other hits lesions by the
    assignment of the rule. Equal scores keep the order of the input.

    Args:
        boxes: (n, 2 d). A box that is not finite or ends before it begins hits nothing.
        scores: (n,). A detection with NaN as its score has no place in the order: it is left out, with a warning that
            counts them.
        image: (n,) index of each detection's image.
        lesion_boxes: (m, 2 d).
        lesion_image: (m,) index of each lesion's image.
        num_images: all images, those without detections and lesions included.
        rule: None is the published one.

    Raises:
        ValueError: if a lesion's box is not finite or ends before it begins, or an image's index is out of range.
    """
    rule = rule or MatchRule()
    _check_indices(image, lesion_image, num_images)
    if not is_box(lesion_boxes).all():
        first = int(np.argmin(is_box(lesion_boxes)))
        raise ValueError(f"Lesion {first}: expected a box x1 <= x2, y1 <= y2, got {lesion_boxes[first].tolist()}.")
    # All pairs of a detection and a lesion of the same image.
    by_image = np.argsort(lesion_image, kind="stable")
    per_image = np.bincount(lesion_image, minlength=num_images)
    first_lesion = np.cumsum(per_image) - per_image
    partners = per_image[image]
    candidate = np.repeat(np.arange(len(scores)), partners)
    within = np.arange(len(candidate)) - np.repeat(np.cumsum(partners) - partners, partners)
    lesion = by_image[first_lesion[image[candidate]] + within]
    overlap = rule.overlaps(boxes[candidate], lesion_boxes[lesion])
    return match_pairs(scores, image, lesion_image, num_images, candidate, lesion, overlap, rule)


def match_pairs(
    scores: np.ndarray,
    image: np.ndarray,
    lesion_image: np.ndarray,
    num_images: int,
    detection: np.ndarray,
    lesion: np.ndarray,
    overlap: np.ndarray,
    rule: MatchRule,
    excluded: np.ndarray | None = None,
) -> Matches:
    """Match detections to lesions whose overlaps are known, however they were found.

    Args:
        scores, image, lesion_image, num_images: see :func:`match`.
        detection, lesion: (k,) index of the detection and of the lesion of each pair. Pairs of one image that are not
            among them do not overlap.
        overlap: (k,) of the pairs; those of at least ``rule.least`` count.
        rule: its assignment and repeat hits.
        excluded: (m,) bool, lesions that nobody need find: they are left out of the table, and a detection that
            overlaps one enough is no false positive. None is none of them.

    Raises:
        ValueError: if an image's index is out of range.
    """
    _check_indices(image, lesion_image, num_images)
    nan = np.isnan(scores)
    if nan.any():
        warnings.warn(f"{nan.sum()} of {len(nan)} detections have NaN as their score and are left out.", stacklevel=3)
    order = np.argsort(-scores, kind="stable")[: len(scores) - nan.sum()]  # NaN is sorted to the end
    rank = np.full(len(scores), -1)
    rank[order] = np.arange(len(order))
    enough = (overlap >= rule.least) & ~nan[detection]
    hitting, lesion, overlap = rank[detection[enough]], lesion[enough], overlap[enough]
    is_hit = np.zeros(len(order), dtype=bool)  # ranks that overlap a lesion enough
    is_hit[hitting] = True
    no_mistake = np.zeros(len(order), dtype=bool)
    if excluded is not None:
        no_mistake[hitting[excluded[lesion]]] = True
        number = np.cumsum(~excluded) - 1
        hitting, lesion, overlap = (values[~excluded[lesion]] for values in (hitting, lesion, overlap))
        lesion, lesion_image = number[lesion], lesion_image[~excluded]
    if rule.assignment == "greedy":
        hitting, lesion = _greedy(hitting, lesion, overlap)
    elif rule.assignment == "optimal":
        hitting, lesion = _optimal(hitting, lesion, overlap, image[order])
    hit_by = np.full(len(lesion_image), len(order))
    np.minimum.at(hit_by, lesion, hitting)
    if rule.repeat_hits == "ignored":
        no_mistake |= is_hit
    else:
        no_mistake[hit_by[hit_by < len(order)]] = True
    return Matches(num_images, order, scores[order], image[order], ~no_mistake, lesion_image, hit_by)


def _check_indices(image: np.ndarray, lesion_image: np.ndarray, num_images: int) -> None:
    for name, index in (("image", image), ("lesion_image", lesion_image)):
        if len(index) and not (index.min() >= 0 and index.max() < num_images):
            raise ValueError(f"{name}: expected indices in [0, {num_images}), got {index.min()} to {index.max()}.")


def _greedy(hitting: np.ndarray, lesion: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of a rank and a lesion, those by which each has the other alone: rank by rank the greatest overlap."""
    taken, pairs, last = set(), [], -1
    for one in np.lexsort((-lesion, -overlap, hitting)).tolist():
        if hitting[one] != last and lesion[one] not in taken:
            last = hitting[one]
            taken.add(lesion[one])
            pairs.append(one)
    return hitting[pairs], lesion[pairs]


def _optimal(
    hitting: np.ndarray, lesion: np.ndarray, overlap: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of a rank and a lesion, those by which each has the other alone: in each image with the greatest sum of
    1 + overlap."""
    from scipy.optimize import linear_sum_assignment

    chosen: list[tuple[int, int]] = []
    order = np.argsort(image[hitting], kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(image[hitting][order])) + 1):
        rows, row = np.unique(lesion[group], return_inverse=True)
        columns, column = np.unique(hitting[group], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = 1 + overlap[group]  # so that a pair more is mostly worth more than a better one
        for r, c in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
            if gain[r, c] > 0:
                chosen.append((columns[c], rows[r]))
    pairs = np.array(chosen, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


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
