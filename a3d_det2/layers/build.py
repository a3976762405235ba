from .a3d import A3DConv
from .fusion_conv import FusionConv, SliceConv

# The closed set of operators, by the name that MODEL.A3D.OPERATOR takes.
FUSION_CONVS: dict[str, type[FusionConv]] = {
    "none": SliceConv,
    "a3d": A3DConv,
}


def build_fusion_conv(op: str, *args, **kwargs) -> FusionConv:
    """Build the fusion conv called ``op``; all take the arguments of :class:`FusionConv`.

    Raises:
        ValueError: if there is no such operator; the message lists the choices.
    """
    if op not in FUSION_CONVS:
        raise ValueError(f"Unknown fusion operator {op!r}. Choose one of {', '.join(FUSION_CONVS)}.")
    return FUSION_CONVS[op](*args, **kwargs)
