"""Results of a model on a dataset -> the files and metrics of an evaluation, for every engine."""

import json
import logging
import math
import os

from ..files import replacing
from .detection_reader import detections_from_results
from .report.figures import plot_froc
from .report.tables import score_table
from .split_evaluation import SplitEvaluation, nan_to_none

# Averages by stratum among the metrics; without "-", which some of Detectron2's writers hide.
STRATUM_METRICS = {
    "avg_thin": ("slice thickness", "<= 2 mm"),
    "avg_thick": ("slice thickness", "> 2 mm"),
    "avg_small": ("lesion diameter", "< 10 mm"),
    "avg_medium": ("lesion diameter", "10 to 30 mm"),
    "avg_large": ("lesion diameter", "> 30 mm"),
}
_logger = logging.getLogger(__name__)


def evaluate_results(
    results: list[dict], images: list[dict], dataset_name: str, output_dir: str | None = None, **settings
) -> dict[str, dict[str, float]]:
    """Score results, log the table, and write to ``output_dir``:

        froc.json: all that :meth:`.SplitEvaluation.summary` says: sensitivities, their average over 0.5, 1, 2 and 4
            FPs per image, by stratum, with confidence intervals; score thresholds; AP50; the quality of masks.
        froc.png: the curves of all slices and by slice thickness.
        coco_instances_results.json: the results as they are. ``tools/evaluate.py`` scores them again, by any rule,
            compares them with others and makes the report.

    Args:
        results: in COCO's results format; ``image_id`` is the File_name.
        images: the dicts of the dataset; their annotations are the ground truth.
        dataset_name: what froc.json and errors call it.
        output_dir: None writes nothing.
        settings: see :class:`.SplitEvaluation`.

    Returns:
        task -> metric -> value, without those of a split or stratum that has no lesions:
            froc: avg, sensitivity_0.5, ..., and avg_thin, avg_thick (slices up to and above 2 mm), avg_small,
                avg_medium, avg_large (lesions below 10 mm, to 30 mm, above), in [0, 1].
            bbox: AP50, in percent.
            masks, with predicted masks: dice, diameter_error_mm (absolute), means over the lesions found.

    Raises:
        ValueError: see :func:`.detections_from_results`.
    """
    detections = detections_from_results(results, [image["image_id"] for image in images], f"results on {dataset_name}")
    evaluation = SplitEvaluation(images, detections, **settings)
    for warning in evaluation.warnings:
        _logger.warning(warning)
    summary = {"dataset": dataset_name, **evaluation.summary()}
    _logger.info(f"Sensitivity (%) at false positives per image:\n{score_table(summary)}")
    if output_dir:
        _write(output_dir, results, evaluation, summary)
    return _metrics(summary)


def _metrics(summary: dict) -> dict[str, dict[str, float]]:
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
    return {task: values for task, values in known.items() if values}


def _write(output_dir: str, results: list[dict], evaluation: SplitEvaluation, summary: dict) -> None:
    os.makedirs(output_dir, exist_ok=True)
    write_json(os.path.join(output_dir, "coco_instances_results.json"), results)
    write_json(os.path.join(output_dir, "froc.json"), nan_to_none(summary), indent=2)
    curves = {"all": evaluation.curve()}
    for name, stratum in evaluation.strata.get("slice thickness", {}).items():
        curves[name] = evaluation.curve(stratum)
    with replacing(os.path.join(output_dir, "froc.png")) as part:
        plot_froc(curves).savefig(part, dpi=150, format="png")
    _logger.info(f"Wrote froc.json, froc.png and coco_instances_results.json to {output_dir}")


def write_json(path: str, content, indent: int | None = None) -> None:
    """Write a file in one step, so that nobody ever reads half of it."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=indent)
