"""Loading that raises when weights do not fit, and saving that survives a kill at any moment."""

import logging
import math
import os
import pickle
import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.engine import HookBase
from torch import nn

from .layers import FusionConv
from .modeling.densenet import DenseNet3D
from .modeling.pretrained import (
    MAY_BE_ABSENT,
    convert_detectron2_2d,
    convert_published,
    fit_kernels,
    is_detectron2_2d,
    is_published,
    is_torchvision_densenet,
    load_torchvision_densenet,
)


class LesionCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that also

    1. loads the weights of :mod:`a3d_det2.modeling.pretrained`, from a file or URL: torchvision's DenseNet, the models
       that the paper's authors published, Detectron2's 2D models and ImageNet ResNets,
    2. raises when weights do not fit, instead of logging it,
    3. puts each file under its name only when it is complete.

    A 2D model of Detectron2 is a start: what fuses the slices is new, and so are those layers of its heads whose shape
    differs, such as that of the classes; the log names them. Its backbone must fit.
    """

    def __init__(self, model, save_dir: str = "", *, stem_weights: str = "middle", **checkpointables):
        """
        Args:
            model, save_dir, checkpointables: as for ``DetectionCheckpointer``.
            stem_weights: how a first convolution for three colours becomes grey, "middle" or "sum".
        """
        super().__init__(model, save_dir, **checkpointables)
        self._stem_weights = stem_weights

    def load(self, path: str, *args, **kwargs):
        """
        Raises:
            ValueError: if the file is no checkpoint or its weights do not fit; the message names it.
        """
        try:
            return super().load(path, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        finally:
            self._parsed_url_during_load = None  # the base class asserts it before the next load

    def _load_file(self, filename: str):
        try:
            checkpoint = super()._load_file(filename)
        except (RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"expected a checkpoint with a state dict, got an unreadable file ({error})") from error
        if not isinstance(checkpoint["model"], dict):
            raise ValueError(f"expected a state dict, got a {type(checkpoint['model']).__name__}")
        if "state_dict" in checkpoint["model"]:  # files of mmdetection
            return {"model": checkpoint["model"]["state_dict"]}
        return checkpoint

    def _load_model(self, checkpoint):
        """
        Raises:
            ValueError: if a key of the checkpoint or of the model is left over, or a shape differs.
        """
        state_dict = checkpoint["model"]
        if is_torchvision_densenet(state_dict):
            trunks = [m for m in self.model.modules() if isinstance(m, DenseNet3D)]
            if len(trunks) != 1:
                raise ValueError(
                    "These are weights of a torchvision DenseNet; they need a model with one DenseNet3D trunk. "
                    f"{type(self.model).__name__} has {len(trunks)}."
                )
            load_torchvision_densenet(trunks[0], state_dict, self._stem_weights)
            return None
        self._convert_ndarray_to_tensor(state_dict)
        # Patterns of what the checkpoint may lack or have in another shape, and of what the model may lack.
        new, unused = _NOTHING, _NOTHING
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
        return self._check(super()._load_model(checkpoint), new, unused)

    def _check(self, incompatible, new: re.Pattern, unused: re.Pattern) -> None:
        shapes = {key: f"expected shape {want}, got {got}" for key, got, want in incompatible.incorrect_shapes}
        problems = {**dict.fromkeys(incompatible.missing_keys, "not in the checkpoint"), **shapes}
        accepted = [key for key in problems if new.match(key)]
        accepted += [key for key in incompatible.unexpected_keys if unused.match(key)]
        problems |= dict.fromkeys(incompatible.unexpected_keys, "not in the model")
        if len(accepted) < len(problems):
            raise ValueError(
                "The weights do not fit the model:\n  "
                + "\n  ".join(f"{key}: {problem}" for key, problem in problems.items() if key not in accepted)
            )
        if accepted:
            lines = "\n  ".join(f"{key}: {problems[key]}" for key in accepted)
            self.logger.info(f"A 2D model is the start of this one. Not taken over:\n  {lines}")

    def save(self, name: str, *, tag: bool = True, **kwargs) -> None:
        """
        Args:
            name: file name without ".pth".
            tag: whether ``--resume`` shall go on from this file.
            kwargs: extra data to save.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        torch.save({"model": self.model.state_dict(), **states, **kwargs}, f"{path}.part")
        os.replace(f"{path}.part", path)
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.part", "w") as f:
            f.write(last_filename_basename)
        os.replace(f"{path}.part", path)


_NOTHING = re.compile(r"(?!)")
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
