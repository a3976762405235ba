"""All figures of one result on one split, and of the difference between two results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

from .average_precision import average_precision
from .bootstrap import ResampledFroc, paired_p_value, percentile_interval, resample_patients
from .detection_reader import Detections
from .froc import AVERAGED_FPS, FPS_PER_IMAGE, FrocCurve, froc_curve
from .mask_quality import MaskQuality, mask_quality
from .matching import MatchRule, match
from .strata import Stratum, build_strata

CONFIDENCE = 0.95
NO_PATIENTS = (
    "The ground truth does not say which images are of the same patient. The intervals are by resampled images, and "
    "too narrow where a patient has several."
)


class SplitEvaluation:
    """Detections on the images of a split, matched once.

    Attributes:
        images: as given.
        detections: as given.
        rule: as given.
        fps_per_image: as given.
        matches: the match table; its lesions are the annotations, one image after the other.
        lesion_boxes: (m, 4) XYXY.
        strata: group -> name -> stratum, see :func:`.build_strata`.
        warnings: of the detections, and of what the ground truth lacks.
        settings: what two evaluations that are compared have in common.
        by_patient: whether the images tell their patients, which are then resampled; the images are otherwise.
        patient: (num_images,) index of each image's patient.
    """

    def __init__(
        self,
        images: list[dict],
        detections: Detections,
        *,
        rule: MatchRule | None = None,
        fps_per_image: Sequence[float] = FPS_PER_IMAGE,
        resamples: int = 1000,
        seed: int = 0,
        lesion_types: Mapping[int, str] | None = None,
        context: float = 6.0,
    ):
        """
        Args:
            images: dataset dicts as :func:`load_deeplesion` makes them; those without annotations have no lesions.
            detections: on these images.
            rule: what hits; None is the published one.
            fps_per_image: where to report the sensitivity.
            resamples: of the bootstrap; 0 gives no intervals.
            seed: of the bootstrap; the same one draws the same patients for every result on the same images.
            lesion_types, context: see :func:`.build_strata`.

        Raises:
            ValueError: if some images tell their patient and others do not; see also :func:`.match`.
        """
        self.images = images
        self.detections = detections
        self.rule = rule or MatchRule()
        self.fps_per_image = tuple(fps_per_image)
        lesions = [lesion["bbox"] for image in images for lesion in image.get("annotations", ())]
        self.lesion_boxes = np.array(lesions, dtype=np.float64).reshape(-1, 4)
        lesion_image = np.repeat(np.arange(len(images)), [len(image.get("annotations", ())) for image in images])
        self.matches = match(
            detections.boxes,
            detections.scores,
            detections.image,
            self.lesion_boxes,
            lesion_image,
            len(images),
            self.rule,
        )
        self.strata = build_strata(images, lesion_types, context)
        patients = [image.get("patient") for image in images]
        self.settings = {
            "image_ids": [image["image_id"] for image in images],
            "patients": patients,
            "lesions": lesions,
            "rule": self.rule,
            "fps_per_image": self.fps_per_image,
            "resamples": resamples,
            "seed": seed,
        }
        self.by_patient = None not in patients
        if not self.by_patient and set(patients) != {None}:
            first = images[patients.index(None)]["image_id"]
            raise ValueError(
                f"Expected the patient of every image or of none. {patients.count(None)} of {len(images)} images have "
                f"none; {first!r} is the first."
            )
        index = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
        self.patient = np.array([index[p] for p in patients], int) if self.by_patient else np.arange(len(images))
        self.warnings = [*detections.warnings, *([] if self.by_patient else [NO_PATIENTS])]

    def curve(self, stratum: Stratum | None = None) -> FrocCurve:
        """The FROC curve of a stratum; None is the whole split."""
        stratum = stratum or Stratum()
        return froc_curve(self.matches, stratum.images, stratum.lesions)

    def sensitivities(self, stratum: Stratum | None = None) -> np.ndarray:
        """(levels + 1,): the sensitivities at ``fps_per_image`` and, last, the average of the published levels."""
        curve = self.curve(stratum)
        return np.append(curve.at(self.fps_per_image), curve.at(AVERAGED_FPS).mean())

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
        return ResampledFroc(self.matches, self.patient, self.weights, [*self.fps_per_image, *AVERAGED_FPS])

    @cached_property
    def masks(self) -> MaskQuality | None:
        """How well the masks fit; None where no detection has one."""
        has_masks = any(mask is not None for mask in self.detections.masks)
        return mask_quality(self.images, self.matches, self.detections) if has_masks else None

    def summary(self) -> dict:
        """What ``froc.json`` holds; NaN where there is nothing to tell.

        Returns:
            rule, fps_per_image, averaged_fps_per_image, confidence, resamples, seed, resampled ("patients" or
            "images"); num_images, num_lesions, num_patients (with lesions; None where that is not known), sensitivity
            and average with their intervals; last_fps_per_image, where the curve ends; operating_points; AP50; masks,
            where there are any; strata: group -> name -> numbers, sensitivity and average as above; num_detections,
            num_images_without_detections, warnings.
        """
        curve = self.curve()
        detected = len(np.unique(self.detections.image))
        return {
            "rule": asdict(self.rule),
            "fps_per_image": list(self.fps_per_image),
            "averaged_fps_per_image": list(AVERAGED_FPS),
            "confidence": CONFIDENCE,
            "resamples": self.settings["resamples"],
            "seed": self.settings["seed"],
            "resampled": "patients" if self.by_patient else "images",
            **self._scores(Stratum()),
            "last_fps_per_image": float(curve.fps_per_image[-1]) if len(curve.score) else 0.0,
            "operating_points": [self._operating_point(curve, level) for level in self.fps_per_image],
            "AP50": average_precision(
                self.lesion_boxes, self.matches.lesion_image, self.matches.num_images, self.detections
            ),
            **({} if self.masks is None else {"masks": self._mask_scores(self.masks)}),
            "strata": {
                group: {name: self._scores(stratum) for name, stratum in strata.items()}
                for group, strata in self.strata.items()
            },
            "num_detections": len(self.detections.scores),
            "num_images_without_detections": len(self.images) - detected,
            "warnings": self.warnings,
        }

    def _scores(self, stratum: Stratum) -> dict:
        images, lesions = self.matches.select(stratum.images, stratum.lesions)
        patients = np.unique(self.patient[self.matches.lesion_image[lesions]])
        return {
            "num_images": int(images.sum()),
            "num_lesions": int(lesions.sum()),
            "num_patients": len(patients) if self.by_patient else None,
            **_by_level("", self.sensitivities(stratum)),
            **_by_level("_interval", percentile_interval(self.resampled(stratum), CONFIDENCE)),
        }

    def _operating_point(self, curve: FrocCurve, level: float) -> dict:
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

    def _mask_scores(self, masks: MaskQuality) -> dict:
        """Mean, its interval, and median of what is measured of masks, over the lesions that were found."""
        measures = {
            "dice": masks.dice,
            "diameter_error_mm": masks.diameter_error,
            "absolute_diameter_error_mm": np.abs(masks.diameter_error),
        }
        scores: dict = {"num_lesions": len(masks.image)}
        for name, values in measures.items():
            known = ~np.isnan(values)
            patient, values, patients = self.patient[masks.image[known]], values[known], self.weights.shape[1]
            with np.errstate(invalid="ignore"):  # resamples without any of these lesions
                sums = self.weights @ np.bincount(patient, values, patients)
                means = sums / (self.weights @ np.bincount(patient, minlength=patients))
            scores[name] = {
                "mean": float(np.mean(values)) if len(values) else math.nan,
                "median": float(np.median(values)) if len(values) else math.nan,
                "mean_interval": percentile_interval(means, CONFIDENCE).tolist(),
            }
        return scores


def compare(first: SplitEvaluation, second: SplitEvaluation) -> dict:
    """Sensitivity of ``first`` minus that of ``second``, on the same resampled patients.

    Returns:
        for all, and in ``strata`` for each stratum: sensitivity and average, each a difference with
        its 95 % interval and two-sided p-value. Nothing corrects for the number of comparisons.

    Raises:
        ValueError: if the two were not made of the same images, rule, levels and resamples.
    """
    for name in ("image_ids", "patients", "lesions", "rule", "fps_per_image", "resamples", "seed"):
        if first.settings[name] != second.settings[name]:
            raise ValueError(f"Two results are compared by the same {name}. These have different ones.")
    return {
        **_difference(first, second, Stratum()),
        "strata": {
            group: {name: _difference(first, second, stratum) for name, stratum in strata.items()}
            for group, strata in first.strata.items()
        },
    }


def _difference(first: SplitEvaluation, second: SplitEvaluation, stratum: Stratum) -> dict:
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
