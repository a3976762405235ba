"""What every evaluation by FROC has: sensitivities of parts of a match table with their intervals, operating points,
and the difference between two."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from .bootstrap import ResampledFroc, paired_p_value, percentile_interval, resample_patients
from .froc import FrocCurve, froc_curve
from .matching import Matches
from .strata import Stratum

CONFIDENCE = 0.95


class FrocEvaluation:
    """Detections that were matched once, on images or on volumes.

    Attributes:
        matches: the match table.
        strata: group -> name -> stratum.
        fps_per_image: where the sensitivity is reported.
        averaged_fps: levels that the average is over.
        by_patient: whether patients are resampled; images are otherwise.
        patient: (num_images,) index of each image's patient.
        settings: what two evaluations that are compared have in common.
    """

    def __init__(
        self,
        matches: Matches,
        patients: Sequence,
        image_ids: Sequence,
        strata: Mapping[str, Mapping[str, Stratum]],
        fps_per_image: Sequence[float],
        averaged_fps: Sequence[float],
        settings: Mapping,
        resamples: int,
        seed: int,
    ):
        """
        Args:
            matches, strata, fps_per_image, averaged_fps: as given.
            patients: of each image; None for all of them if that is not known.
            image_ids: of each image.
            settings: further ones, beside those that are here.
            resamples, seed: of the bootstrap.

        Raises:
            ValueError: if some images tell their patient and others do not.
        """
        self.matches, self.strata = matches, strata
        self.fps_per_image, self.averaged_fps = tuple(fps_per_image), tuple(averaged_fps)
        self.settings = {
            "image_ids": list(image_ids),
            "patients": list(patients),
            **settings,
            "fps_per_image": self.fps_per_image,
            "resamples": resamples,
            "seed": seed,
        }
        self.by_patient = None not in patients
        if not self.by_patient and set(patients) != {None}:
            first = image_ids[list(patients).index(None)]
            raise ValueError(
                f"Expected the patient of every image or of none. {list(patients).count(None)} of {len(patients)} "
                f"images have none; {first!r} is the first."
            )
        index = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
        self.patient = np.array([index[p] for p in patients], int) if self.by_patient else np.arange(len(patients))

    def curve(self, stratum: Stratum | None = None) -> FrocCurve:
        """The FROC curve of a stratum; None is the whole split."""
        stratum = stratum or Stratum()
        return froc_curve(self.matches, stratum.images, stratum.lesions)

    def sensitivities(self, stratum: Stratum | None = None) -> np.ndarray:
        """(levels + 1,): the sensitivities at ``fps_per_image`` and, last, their average over ``averaged_fps``."""
        curve = self.curve(stratum)
        return np.append(curve.at(self.fps_per_image), curve.at(self.averaged_fps).mean())

    def resampled(self, stratum: Stratum | None = None) -> np.ndarray:
        """(resamples, levels + 1): what :meth:`sensitivities` gives, for each resample."""
        stratum = stratum or Stratum()
        values = self._froc.sensitivities(stratum.images, stratum.lesions)
        levels = len(self.fps_per_image)
        return np.column_stack([values[:, :levels], values[:, levels:].mean(axis=1)])

    @cached_property
    def weights(self) -> np.ndarray:
        """(resamples, patients), see :func:`.resample_patients`."""
        return resample_patients(
            int(self.patient.max(initial=-1)) + 1, self.settings["resamples"], self.settings["seed"]
        )

    @cached_property
    def _froc(self) -> ResampledFroc:
        return ResampledFroc(self.matches, self.patient, self.weights, [*self.fps_per_image, *self.averaged_fps])

    def scores(self, stratum: Stratum) -> dict:
        images, lesions = self.matches.select(stratum.images, stratum.lesions)
        patients = np.unique(self.patient[self.matches.lesion_image[lesions]])
        return {
            "num_images": int(images.sum()),
            "num_lesions": int(lesions.sum()),
            "num_patients": len(patients) if self.by_patient else None,
            **_by_level("", self.sensitivities(stratum)),
            **_by_level("_interval", percentile_interval(self.resampled(stratum), CONFIDENCE)),
        }

    def operating_point(self, curve: FrocCurve, level: float) -> dict:
        """The threshold that keeps to a level of false positives, and what detections from that score on reach."""
        threshold = curve.score_threshold(level)
        kept = 0 if math.isnan(threshold) else int(np.searchsorted(-curve.score, -threshold, side="right"))
        reached = (float(curve.fps_per_image[kept - 1]), float(curve.sensitivity[kept - 1])) if kept else (0.0, 0.0)
        return {
            "level": level,
            "score_threshold": threshold,
            "fps_per_image": reached[0],
            "sensitivity": reached[1] if curve.num_lesions else math.nan,
            "detections_per_image": kept / max(curve.num_images, 1),
        }


def compare(first: FrocEvaluation, second: FrocEvaluation) -> dict:
    """Sensitivity of ``first`` minus that of ``second``, on the same resampled patients.

    Returns:
        for all, and in ``strata`` for each stratum: sensitivity and average, each a difference with
        its 95 % interval and two-sided p-value. Nothing corrects for the number of comparisons.

    Raises:
        ValueError: if the two were not made of the same images, rule, levels and resamples.
    """
    for name, value in first.settings.items():
        if value != second.settings.get(name):
            raise ValueError(f"Two results are compared by the same {name}. These have different ones.")
    return {
        **_difference(first, second, Stratum()),
        "strata": {
            group: {name: _difference(first, second, stratum) for name, stratum in strata.items()}
            for group, strata in first.strata.items()
        },
    }


def _difference(first: FrocEvaluation, second: FrocEvaluation, stratum: Stratum) -> dict:
    resampled = first.resampled(stratum) - second.resampled(stratum)
    return {
        **_by_level("", first.sensitivities(stratum) - second.sensitivities(stratum)),
        **_by_level("_interval", percentile_interval(resampled, CONFIDENCE)),
        **_by_level("_p_value", np.array([paired_p_value(column) for column in resampled.T])),
    }


def _by_level(suffix: str, values: np.ndarray) -> dict:
    """Name what is known of each level, and in the last place of the average."""
    *levels, average = values.tolist()
    return {f"sensitivity{suffix}": levels, f"average{suffix}": average}


def nan_to_none(value):
    """Nested dicts and lists with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
