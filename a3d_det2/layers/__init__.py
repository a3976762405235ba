"""Context-fusion convolutions: torch only, usable in any network. Start with ``a3d.py``."""

from .a3d import A3DConv
from .build import FUSION_CONVS, build_fusion_conv
from .fusion_conv import FusionConv, SliceConv

__all__ = ["FUSION_CONVS", "A3DConv", "FusionConv", "SliceConv", "build_fusion_conv"]
