"""Trunk and neck: torch only. What needs Detectron2 is imported by the package's own ``__init__``; ``torchvision_rcnn``
needs torchvision."""

from .densenet import DenseNet3D, SliceSqueeze
from .fused_neck import FusedNeck
from .pretrained import load_torchvision_densenet
from .trunk import FusedTrunk, SqueezedTrunk

__all__ = ["DenseNet3D", "FusedNeck", "FusedTrunk", "SliceSqueeze", "SqueezedTrunk", "load_torchvision_densenet"]
