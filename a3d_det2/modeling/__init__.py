"""Trunk and neck: torch only. What needs Detectron2 is imported by the package's own ``__init__``."""

from .densenet import DenseNet3D, SliceSqueeze
from .fused_neck import FusedNeck
from .pretrained import load_torchvision_densenet

__all__ = ["DenseNet3D", "FusedNeck", "SliceSqueeze", "load_torchvision_densenet"]
