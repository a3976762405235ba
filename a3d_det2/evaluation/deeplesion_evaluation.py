import itertools
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from .evaluation_files import evaluate_results
from .froc import FPS_PER_IMAGE
from .matching import MatchRule


class DeepLesionEvaluator(DatasetEvaluator):
    """FROC, with COCO's AP50 beside it, of a dataset whose dicts come from :func:`load_deeplesion`.

    What it writes and returns is that of :func:`.evaluate_results`.
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
        settings = {"lesion_types": self._lesion_types, **self._settings}
        return OrderedDict(evaluate_results(results, self._images, self._dataset_name, self._output_dir, **settings))
