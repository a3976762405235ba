"""Confidence intervals by bootstrap over patients, and the paired test between two models.

Pure NumPy. A resample draws as many patients as there are, with replacement; drawn twice, a patient's images, lesions
and detections count twice. Lesions of one patient resemble each other, so that drawing images or lesions instead would
give intervals that are too narrow. Legend: R resamples, P patients, L levels of false positives per image.
"""

import math
from collections.abc import Sequence

import numpy as np

from .matching import Matches

_CHUNK = 1 << 23  # numbers in a temporary array


def resample_patients(num_patients: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each resample has each patient.

    Returns:
        (R, P) int64; each row sums to P. The same arguments give the same numbers.
    """
    if num_patients == 0:
        return np.zeros((resamples, 0), dtype=np.int64)
    shares = np.full(num_patients, 1 / num_patients)
    return np.random.default_rng(seed).multinomial(num_patients, shares, size=resamples)


class ResampledFroc:
    """Sensitivities of every resample, from the matches of the whole split.

    Between the points of a FROC curve that follow each other by false positives the sensitivity does not change, so
    the interpolated curve is a step function: at a level, it counts the hits before the first false positive that is
    one too many. Each resample needs that rank only.
    """

    def __init__(self, matches: Matches, patient: np.ndarray, weights: np.ndarray, fps_per_image: Sequence[float]):
        """
        Args:
            matches: of a split.
            patient: (num_images,) index of each image's patient.
            weights: (R, P), see :func:`resample_patients`.
            fps_per_image: (L,) levels.
        """
        self._matches = matches
        self._patient = patient
        self._weights = weights
        self._levels = np.asarray(fps_per_image, dtype=np.float64)
        self._ranks: dict[bytes, np.ndarray] = {}

    def sensitivities(self, images: np.ndarray | None = None, lesions: np.ndarray | None = None) -> np.ndarray:
        """The sensitivity of every resample at every level, in a part of the split.

        Args:
            images, lesions: those that count, see :meth:`.Matches.select`.

        Returns:
            (R, L) float64; NaN for a resample without lesions.
        """
        matches = self._matches
        images, lesions = matches.select(images, lesions)
        ranks = self._first_ranks_too_many(images)
        hit_by = matches.hit_by[lesions]
        order = np.argsort(hit_by, kind="stable")
        # Of the lesions in the order in which they are hit, how many are hit before each rank.
        kept = np.searchsorted(hit_by[order], ranks, side="left")
        sums = self._sums(self._patient[matches.lesion_image[lesions][order]], kept)
        with np.errstate(invalid="ignore"):
            return sums[:, :-1] / sums[:, -1:].astype(np.float64)

    def _sums(self, patient: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """(R, L + 1): how often each resample has the first ``kept`` (R, L) of these patients, and all of them."""
        small = self._weights.astype(np.int32)
        sums = np.zeros((len(small), kept.shape[1] + 1), dtype=np.int64)
        ends = np.column_stack([kept, np.full(len(kept), len(patient))])
        step = max(1, _CHUNK // max(1, len(patient)))
        for start in range(0, len(small) if len(patient) else 0, step):
            rows = slice(start, start + step)
            total = np.cumsum(small[rows].take(patient, axis=1), axis=1, dtype=np.int32)
            sums[rows] = np.where(ends[rows] > 0, np.take_along_axis(total, np.maximum(ends[rows] - 1, 0), axis=1), 0)
        return sums

    def _first_ranks_too_many(self, images: np.ndarray) -> np.ndarray:
        """(R, L) rank of the first false positive that exceeds each level; the number of detections where none does."""
        key = images.tobytes()
        if key not in self._ranks:
            self._ranks[key] = self._find_ranks(images)
        return self._ranks[key]

    def _find_ranks(self, images: np.ndarray) -> np.ndarray:
        matches, weights = self._matches, self._weights
        num_images = weights @ np.bincount(self._patient[images], minlength=weights.shape[1])
        allowed = _most_at_or_below(self._levels, num_images[:, None])
        ranks = np.flatnonzero(matches.false_positive & images[matches.image])
        patient = self._patient[matches.image[ranks]]
        ranks = np.append(ranks, len(matches.score))
        small = weights.astype(np.int32)
        found = np.empty((len(weights), len(self._levels)), dtype=np.int64)
        step = max(1, _CHUNK // max(1, len(patient)))
        for start in range(0, len(weights), step):
            sums = np.cumsum(small[start : start + step].take(patient, axis=1), axis=1, dtype=np.int32)
            for row, total in enumerate(sums, start):
                found[row] = np.searchsorted(total, allowed[row], side="right")
        return ranks[found]


def _most_at_or_below(levels: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The largest k with k / count <= level, by the same division that makes the points of the curve."""
    count = np.maximum(count, 1)
    k = np.floor(np.minimum(levels * count, 2.0**52))
    k += (k + 1) / count <= levels
    k -= k / count > levels
    return k.astype(np.int64)


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """The middle ``confidence`` of resampled values.

    Args:
        values: (R, ...); NaN, of resamples without lesions, is left out.

    Returns:
        (..., 2), lower and upper limit. NaN where all resamples agree: a bootstrap knows nothing then, as where every
        lesion was found, or where only one patient has any.
    """
    values = np.asarray(values, dtype=np.float64)
    tail = (1 - confidence) / 2
    interval = np.full((*values.shape[1:], 2), np.nan)
    for index in np.ndindex(values.shape[1:]):
        known = values[(slice(None), *index)]
        known = known[~np.isnan(known)]
        if len(known) and known.min() < known.max():
            interval[index] = np.quantile(known, (tail, 1 - tail))
    return interval


def paired_p_value(differences: np.ndarray) -> float:
    """Two-sided: how rarely the resampled difference between two models is on the other side of zero.

    Args:
        differences: (R,) of the same resamples of the same patients; NaN is left out.

    Returns:
        in (0, 1], at least 2 / (R + 1); 1 where no resample differs from zero, NaN where there are none.
    """
    known = differences[~np.isnan(differences)]
    if len(known) == 0:
        return math.nan
    smaller = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(known) + 1))
