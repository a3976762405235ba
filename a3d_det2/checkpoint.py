"""Detectron2's checkpoints: what loads strictly, and what keeps the best."""

import logging
import math
import os
import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.engine import HookBase
from torch import nn

from .layers import FusionConv
from .modeling.pretrained import (
    MAY_BE_ABSENT,
    convert_detectron2_2d,
    convert_published,
    fit_kernels,
    is_detectron2_2d,
    is_published,
)
from .strict_checkpoint import NOTHING, StrictCheckpointer


class LesionCheckpointer(StrictCheckpointer, DetectionCheckpointer):
    """Detectron2's checkpointer, as strict as :class:`.StrictCheckpointer`, that also loads the models that the paper's
    authors published, Detectron2's 2D models and ImageNet ResNets; see :mod:`a3d_det2.modeling.pretrained`.

    A 2D model of Detectron2 is a start: what fuses the slices is new, and so are those layers of its heads whose shape
    differs, such as that of the classes; the log names them. Its backbone must fit.
    """

    def load(self, path: str, checkpointables: list[str] | None = None):
        """See :class:`.StrictCheckpointer`."""
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # the base class asserts it before the next load

    def _load_file(self, filename: str):
        checkpoint = super()._load_file(filename)
        if "state_dict" in checkpoint["model"]:  # files of mmdetection
            return {"model": checkpoint["model"]["state_dict"]}
        return checkpoint

    def _convert(self, checkpoint: dict) -> tuple[re.Pattern, re.Pattern]:
        state_dict = checkpoint["model"]
        new, unused = NOTHING, NOTHING
        if checkpoint.pop("matching_heuristics", False):
            state_dict = _align_imagenet_backbone(self.model, state_dict, checkpoint.get("__author__") == "Caffe2")
            new, unused = _NEW_ON_IMAGENET, _IMAGENET_CLASSIFIER
        elif is_published(state_dict):
            state_dict = convert_published(state_dict)
        elif is_detectron2_2d(state_dict):
            state_dict = convert_detectron2_2d(state_dict)
            new, unused = _NEW_ON_2D_MODEL, _HEADS
        if state_dict is not checkpoint["model"]:  # our own are loaded as they are
            checkpoint["model"] = fit_kernels(self.model, state_dict, self._stem_weights)
        return new, unused


_HEADS = re.compile(r"(roi_heads|proposal_generator|head)\.")
_NEW_ON_2D_MODEL = re.compile(rf"{_HEADS.pattern}|{MAY_BE_ABSENT.pattern}")
_NEW_ON_IMAGENET = re.compile(rf"(?!backbone\.bottom_up\.trunk\.)|{MAY_BE_ABSENT.pattern}")
_IMAGENET_CLASSIFIER = re.compile(r"((stem\.)?fc|fc1000|linear)\.|stem\.conv1\.bias$")


def _align_imagenet_backbone(model: nn.Module, state_dict: dict, caffe2: bool) -> dict:
    """Detectron2's matching of names, by the shapes that the model would have in 2D."""
    shapes = model.state_dict()
    for name, conv in model.named_modules():
        if isinstance(conv, FusionConv):
            colours = 3 if conv.in_channels == 1 else conv.in_channels // conv.groups
            shapes[f"{name}.weight"] = torch.empty(conv.out_channels, colours, *conv.kernel_size, device="meta")
    return align_and_update_state_dicts(shapes, state_dict, c2_conversion=caffe2)


class BestCheckpointer(HookBase):
    """Keep the weights with the highest value of a metric as ``model_best.pth``; to stand after ``EvalHook``.

    Other than Detectron2's hook of this name it keeps the value with the weights, so a resumed run does not overwrite
    a better model of the run before, and ``--resume`` never goes on from the best instead of the last weights.

    Args:
        eval_period: of the ``EvalHook``.
        checkpointer: what saves.
        metric: name in the event storage, such as "froc/avg".
    """

    def __init__(self, eval_period: int, checkpointer: LesionCheckpointer, metric: str):
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = metric
        self._best = -math.inf
        self._logger = logging.getLogger(__name__)

    def before_train(self) -> None:
        path = os.path.join(self._checkpointer.save_dir, "model_best.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            saved = torch.load(path, map_location="cpu", mmap=True)
            if self._metric in saved:
                self._best = saved[self._metric]
            else:
                self._logger.warning(f"{path} was not chosen by {self._metric}; the best is looked for anew.")

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._keep_if_best()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_best()

    def _keep_if_best(self) -> None:
        if self._metric not in self.trainer.storage.latest():
            self._logger.warning(f"The evaluation has no {self._metric}: no lesions? There is no model_best.pth.")
            return
        value, iteration = self.trainer.storage.latest()[self._metric]
        if value > self._best:
            self._best = value
            self._checkpointer.save("model_best", tag=False, iteration=iteration, **{self._metric: value})
        self._logger.info(f"{self._metric} = {value:.4f} at iteration {iteration}; the best so far is {self._best:.4f}")
