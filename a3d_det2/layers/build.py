from .a3d import A3DConv
from .acs import ACSConv
from .fusion_conv import FusionConv, SliceConv
from .i3d import I3DConv
from .p3d import P3DConv
from .shift import AlignShiftConv, TSMConv

# The closed set of operators, by the name that MODEL.A3D.OPERATOR takes.
FUSION_CONVS: dict[str, type[FusionConv]] = {
    "none": SliceConv,
    "i3d": I3DConv,
    "p3d": P3DConv,
    "acs": ACSConv,
    "tsm": TSMConv,
    "alignshift": AlignShiftConv,
    "a3d": A3DConv,
}


def build_fusion_conv(op: str, *args, **kwargs) -> FusionConv:
    """Build the fusion conv called ``op``; all take the arguments of :class:`FusionConv`, some take more.

    Raises:
        ValueError: if there is no such operator; the message lists the choices.
    """
    if op not in FUSION_CONVS:
        raise ValueError(f"Unknown fusion operator {op!r}. Choose one of {', '.join(FUSION_CONVS)}.")
    return FUSION_CONVS[op](*args, **kwargs)
