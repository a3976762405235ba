"""Results of several views and checkpoints, merged by weighted box fusion (arXiv 1910.13302)."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..volumes.predictor import Found
from .mistakes import Mistake
from .views import View

IOU = 0.55  # of boxes that are of one lesion: the default of the library, and of the paper


def fuse(found: Sequence[Found], size: tuple[int, int], limit: int) -> Found:
    """Merge what several detectors have found in one image.

    A box is the mean of those of one lesion, weighted by their scores. Its score is the sum of the highest one of each
    detector over the number of detectors, so that what only one has found counts less: the library's own is a mean over
    all boxes, by which a weak second box of a detector would halve what the others are sure of. The mask is that of the
    box that overlaps it most.

    Args:
        found: of each detector.
        size: (height, width) of the image.
        limit: the strongest so many are kept.
    """
    from ensemble_boxes import weighted_boxes_fusion

    height, width = size
    sides = np.array([width, height, width, height], dtype=np.float64)
    boxes, _, classes = weighted_boxes_fusion(
        [np.clip(one.boxes / sides, 0, 1) for one in found],
        [one.scores for one in found],
        [one.classes for one in found],
        iou_thr=IOU,
    )
    boxes, classes = boxes * sides, classes.astype(np.int64)
    every = np.concatenate([one.boxes for one in found])
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(every.astype(np.float64))).numpy()
    overlaps[classes[:, None] != np.concatenate([one.classes for one in found])] = -1
    scores = _scores(overlaps, found)
    strongest = np.argsort(-scores, kind="stable")[:limit]
    masks = None
    if all(one.masks is not None for one in found):
        masks = np.concatenate([one.masks for one in found])
        masks = masks[overlaps[strongest].argmax(axis=1)] if len(strongest) else masks[:0]
    return Found(boxes[strongest].astype(np.float32), scores[strongest].astype(np.float32), classes[strongest], masks)


def _scores(overlaps: np.ndarray, found: Sequence[Found]) -> np.ndarray:
    """Scores of merged boxes. A box of a detector counts for the one that it overlaps most.

    Args:
        overlaps: (merged boxes, boxes of all detectors) IoU; -1 where the classes differ.
        found: of each detector.
    """
    scores = np.zeros(len(overlaps))
    if not len(overlaps):
        return scores
    belongs, overlapped = overlaps.argmax(axis=0), overlaps.max(axis=0) > 0
    detector = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    every = np.concatenate([one.scores for one in found])
    for number in range(len(found)):
        mine, highest = overlapped & (detector == number), np.zeros(len(overlaps))
        np.maximum.at(highest, belongs[mine], every[mine])
        scores += highest / len(found)
    return scores


class Ensemble(nn.Module):
    """Several models, each called with several views of the images; a subclass has the forward of its engine.

    Args:
        models: of one engine, in evaluation mode.
        views: of each image, beside the image itself.
        limit: see :func:`fuse`.
    """

    def __init__(self, models: Sequence[nn.Module], views: Sequence[View], limit: int):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.views, self.limit = (View(), *views), limit

    @property
    def device(self) -> torch.device:
        return next(self.models[0].parameters()).device


class Detectron2Ensemble(Ensemble):
    """Takes and gives what Detectron2's detectors do in a test."""

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        from detectron2.structures import Boxes, Instances

        images = [x["image"].shape[-2:] for x in batched_inputs]
        sizes = [(x.get("height", h), x.get("width", w)) for x, (h, w) in zip(batched_inputs, images, strict=True)]
        every = [[] for _ in batched_inputs]
        for view in self.views:
            seen = [
                {**x, "image": view.of(x["image"]), "height": height, "width": width}
                for x, (height, width) in zip(batched_inputs, sizes, strict=True)
            ]
            for model in self.models:
                for i, output in enumerate(model(seen)):
                    one = of_instances(output["instances"])
                    every[i].append(view.undo(one, seen[i]["image"].shape[-2:], images[i], sizes[i]))
        results = []
        for found, size in zip(every, sizes, strict=True):
            fused, instances = fuse(found, size, self.limit), Instances(size)
            instances.pred_boxes = Boxes(torch.from_numpy(fused.boxes))
            instances.scores, instances.pred_classes = torch.from_numpy(fused.scores), torch.from_numpy(fused.classes)
            if fused.masks is not None:
                instances.pred_masks = torch.from_numpy(np.ascontiguousarray(fused.masks))
            results.append({"instances": instances})
        return results


class TorchvisionEnsemble(Ensemble):
    """Takes and gives what this package's detectors of torchvision do in a test."""

    def forward(self, images, targets=None, thickness: Tensor | None = None, output_sizes=None) -> list[dict]:
        sizes = [tuple(size) for size in output_sizes or [x.shape[-2:] for x in images]]
        every = [[] for _ in images]
        for view in self.views:
            seen = [view.of(x) for x in images]
            for model in self.models:
                for i, output in enumerate(model(seen, None, thickness, sizes)):
                    one = of_torchvision(output)
                    every[i].append(view.undo(one, seen[i].shape[-2:], images[i].shape[-2:], sizes[i]))
        results = []
        for found, size in zip(every, sizes, strict=True):
            fused = fuse(found, size, self.limit)
            result = {"boxes": fused.boxes, "scores": fused.scores, "labels": fused.classes + 1}
            if fused.masks is not None:
                result["masks"] = np.ascontiguousarray(fused.masks[:, None], dtype=np.float32)
            results.append({name: torch.from_numpy(value) for name, value in result.items()})
        return results


def fusion_problem() -> str:
    """Why boxes cannot be merged here; "" if they can."""
    if find_spec("ensemble_boxes") is not None:
        return ""
    return "TEST.VIEWS and TEST.ENSEMBLE need ensemble-boxes: pip install 'a3d_det2[ensemble]'."


def with_views(cfg: CfgNode, model: nn.Module, kind: type[Ensemble], load: Callable[[str], nn.Module]) -> nn.Module:
    """Make the ensemble that TEST.VIEWS and TEST.ENSEMBLE ask for; the model itself where they are empty.

    Args:
        cfg: of the model.
        model: a detector.
        kind: of its engine.
        load: makes such a detector with the weights of a checkpoint.

    Raises:
        Mistake: if the library that fuses boxes is not installed.
    """
    views, others = [View.named(name) for name in cfg.TEST.VIEWS], cfg.TEST.ENSEMBLE
    if not (views or others):
        return model
    if problem := fusion_problem():
        raise Mistake(problem)
    return kind([model, *map(load, others)], views, cfg.TEST.DETECTIONS_PER_IMAGE)


def of_instances(instances) -> Found:
    """What a detector of Detectron2 gives for an image."""
    instances = instances.to("cpu")
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    columns = instances.pred_boxes.tensor.float().numpy(), instances.scores.float().numpy()
    return Found(*columns, instances.pred_classes.numpy(), masks)


def of_torchvision(output: dict[str, Tensor]) -> Found:
    """What a detector of torchvision gives for an image."""
    boxes, scores, labels = (output[key].cpu() for key in ("boxes", "scores", "labels"))
    masks = (output["masks"][:, 0].float().cpu().numpy() >= 0.5) if "masks" in output else None
    return Found(boxes.float().numpy(), scores.float().numpy(), np.asarray(labels) - 1, masks)
