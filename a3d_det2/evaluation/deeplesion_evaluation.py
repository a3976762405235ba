import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from .detections import detections_from_results
from .froc import FPS_PER_IMAGE
from .matching import MatchRule
from .summary import Evaluation, nan_to_none
from .tables import score_table
from .visualization import plot_froc

# Averages by stratum among the metrics; without "-", which some of Detectron2's writers hide.
STRATUM_METRICS = {
    "avg_thin": ("slice thickness", "<= 2 mm"),
    "avg_thick": ("slice thickness", "> 2 mm"),
    "avg_small": ("lesion diameter", "< 10 mm"),
    "avg_medium": ("lesion diameter", "10 to 30 mm"),
    "avg_large": ("lesion diameter", "> 30 mm"),
}


class DeepLesionEvaluator(DatasetEvaluator):
    """FROC, with COCO's AP50 beside it, of a dataset whose dicts come from :func:`load_deeplesion`.

    It writes to ``output_dir``:
        froc.json: all that :meth:`.Evaluation.summary` says: sensitivities, their average over 0.5, 1, 2 and 4 FPs per
            image, by stratum, with confidence intervals; score thresholds; AP50; the quality of masks.
        froc.png: the curves of all slices and by slice thickness.
        coco_instances_results.json: all detections, in COCO's results format; ``image_id`` is the File_name.
            ``tools/evaluate.py`` scores it again, by any rule, compares it with others and makes the report.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        rule: MatchRule | None = None,
        fps_per_image: Sequence[float] = FPS_PER_IMAGE,
        resamples: int = 1000,
    ):
        """
        Args:
            dataset_name: a registered dataset; its annotations are the ground truth. A dict without annotations is an
                image without lesions. ``lesion_types`` of its metadata names the lesion types.
            output_dir: where to write; None writes nothing.
            distributed: gather the detections of all processes and evaluate in the main process; otherwise each
                process evaluates its own.
            rule: what a hit is; None is the published one.
            fps_per_image: where to report the sensitivity.
            resamples: of the bootstrap over patients that the confidence intervals are made by; 0 gives none.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._settings = {"rule": rule, "fps_per_image": fps_per_image, "resamples": resamples}
        self._images = DatasetCatalog.get(dataset_name)
        self._lesion_types = MetadataCatalog.get(dataset_name).get("lesion_types")
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        self._results: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances", which have pred_boxes, scores and pred_classes.
        """
        for image, output in zip(inputs, outputs, strict=True):
            self._results += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            In the main process; {} in the others. What has no lesions has no value and is left out.
                froc: avg, sensitivity_0.5, ..., and avg_thin, avg_thick (slices up to and above 2 mm), avg_small,
                    avg_medium, avg_large (lesions below 10 mm, to 30 mm, above), in [0, 1].
                bbox: AP50, in percent.
                masks, with predicted masks: dice, diameter_error_mm (absolute), means over the lesions found.

        Raises:
            ValueError: if a detection is on an image that the dataset does not have.
        """
        results = self._results
        if self._distributed:
            comm.synchronize()
            results = list(itertools.chain.from_iterable(comm.gather(results, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        image_ids = [image["image_id"] for image in self._images]
        detections = detections_from_results(results, image_ids, f"results on {self._dataset_name}")
        evaluation = Evaluation(self._images, detections, lesion_types=self._lesion_types, **self._settings)
        for warning in evaluation.warnings:
            self._logger.warning(warning)
        summary = {"dataset": self._dataset_name, **evaluation.summary()}
        self._logger.info(f"Sensitivity (%) at false positives per image:\n{score_table(summary)}")
        if self._output_dir:
            self._write(results, evaluation, summary)
        return self._metrics(summary)

    def _metrics(self, summary: dict) -> OrderedDict:
        froc = {"avg": summary["average"]}
        for level, sensitivity in zip(summary["fps_per_image"], summary["sensitivity"], strict=True):
            froc[f"sensitivity_{level:g}"] = sensitivity
        for name, (group, stratum) in STRATUM_METRICS.items():
            if group in summary["strata"]:
                froc[name] = summary["strata"][group][stratum]["average"]
        metrics = {"froc": froc, "bbox": {"AP50": summary["AP50"]}}
        if "masks" in summary:
            masks = summary["masks"]
            error = masks["absolute_diameter_error_mm"]["mean"]
            metrics["masks"] = {"dice": masks["dice"]["mean"], "diameter_error_mm": error}
        known = {task: {k: v for k, v in values.items() if not math.isnan(v)} for task, values in metrics.items()}
        return OrderedDict((task, values) for task, values in known.items() if values)

    def _write(self, results: list[dict], evaluation: Evaluation, summary: dict) -> None:
        os.makedirs(self._output_dir, exist_ok=True)
        for name, content in (("coco_instances_results.json", results), ("froc.json", nan_to_none(summary))):
            with open(os.path.join(self._output_dir, name), "w") as f:
                json.dump(content, f, indent=2 if name == "froc.json" else None)
        curves = {"all": evaluation.curve()}
        for name, stratum in evaluation.strata.get("slice thickness", {}).items():
            curves[name] = evaluation.curve(stratum)
        plot_froc(curves).savefig(os.path.join(self._output_dir, "froc.png"), dpi=150)
        self._logger.info(f"Wrote froc.json, froc.png and coco_instances_results.json to {self._output_dir}")
