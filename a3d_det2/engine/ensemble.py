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

    A box is the mean of those of one lesion, weighted by their scores; its score is their sum over the number of
    detectors, so that what only one has found counts less. The mask is that of the box that overlaps it most.

    Args:
        found: of each detector.
        size: (height, width) of the image.
        limit: the strongest so many are kept.
    """
    from ensemble_boxes import weighted_boxes_fusion

    height, width = size
    sides = np.array([width, height, width, height], dtype=np.float64)
    boxes, scores, classes = weighted_boxes_fusion(
        [np.clip(one.boxes / sides, 0, 1) for one in found],
        [one.scores for one in found],
        [one.classes for one in found],
        iou_thr=IOU,
    )
    strongest = Found(
        (boxes[:limit] * sides).astype(np.float32),
        scores[:limit].astype(np.float32),
        classes[:limit].astype(np.int64),
        None,
    )
    return strongest._replace(masks=_masks(strongest, found))


def _masks(fused: Found, found: Sequence[Found]) -> np.ndarray | None:
    if any(one.masks is None for one in found):
        return None
    masks = np.concatenate([one.masks for one in found])
    if not len(fused.boxes):
        return masks[:0]
    boxes, classes = np.concatenate([one.boxes for one in found]), np.concatenate([one.classes for one in found])
    overlaps = box_iou(torch.from_numpy(fused.boxes.astype(np.float64)), torch.from_numpy(boxes)).numpy()
    overlaps[fused.classes[:, None] != classes] = -1
    return masks[overlaps.argmax(axis=1)]


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

        results = []
        for x in batched_inputs:
            image = x["image"].shape[-2:]
            size, found = (x.get("height", image[0]), x.get("width", image[1])), []
            for view in self.views:
                seen = view.of(x["image"])
                for model in self.models:
                    (output,) = model([{**x, "image": seen, "height": size[0], "width": size[1]}])
                    one = of_instances(output["instances"])
                    found.append(view.undo(one, seen.shape[-2:], image, size))
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
        results = []
        for i, x in enumerate(images):
            image = x.shape[-2:]
            size, found = tuple(output_sizes[i]) if output_sizes else tuple(image), []
            interval = None if thickness is None else thickness[i : i + 1]
            for view in self.views:
                seen = view.of(x)
                for model in self.models:
                    (output,) = model([seen], None, interval, [size])
                    found.append(view.undo(of_torchvision(output), seen.shape[-2:], image, size))
            fused = fuse(found, size, self.limit)
            result = {"boxes": fused.boxes, "scores": fused.scores, "labels": fused.classes + 1}
            if fused.masks is not None:
                result["masks"] = np.ascontiguousarray(fused.masks[:, None], dtype=np.float32)
            results.append({name: torch.from_numpy(value) for name, value in result.items()})
        return results


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
    if find_spec("ensemble_boxes") is None:
        raise Mistake("TEST.VIEWS and TEST.ENSEMBLE need ensemble-boxes: pip install 'a3d_det2[ensemble]'.")
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
