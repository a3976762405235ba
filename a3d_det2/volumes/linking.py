"""Detections on neighbouring slices -> what belongs to one lesion. NumPy alone.

The defaults are those that suit the 4,155 lesions in the manual test set of DeepLesion, 800 parts of CTs on which all
lesions are marked: none of them is on a single slice or shorter than 4 mm; another lesion in the next slice overlaps by
an IoU of 0.5 for 2.8 % of them, and by 0.3 for 8.9 %. docs/volumes.md has more of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .lesion import Detection
from .volume import widest_gap

SCORES = ("max", "mean", "noisy-or")
LEAST_GAP = 2.0  # mm; a slice of the stacks that most models see
TOLERANCE = 1e-4  # mm, and of intervals, which files give in single precision


@dataclass(frozen=True)
class LinkingRule:
    """What makes detections on several slices one lesion.

    Attributes:
        iou: least overlap of the boxes of two slices, with the + 1 convention of DeepLesion.
        gap: most mm of a lesion without a detection, between slices that have one; 0 links slices that follow each
            other alone, as they all do up to 10 mm; None is one key slice, or 2 mm where that is more.
        min_slices: least number of slices with detections.
        min_extent: least extent in mm, from the first slice to the last one and half an interval beyond each.
        score: of the lesion, of those of its detections: "max", "mean", or "noisy-or" for 1 - product of (1 - score).
        nms_iou: of two lesions whose boxes overlap by more in three dimensions, the one with the lower score is left
            out; 1 keeps both.

    Raises:
        ValueError: if a value cannot be.
    """

    iou: float = 0.5
    gap: float | None = None
    min_slices: int = 2
    min_extent: float = 4.0
    score: str = "max"
    nms_iou: float = 0.5

    def __post_init__(self):
        if not 0 < self.iou <= 1:
            raise ValueError(f"Expected an iou above 0 and up to 1, got {self.iou}.")
        if self.gap is not None and not (0 <= self.gap < math.inf):
            raise ValueError(f"Expected a gap in mm from 0 on, got {self.gap}.")
        if self.min_slices < 1:
            raise ValueError(f"Expected min_slices from 1 on, got {self.min_slices}.")
        if not 0 <= self.min_extent < math.inf:
            raise ValueError(f"Expected a min_extent in mm from 0 on, got {self.min_extent}.")
        if self.score not in SCORES:
            raise ValueError(f"Unknown score {self.score!r}. Choose one of {', '.join(SCORES)}.")
        if not 0 <= self.nms_iou <= 1:
            raise ValueError(f"Expected an nms_iou from 0 to 1, got {self.nms_iou}.")


@dataclass(eq=False)
class Linked:
    """Detections of one lesion, from head to feet, one on a slice, and their score together."""

    detections: list[Detection]
    score: float


def link_detections(
    detections: Sequence[Detection], positions: np.ndarray, rule: LinkingRule, key_interval: float
) -> list[Linked]:
    """Link detections to lesions.

    From head to feet each detection goes on with the lesion whose last box it overlaps most, one with one, those that
    ended on a nearer slice first; what is left over begins a lesion. The result does not depend on the order of the
    detections, and the time grows with their number on neighbouring slices alone.

    Args:
        detections: of one volume.
        positions: (D,) mm of its slices, increasing.
        rule: what is linked, and what is a lesion.
        key_interval: mm between the slices that the detector saw.

    Returns:
        the lesions, the highest score first.
    """
    gap = rule.gap if rule.gap is not None else max(key_interval, LEAST_GAP)
    by_slice: dict[int, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: (d.index, -d.score, *map(float, d.box))):
        by_slice.setdefault(detection.index, []).append(detection)
    ended, active = [], []
    for index, found in by_slice.items():
        step = positions[index] - positions[max(index - 1, 0)]
        step = max(step, key_interval) if step <= widest_gap(key_interval) else key_interval
        reach = positions[index] - step - gap - TOLERANCE
        ended += [chain for chain in active if positions[chain[-1].index] < reach]
        active = [chain for chain in active if positions[chain[-1].index] >= reach]
        active += _continue(active, found, positions, rule.iou)
    lesions = [
        Linked(chain, _joint_score([d.score for d in chain], rule.score))
        for chain in ended + active
        if len(chain) >= rule.min_slices and _extent(chain, positions, key_interval) >= rule.min_extent - TOLERANCE
    ]
    lesions.sort(key=lambda one: (-one.score, one.detections[0].index, *map(float, one.detections[0].box)))
    return _without_doubles(lesions, positions, key_interval, rule.nms_iou)


def _continue(chains: list[list[Detection]], found: list[Detection], positions, least: float) -> list[list[Detection]]:
    """Append detections of a slice to the chains that they continue; returns new chains of the others."""
    free = set(range(len(found)))
    if chains:
        overlaps = box_ious(np.array([chain[-1].box for chain in chains]), np.array([d.box for d in found]))
        same = np.equal.outer([chain[-1].category for chain in chains], [d.category for d in found])
        pairs = np.argwhere((overlaps >= least) & same)
        last = positions[[chain[-1].index for chain in chains]]
        # Chains and detections stand in an order of their own, which settles ties.
        order = np.lexsort([pairs[:, 1], pairs[:, 0], -overlaps[tuple(pairs.T)], -last[pairs[:, 0]]])
        taken = set()
        for i, j in pairs[order].tolist():
            if i not in taken and j in free:
                chains[i].append(found[j])
                taken.add(i)
                free.remove(j)
    return [[found[j]] for j in sorted(free)]


def box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes, (n, 4) and (m, 4) XYXY that name pixels, so that a side is x2 - x1 + 1: (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low + 1, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2] + 1, 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return common / np.maximum(union, 1e-12)


def _extent(chain: list[Detection], positions: np.ndarray, key_interval: float) -> float:
    return float(positions[chain[-1].index] - positions[chain[0].index]) + key_interval


def _joint_score(scores: list[float], how: str) -> float:
    if how == "max":
        return max(scores)
    return float(np.mean(scores)) if how == "mean" else float(1 - np.prod(1 - np.array(scores)))


def _without_doubles(lesions: list[Linked], positions: np.ndarray, key_interval: float, most: float) -> list[Linked]:
    """Leave out lesions that overlap one of the same class with a higher score by more than ``most``."""
    if most >= 1 or len(lesions) < 2:
        return lesions
    flat = np.array([enclosing_box([d.box for d in one.detections]) for one in lesions])
    ends = np.array([[positions[one.detections[i].index] for i in (0, -1)] for one in lesions])
    ends += [-key_interval / 2, key_interval / 2]
    classes = np.array([one.detections[0].category for one in lesions])
    is_kept = np.ones(len(lesions), dtype=bool)
    areas = (flat[:, 2:] - flat[:, :2] + 1).prod(axis=1)
    volumes = areas * (ends[:, 1] - ends[:, 0])
    for i in range(len(lesions)):
        if not is_kept[i]:
            continue
        rest = i + 1 + np.flatnonzero(is_kept[i + 1 :] & (classes[i + 1 :] == classes[i]))
        high, low = np.minimum(flat[rest, 2:], flat[i, 2:]), np.maximum(flat[rest, :2], flat[i, :2])
        depth = np.minimum(ends[rest, 1], ends[i, 1]) - np.maximum(ends[rest, 0], ends[i, 0])
        common = np.clip(high - low + 1, 0, None).prod(axis=1) * np.clip(depth, 0, None)
        is_kept[rest[common > most * (volumes[rest] + volumes[i] - common)]] = False
    return [one for one, kept in zip(lesions, is_kept, strict=True) if kept]


def enclosing_box(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest box, (4,), around boxes."""
    boxes = np.array(boxes)
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
