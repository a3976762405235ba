"""All figures of one result on one split, and of the difference between two results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

from .average_precision import average_precision
from .bootstrap import percentile_interval
from .detection_reader import Detections
from .froc import AVERAGED_FPS, FPS_PER_IMAGE
from .froc_evaluation import CONFIDENCE, FrocEvaluation, compare, nan_to_none
from .mask_quality import MaskQuality, mask_quality
from .matching import MatchRule, match
from .strata import Stratum, build_strata

__all__ = ["CONFIDENCE", "SplitEvaluation", "compare", "nan_to_none"]

NO_PATIENTS = (
    "The ground truth does not say which images are of the same patient. The intervals are by resampled images, and "
    "too narrow where a patient has several."
)


class SplitEvaluation(FrocEvaluation):
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
        lesions = [lesion["bbox"] for image in images for lesion in image.get("annotations", ())]
        self.lesion_boxes = np.array(lesions, dtype=np.float64).reshape(-1, 4)
        lesion_image = np.repeat(np.arange(len(images)), [len(image.get("annotations", ())) for image in images])
        matches = match(
            detections.boxes,
            detections.scores,
            detections.image,
            self.lesion_boxes,
            lesion_image,
            len(images),
            self.rule,
        )
        super().__init__(
            matches,
            [image.get("patient") for image in images],
            [image["image_id"] for image in images],
            build_strata(images, lesion_types, context),
            fps_per_image,
            AVERAGED_FPS,
            {"lesions": lesions, "rule": self.rule},
            resamples,
            seed,
        )
        self.warnings = [*detections.warnings, *([] if self.by_patient else [NO_PATIENTS])]

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
            **self.scores(Stratum()),
            "last_fps_per_image": float(curve.fps_per_image[-1]) if len(curve.score) else 0.0,
            "operating_points": [self.operating_point(curve, level) for level in self.fps_per_image],
            "AP50": average_precision(
                self.lesion_boxes, self.matches.lesion_image, self.matches.num_images, self.detections
            ),
            **({} if self.masks is None else {"masks": self._mask_scores(self.masks)}),
            "strata": {
                group: {name: self.scores(stratum) for name, stratum in strata.items()}
                for group, strata in self.strata.items()
            },
            "num_detections": len(self.detections.scores),
            "num_images_without_detections": len(self.images) - detected,
            "warnings": self.warnings,
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
