"""FROC: sensitivity over false positives per image, as the DeepLesion papers since MULAN compute it.

Pure NumPy. What hits what is in :mod:`.matching`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .matching import Matches, MatchRule, match_per_image

FPS_PER_IMAGE = (0.5, 1, 2, 4, 8, 16)
AVERAGED_FPS = (0.5, 1, 2, 4)  # "Avg." of the papers is the mean over these


@dataclass(frozen=True)
class FrocCurve:
    """One point per detection, by falling score.

    Attributes:
        fps_per_image: (total detections,) false positives so far / images.
        sensitivity: (total detections,) lesions hit so far / lesions; NaN where there are no lesions.
        score: (total detections,) score of the detection.
        num_images, num_lesions: the two denominators.
    """

    fps_per_image: np.ndarray
    sensitivity: np.ndarray
    score: np.ndarray
    num_images: int
    num_lesions: int

    def at(self, fps_per_image: float | Sequence[float]) -> np.ndarray:
        """Sensitivity at the given false positives per image, interpolated linearly over the points.

        Where several points share a value, exactly there the last and highest sensitivity counts, and on the way to
        it from the left the first. Beyond the last point the last sensitivity goes on; before the first point it is 0.
        NaN where there are no lesions.
        """
        levels = np.asarray(fps_per_image, dtype=np.float64)
        if self.num_lesions == 0:
            return np.full(levels.shape, np.nan)
        if len(self.sensitivity) == 0:
            return np.zeros(levels.shape)
        return np.interp(levels, self.fps_per_image, self.sensitivity, left=0.0)

    def score_threshold(self, fps_per_image: float) -> float:
        """The lowest score that keeps the false positives at or below a level, for ``score >= threshold``.

        NaN where no score does, or where there are no detections. Beyond the end of the curve it is the lowest score.
        """
        kept = int(np.searchsorted(self.fps_per_image, fps_per_image, side="right"))
        if kept < len(self.score):
            # All detections with the score of the first one that is too many go with it.
            kept = int(np.searchsorted(-self.score, -self.score[kept], side="left"))
        return float(self.score[kept - 1]) if kept else float("nan")


def froc_curve(matches: Matches, images: np.ndarray | None = None, lesions: np.ndarray | None = None) -> FrocCurve:
    """Accumulate hits and false positives by falling score.

    Args:
        matches: of a split.
        images, lesions: those that count, see :meth:`.Matches.select`.
    """
    images, lesions = matches.select(images, lesions)
    counted = images[matches.image]
    num_detections, num_images, num_lesions = len(matches.score), int(images.sum()), int(lesions.sum())
    hits = np.bincount(matches.hit_by[lesions], minlength=num_detections + 1)[:num_detections]
    with np.errstate(invalid="ignore"):
        sensitivity = np.cumsum(hits[counted]) / np.float64(num_lesions)
    fps_per_image = np.cumsum(matches.false_positive[counted]) / max(num_images, 1)
    return FrocCurve(fps_per_image, sensitivity, matches.score[counted], num_images, num_lesions)


def froc_sensitivities(
    detections: Sequence[np.ndarray],
    ground_truths: Sequence[np.ndarray],
    fps_per_image: Sequence[float] = FPS_PER_IMAGE,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """Sensitivities at the given false positives per image, by the published rule.

    Args:
        detections: per image an (n, 5) array of x1, y1, x2, y2, score.
        ground_truths: per image an (m, 4) array of x1, y1, x2, y2.
        fps_per_image: the levels; see :meth:`FrocCurve.at`.
        iou_threshold: lowest IoU of a hit, with the +1 pixel convention. Other rules:
            ``froc_curve(match_per_image(detections, ground_truths, MatchRule(...))).at(fps_per_image)``.

    Returns:
        (len(fps_per_image),) float64 in [0, 1]; NaN where there are no lesions.

    Raises:
        ValueError: see :func:`match_per_image`.
    """
    matches = match_per_image(detections, ground_truths, MatchRule(threshold=iou_threshold))
    return froc_curve(matches).at(fps_per_image)
