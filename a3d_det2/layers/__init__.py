"""Context-fusion convolutions: torch only, usable in any network. Start with ``a3d.py``."""

from .a3d import A3DConv
from .acs import ACSConv
from .build import FUSION_CONVS, build_fusion_conv
from .convert import convert_to_3d
from .fusion_conv import FusionConv, SliceConv
from .i3d import I3DConv
from .p3d import P3DConv
from .shift import AlignShiftConv, TSMConv

__all__ = [
    "FUSION_CONVS",
    "A3DConv",
    "ACSConv",
    "AlignShiftConv",
    "FusionConv",
    "I3DConv",
    "P3DConv",
    "SliceConv",
    "TSMConv",
    "build_fusion_conv",
    "convert_to_3d",
]
