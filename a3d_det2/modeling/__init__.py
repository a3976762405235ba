"""Trunk and necks: torch only. ``backbone``, ``meta_arch``, ``mask_head`` and ``published`` need Detectron2, and
``torchvision_rcnn`` torchvision."""

from importlib import import_module

from .densenet import DenseNet3D
from .fused_neck import FusedNeck, FusedTrunk
from .squeeze import SliceSqueeze, SqueezedTrunk

__all__ = ["DenseNet3D", "FusedNeck", "FusedTrunk", "SliceSqueeze", "SqueezedTrunk", "load_torchvision_densenet"]


def __getattr__(name: str):
    if name == "load_torchvision_densenet":  # of a room that knows this one
        return getattr(import_module("a3d_det2.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
