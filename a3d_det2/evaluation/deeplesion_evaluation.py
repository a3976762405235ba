import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from tabulate import tabulate

from .froc import AVERAGED_FPS, FPS_PER_IMAGE, FrocCurve, froc_curve
from .visualization import plot_froc

# Slice thickness strata of the DeepLesion papers; a series without a valid interval is in neither.
STRATA: dict[str, Callable[[dict], bool]] = {
    "all": lambda image: True,
    "<= 2 mm": lambda image: 0 < image["slice_interval"] <= 2,
    "> 2 mm": lambda image: image["slice_interval"] > 2,
}


class DeepLesionEvaluator(DatasetEvaluator):
    """FROC of a dataset whose dicts come from :func:`load_deeplesion`; see :mod:`a3d_det2.evaluation.froc`.

    It writes to ``output_dir``:
        froc.json: sensitivities, their average over 0.5, 1, 2 and 4 FPs per image, also by slice thickness.
        froc.png: the curves.
        coco_instances_results.json: all detections, in COCO's results format; ``image_id`` is the File_name.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        iou_threshold: float = 0.5,
        fps_per_image: Sequence[float] = FPS_PER_IMAGE,
    ):
        """
        Args:
            dataset_name: a registered dataset; its annotations are the ground truth. A dict without annotations is an
                image without lesions.
            output_dir: where to write; None writes nothing.
            distributed: gather the detections of all processes and evaluate in the main process; otherwise each
                process evaluates its own.
            iou_threshold: lowest IoU of a hit.
            fps_per_image: where to report the sensitivity.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._iou_threshold = iou_threshold
        self._fps_per_image = tuple(fps_per_image)
        self._images = DatasetCatalog.get(dataset_name)
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
            {"froc": {"avg": ..., "sensitivity_0.5": ..., ..., "avg_thin": ..., "avg_thick": ...}}, all in [0, 1], in
            the main process; {} in the others. NaN where a stratum has no lesions.

        Raises:
            ValueError: if a detection is on an image that the dataset does not have.
        """
        results = self._results
        if self._distributed:
            comm.synchronize()
            results = list(itertools.chain.from_iterable(comm.gather(results, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        curves = self._curves(results)
        report = self._report(curves)
        self._log(report)
        if self._output_dir:
            self._write(results, curves, report)
        strata = report["strata"]
        return OrderedDict(
            froc={
                "avg": report["average"],
                **{
                    f"sensitivity_{fps:g}": s for fps, s in zip(self._fps_per_image, report["sensitivity"], strict=True)
                },
                "avg_thin": strata["<= 2 mm"]["average"],
                "avg_thick": strata["> 2 mm"]["average"],
            }
        )

    def _curves(self, results: list[dict]) -> dict[str, FrocCurve]:
        detections = {image["image_id"]: [] for image in self._images}
        for result in results:
            if result["image_id"] not in detections:
                raise ValueError(
                    f"Detection on image {result['image_id']!r}, which dataset {self._dataset_name} does not have."
                )
            x, y, width, height = result["bbox"]
            detections[result["image_id"]].append((x, y, x + width, y + height, result["score"]))
        curves = {}
        for name, contains in STRATA.items():
            images = [image for image in self._images if contains(image)]
            curves[name] = froc_curve(
                [np.array(detections[image["image_id"]]) for image in images],
                [np.array([a["bbox"] for a in image.get("annotations", ())]) for image in images],
                self._iou_threshold,
            )
        return curves

    def _report(self, curves: dict[str, FrocCurve]) -> dict:
        strata = {
            name: {
                "num_images": curve.num_images,
                "num_lesions": curve.num_lesions,
                "sensitivity": curve.at(self._fps_per_image).tolist(),
                "average": float(curve.at(AVERAGED_FPS).mean()),
            }
            for name, curve in curves.items()
        }
        return {
            "dataset": self._dataset_name,
            "iou_threshold": self._iou_threshold,
            "fps_per_image": list(self._fps_per_image),
            "averaged_fps_per_image": list(AVERAGED_FPS),
            **strata.pop("all"),
            "strata": strata,
        }

    def _log(self, report: dict) -> None:
        rows = [
            [name, stratum["num_images"], stratum["num_lesions"]]
            + [f"{100 * s:.2f}" for s in (*stratum["sensitivity"], stratum["average"])]
            for name, stratum in (("all", report), *report["strata"].items())
        ]
        header = ["slices", "images", "lesions", *(f"{fps:g}" for fps in self._fps_per_image), "Avg."]
        self._logger.info(
            f"Sensitivity (%) at false positives per image, IoU >= {self._iou_threshold}; Avg. over "
            f"{', '.join(f'{fps:g}' for fps in AVERAGED_FPS)}:\n" + tabulate(rows, header, disable_numparse=True)
        )

    def _write(self, results: list[dict], curves: dict[str, FrocCurve], report: dict) -> None:
        os.makedirs(self._output_dir, exist_ok=True)
        for name, content in (("coco_instances_results.json", results), ("froc.json", _nan_to_none(report))):
            with open(os.path.join(self._output_dir, name), "w") as f:
                json.dump(content, f, indent=2 if name == "froc.json" else None)
        path = os.path.join(self._output_dir, "froc.png")
        plot_froc(curves).savefig(path, dpi=150)
        self._logger.info(f"Wrote froc.json, froc.png and coco_instances_results.json to {self._output_dir}")


def _nan_to_none(value):
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
