"""Detectron2's checkpointer, which loads what others have trained and raises where it does not fit."""

import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

from ..layers import FusionConv
from .formats import FORMATS, NOT_IN_2D, Format, fit_kernels
from .strict import StrictCheckpointer


class ImageNetBackbone(Format):
    """An ImageNet ResNet that Detectron2 loads by comparing names, such as those of its model zoo. Its names lack the
    prefix of the backbone, and it has a classifier."""

    may_lack = re.compile(rf"(?!backbone\.bottom_up\.trunk\.)|{NOT_IN_2D.pattern}")
    may_leave_out = re.compile(r"((stem\.)?fc|fc1000|linear)\.|stem\.conv1\.bias$")

    def matches(self, model, checkpoint):
        return checkpoint.get("matching_heuristics", False) and not FORMATS[0].matches(model, checkpoint)

    def convert(self, model, checkpoint, stem_weights):
        shapes = model.state_dict()  # that the model would have in 2D
        for name, conv in model.named_modules():
            if isinstance(conv, FusionConv):
                colours = 3 if conv.in_channels == 1 else conv.in_channels // conv.groups
                shapes[f"{name}.weight"] = torch.empty(conv.out_channels, colours, *conv.kernel_size, device="meta")
        is_caffe2 = checkpoint.get("__author__") == "Caffe2"
        aligned = align_and_update_state_dicts(shapes, checkpoint["model"], c2_conversion=is_caffe2)
        if not any(name in shapes and value.shape == shapes[name].shape for name, value in aligned.items()):
            raise ValueError(f"None of its weights has a place in the model: {', '.join(list(aligned)[:5])} ...")
        return fit_kernels(model, aligned, stem_weights)


class LesionCheckpointer(StrictCheckpointer, DetectionCheckpointer):
    """Detectron2's checkpointer, as strict as :class:`.StrictCheckpointer`."""

    formats = (ImageNetBackbone(), *FORMATS)

    def load(self, path: str, checkpointables: list[str] | None = None):
        """Load a file or URL; arguments and errors are those of :meth:`.StrictCheckpointer.load`."""
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # the base class asserts it before the next load
