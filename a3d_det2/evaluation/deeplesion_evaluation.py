import itertools
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils import comm

from .evaluation_files import evaluate_results
from .froc import FPS_PER_IMAGE
from .matching import MatchRule


class DeepLesionEvaluator(DatasetEvaluator):
    """FROC, with COCO's AP50 beside it, of any dataset; of several classes for each, and their mean.

    What it writes and returns is that of :func:`.evaluate_results`. It goes together with Detectron2's own evaluators
    in a ``DatasetEvaluators``.
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
            dataset_name: a registered dataset; its annotations, with boxes in any mode, are the ground truth. A dict
                without annotations is an image without lesions. Of its metadata ``thing_classes`` names the classes and
                ``lesion_types`` the lesion types.
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
        self._images = [_with_absolute_boxes(image) for image in DatasetCatalog.get(dataset_name)]
        metadata = MetadataCatalog.get(dataset_name)  # complete once the dataset has been read
        self._settings["lesion_types"] = metadata.get("lesion_types")
        self._settings["thing_classes"] = metadata.get("thing_classes", ["lesion"])
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
            In the main process what :func:`.evaluate_results` returns, {} in the others.

        Raises:
            ValueError: if a detection is on an image that the dataset does not have.
        """
        results = self._results
        if self._distributed:
            comm.synchronize()
            results = list(itertools.chain.from_iterable(comm.gather(results, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        where = self._dataset_name, self._output_dir
        return OrderedDict(evaluate_results(results, self._images, *where, **self._settings))


def _with_absolute_boxes(image: dict) -> dict:
    """A dataset dict with its boxes as XYXY in pixels."""
    if "annotations" not in image:
        return image
    annotations = [
        {**a, "bbox": BoxMode.convert(a["bbox"], a.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS)}
        for a in image["annotations"]
    ]
    return {**image, "annotations": annotations}
