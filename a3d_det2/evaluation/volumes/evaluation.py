"""FROC per volume by one rule, with intervals, strata, volumes without lesions, and agreement of measurements."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..froc_evaluation import CONFIDENCE, FrocEvaluation
from ..matching import match_pairs
from ..strata import Stratum
from .agreement import Agreement
from .results import FoundVolume
from .rules import VolumeRule
from .truth import TrueVolume

FPS_PER_VOLUME = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # the mean over these is LUNA16's CPM
MEASURES = {"long axis, mm": "long_mm", "short axis, mm": "short_mm", "volume, mm3": "volume_mm3"}
NO_PATIENTS = (
    "The ground truth does not say which volumes are of the same patient. The intervals are by resampled volumes."
)


class VolumeEvaluation(FrocEvaluation):
    """What was found in volumes, matched once by a rule.

    Attributes:
        volumes, found: as given.
        rule: as given.
        lesion_volume, lesion_number: (lesions,) of those in the match table, their volume and place in it.
        warnings: of what the ground truth lacks.
    """

    def __init__(
        self,
        volumes: Sequence[TrueVolume],
        found: Sequence[FoundVolume],
        rule: VolumeRule,
        *,
        fps_per_volume: Sequence[float] = FPS_PER_VOLUME,
        resamples: int = 1000,
        seed: int = 0,
    ):
        """
        Args:
            volumes: all that were looked at, with and without lesions.
            found: in each of them.
            rule: what a hit is.
            fps_per_volume: where to report the sensitivity, and what the average is over.
            resamples, seed: of the bootstrap; see :class:`.SplitEvaluation`.

        Raises:
            ValueError: if a volume is there twice, ``found`` is of other volumes, the rule needs what is not known, or
                some volumes tell their patient and others do not.
        """
        ids = [volume.id for volume in volumes]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Expected each volume once, got {next(i for i in ids if ids.count(i) > 1)!r} twice.")
        if ids != [one.id for one in found]:
            raise ValueError("Expected what was found in each of the volumes, in their order, got other volumes.")
        self.volumes, self.found, self.rule = volumes, found, rule
        for one, volume in zip(found, volumes, strict=True):
            if problem := rule.problem(one, volume):
                raise ValueError(f"{problem}.")
        matches = self._match()
        excluded = self._all("excluded").astype(bool)
        counts = [len(volume.boxes) for volume in volumes]
        self.lesion_volume = np.repeat(np.arange(len(volumes)), counts)[~excluded]
        self.lesion_number = np.concatenate([np.zeros(0, int), *map(np.arange, counts)])[~excluded]
        lesions = [volume.boxes.tolist() for volume in volumes]
        super().__init__(
            matches,
            [volume.patient for volume in volumes],
            ids,
            self._strata(~excluded),
            fps_per_volume,
            fps_per_volume,
            {"lesions": lesions, "rule": rule.name},
            resamples,
            seed,
        )
        self.warnings = [] if self.by_patient else [NO_PATIENTS]

    def _all(self, name: str) -> np.ndarray:
        """An attribute of all lesions, one volume after the other."""
        return np.concatenate([np.zeros(0), *(getattr(volume, name) for volume in self.volumes)])

    def _match(self):
        detection, lesion, overlap, image, first = [], [], [], [], 0
        lesions_before = 0
        for index, (one, volume) in enumerate(zip(self.found, self.volumes, strict=True)):
            n, m = len(one.boxes), len(volume.boxes)
            if n and m:
                values = self.rule.overlap(one, volume, self.rule.rule)
                rows, columns = np.nonzero(values >= self.rule.rule.least)
                detection.append(rows + first)
                lesion.append(columns + lesions_before)
                overlap.append(values[rows, columns])
            image.append(np.full(n, index))
            first, lesions_before = first + n, lesions_before + m
        whole = np.zeros(0, dtype=np.int64)
        return match_pairs(
            np.concatenate([np.zeros(0), *(one.scores for one in self.found)]),
            np.concatenate([whole, *image]),
            np.repeat(np.arange(len(self.volumes)), [len(volume.boxes) for volume in self.volumes]),
            len(self.volumes),
            np.concatenate([whole, *detection]),
            np.concatenate([whole, *lesion]),
            np.concatenate([np.zeros(0), *overlap]),
            self.rule.rule,
            self._all("excluded").astype(bool),
        )

    def _strata(self, counted: np.ndarray) -> dict[str, dict[str, Stratum]]:
        diameter, height = (self._all(name)[counted] for name in ("long_mm", "heights"))
        diameter = np.where(diameter < 0, np.nan, diameter)
        interval = np.array([volume.slice_interval for volume in self.volumes])
        groups = {
            "lesion diameter": {
                "< 10 mm": Stratum(lesions=diameter < 10),
                "10 to 30 mm": Stratum(lesions=(diameter >= 10) & (diameter <= 30)),
                "> 30 mm": Stratum(lesions=diameter > 30),
            },
            "slice interval": {
                "<= 2 mm": Stratum(interval <= 2),
                "2 to 4 mm": Stratum((interval > 2) & (interval < 4)),
                ">= 4 mm": Stratum(interval >= 4),
            },
            "part of the volume": {
                "upper third": Stratum(lesions=height < 1 / 3),
                "middle third": Stratum(lesions=(height >= 1 / 3) & (height < 2 / 3)),
                "lower third": Stratum(lesions=height >= 2 / 3),
            },
        }
        known = {"lesion diameter": diameter, "slice interval": interval, "part of the volume": height}
        return {name: strata for name, strata in groups.items() if (~np.isnan(known[name])).any()}

    @cached_property
    def has_no_lesion(self) -> np.ndarray:
        """(volumes,) bool: those without a lesion that counts."""
        return np.bincount(self.matches.lesion_image, minlength=len(self.volumes)) == 0

    def share_with_false_positives(self, threshold: float) -> float:
        """Of the volumes without lesions, the share that has a false positive of at least a score; NaN without such
        volumes, 0 for NaN."""
        healthy = self.has_no_lesion
        if not healthy.any():
            return np.nan
        hit = self.matches.false_positive & (self.matches.score >= threshold)
        return float(np.isin(np.flatnonzero(healthy), self.matches.image[hit]).mean())

    def agreement(self) -> dict[str, Agreement]:
        """Of the lesions that were hit, what the first one to hit says of their measures, by the names of
        ``MEASURES``; those of which neither is known are left out."""
        was_hit = np.flatnonzero(self.matches.hit_by < len(self.matches.detection))
        given = self.matches.detection[self.matches.hit_by[was_hit]]
        result = {}
        for title, name in MEASURES.items():
            found = np.concatenate([np.zeros(0), *(getattr(one, name) for one in self.found)])[given]
            counted = ~self._all("excluded").astype(bool)
            truth = self._all(name)[counted][was_hit]
            known = ~np.isnan(found) & ~np.isnan(truth)
            if known.any():
                result[title] = Agreement(truth[known], found[known])
        return result

    def summary(self) -> dict:
        """What evaluation.json says of a rule; NaN where there is nothing to tell.

        Returns:
            name, title and source of the rule, the least overlap of a hit, assignment and repeat hits; fps_per_image
            and averaged_fps_per_image (levels per volume); confidence, resamples, seed, resampled; numbers, sensitivity
            and average with their intervals, of all and by stratum; operating_points, each with the share of volumes
            without lesions that have a false positive; num_volumes_without_lesions, num_results, agreement, warnings.
        """
        curve = self.curve()
        points = [self.operating_point(curve, level) for level in self.fps_per_image]
        for point in points:
            point["healthy_with_false_positives"] = self.share_with_false_positives(point["score_threshold"])
        return {
            "name": self.rule.name,
            "title": self.rule.title,
            "source": self.rule.source,
            "rule": {
                "least": self.rule.rule.least,
                "assignment": self.rule.rule.assignment,
                "repeat_hits": self.rule.rule.repeat_hits,
            },
            "fps_per_image": list(self.fps_per_image),
            "averaged_fps_per_image": list(self.averaged_fps),
            "confidence": CONFIDENCE,
            "resamples": self.settings["resamples"],
            "seed": self.settings["seed"],
            "resampled": "patients" if self.by_patient else "volumes",
            **self.scores(Stratum()),
            "operating_points": points,
            "num_volumes_without_lesions": int(self.has_no_lesion.sum()),
            "num_results": len(self.matches.score),
            "strata": {
                group: {name: self.scores(stratum) for name, stratum in strata.items()}
                for group, strata in self.strata.items()
            },
            "agreement": {name: one.summary() for name, one in self.agreement().items()},
            "warnings": self.warnings,
        }
