"""Results of a model on a dataset -> the files and metrics of an evaluation, for every engine."""

import json
import logging
import math
import os
from collections.abc import Iterable, Sequence

from ..files import replacing, shortened
from .crowds import lesions_alone, without_crowds
from .detection_reader import detections_from_results
from .froc import FrocCurve
from .matching import MatchRule
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
    results: list[dict],
    images: list[dict],
    dataset_name: str,
    output_dir: str | None = None,
    *,
    thing_classes: Sequence[str] = ("lesion",),
    **settings,
) -> dict[str, dict[str, float]]:
    """Score results, log the table, and write to ``output_dir``:

        froc.json: all that :meth:`.SplitEvaluation.summary` says: sensitivities, their average over 0.5, 1, 2 and 4
            FPs per image, by stratum, with confidence intervals; score thresholds; AP50; the quality of masks. Of
            several classes: "average" and "AP50", the means over the classes that have lesions, and "classes", which
            has the summary of each.
        froc.png: the curves of all slices and by slice thickness, or of each class.
        coco_instances_results.json: the results as they are. ``tools/evaluate.py`` scores them again, by any rule,
            compares them with others and makes the report.

    Args:
        results: in COCO's results format; ``image_id`` is that of the images, and ``category_id`` counts the classes
            from 0 on.
        images: the dicts of the dataset; their annotations, in absolute XYXY, are the ground truth. Crowds are no
            lesions; see :mod:`.crowds`.
        dataset_name: what froc.json and errors call it.
        output_dir: None writes nothing.
        thing_classes: names of the classes. A detection hits lesions of its own class alone.
        settings: see :class:`.SplitEvaluation`.

    Returns:
        task -> metric -> value, without those of a split or stratum that has no lesions:
            froc: avg, sensitivity_0.5, ..., and avg_thin, avg_thick (slices up to and above 2 mm), avg_small,
                avg_medium, avg_large (lesions below 10 mm, to 30 mm, above), in [0, 1]. Of several classes: avg, the
                mean over them, and the average of each as avg_CLASS.
            ap: AP50, in percent.
            masks, of one class with predicted masks: dice, diameter_error_mm (absolute), means over the lesions found.

    Raises:
        ValueError: if a category_id is of no class; see also :func:`.detections_from_results`.
    """
    _check_classes(results, dataset_name, thing_classes)
    if len(thing_classes) > 1:
        return _evaluate_classes(results, images, dataset_name, output_dir, thing_classes, settings)
    evaluation = _evaluate(results, images, dataset_name, settings)
    summary = {"dataset": dataset_name, **evaluation.summary()}
    _logger.info(f"Sensitivity (%) at false positives per image:\n{score_table(summary)}")
    if output_dir:
        curves = {"all": evaluation.curve()}
        for name, stratum in evaluation.strata.get("slice thickness", {}).items():
            curves[name] = evaluation.curve(stratum)
        _write(output_dir, results, curves, summary)
    return _metrics(summary)


def _evaluate_classes(
    results, images, dataset_name, output_dir, thing_classes, settings
) -> dict[str, dict[str, float]]:
    by_class = [[] for _ in thing_classes]
    for result in results:
        by_class[result["category_id"]].append(result)
    summaries, curves = {}, {}
    for number, name in enumerate(thing_classes):
        evaluation = _evaluate(by_class[number], [_of_class(image, number) for image in images], dataset_name, settings)
        summaries[name], curves[name] = evaluation.summary(), evaluation.curve()
        _logger.info(f"{name}: sensitivity (%) at false positives per image:\n{score_table(summaries[name])}")
    known = [summary for summary in summaries.values() if summary["num_lesions"]]
    average, ap50 = ({key: _mean(summary[key] for summary in known)} for key in ("average", "AP50"))
    if output_dir:
        _write(output_dir, results, curves, {"dataset": dataset_name, **average, **ap50, "classes": summaries})
    froc = {
        "avg": average["average"],
        **{f"avg_{name.replace('-', '_')}": s["average"] for name, s in summaries.items()},
    }
    return _known({"froc": froc, "ap": ap50})


def _check_classes(results: list[dict], dataset_name: str, thing_classes: Sequence[str]) -> None:
    for i, result in enumerate(results):
        number = result.get("category_id")
        if type(number) is not int or not 0 <= number < len(thing_classes):
            raise ValueError(
                f"results on {dataset_name}, entry {i}: expected a category_id from 0 to {len(thing_classes) - 1}, got "
                f"{shortened(number)}."
            )


def _evaluate(results: list[dict], images: list[dict], dataset_name: str, settings: dict) -> SplitEvaluation:
    detections = detections_from_results(results, [image["image_id"] for image in images], f"results on {dataset_name}")
    detections = without_crowds(detections, images, settings.get("rule") or MatchRule())
    evaluation = SplitEvaluation(lesions_alone(images), detections, **settings)
    for warning in evaluation.warnings:
        _logger.warning(warning)
    return evaluation


def _of_class(image: dict, number: int) -> dict:
    return {**image, "annotations": [a for a in image.get("annotations", ()) if a["category_id"] == number]}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _metrics(summary: dict) -> dict[str, dict[str, float]]:
    froc = {"avg": summary["average"]}
    for level, sensitivity in zip(summary["fps_per_image"], summary["sensitivity"], strict=True):
        froc[f"sensitivity_{level:g}"] = sensitivity
    for name, (group, stratum) in STRATUM_METRICS.items():
        if group in summary["strata"]:
            froc[name] = summary["strata"][group][stratum]["average"]
    metrics = {"froc": froc, "ap": {"AP50": summary["AP50"]}}
    if "masks" in summary:
        masks = summary["masks"]
        error = masks["absolute_diameter_error_mm"]["mean"]
        metrics["masks"] = {"dice": masks["dice"]["mean"], "diameter_error_mm": error}
    return _known(metrics)


def _known(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    known = {task: {k: v for k, v in values.items() if not math.isnan(v)} for task, values in metrics.items()}
    return {task: values for task, values in known.items() if values}


def _write(output_dir: str, results: list[dict], curves: dict[str, FrocCurve], summary: dict) -> None:
    os.makedirs(output_dir, exist_ok=True)
    write_json(os.path.join(output_dir, "coco_instances_results.json"), results)
    write_json(os.path.join(output_dir, "froc.json"), nan_to_none(summary), indent=2)
    with replacing(os.path.join(output_dir, "froc.png")) as part:
        plot_froc(curves).savefig(part, dpi=150, format="png")
    _logger.info(f"Wrote froc.json, froc.png and coco_instances_results.json to {output_dir}")


def write_json(path: str, content, indent: int | None = None) -> None:
    """Write a file in one step, so that nobody ever reads half of it."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=indent)
