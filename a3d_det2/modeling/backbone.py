"""Detectron2 backbones: a network over D slices and the squeeze to 2D, alone or under a neck.

An image is (D, H, W), one grey channel per slice, so a batch is (N, D, H, W). Every backbone here is called with it and
the slice thickness, (N,) in mm, which may be None where the operator does not need it. The builders are the only
readers of cfg.
"""

import logging

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from ..layers import FusionConv, convert_to_3d
from .densenet import DenseNet3D, SliceSqueeze
from .fused_neck import FusedNeck


class SliceBackbone(Backbone):
    """A network over D slices with its outputs squeezed to 2D.

    Args:
        trunk: a module called with ``(N, 1, D, H, W), thickness`` that gives a dict of (N, C, D, H', W').
        num_slices: D.
        shapes: channels and stride of each output of the trunk, by name, finest first.
        out_features: which of them to give, such as ["dense1", "dense2", "dense3"]; all by default. The last one must
            be the trunk's last, or a part of the trunk would do nothing.
    """

    def __init__(
        self, trunk: nn.Module, num_slices: int, shapes: dict[str, ShapeSpec], out_features: list[str] | None = None
    ):
        super().__init__()
        names = list(shapes)
        out_features = list(out_features or names)
        if not set(out_features) <= set(names) or out_features[-1] != names[-1]:
            raise ValueError(
                f"Expected MODEL.FPN.IN_FEATURES among the trunk's outputs {names}, ending with {names[-1]!r} (of a "
                f"ResNet these are MODEL.RESNETS.OUT_FEATURES). Got {out_features}."
            )
        self.trunk = trunk
        self.num_slices = num_slices
        self.squeeze = nn.ModuleDict({name: SliceSqueeze(shapes[name].channels, num_slices) for name in out_features})
        self._out_features = out_features
        self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
        self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}

    def forward(self, x: Tensor | tuple[Tensor, Tensor | None], thickness: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            x: (N, D, H, W); or the pair of it and the thickness, for callers that hand on one argument.
            thickness: (N,) in mm.

        Returns:
            {"dense1": (N, 256, H/4, W/4), ...}: the trunk's outputs without D.

        Raises:
            ValueError: if ``x`` does not have D channels.
        """
        if isinstance(x, tuple):
            x, thickness = x
        if x.dim() != 4 or x.shape[1] != self.num_slices:
            raise ValueError(
                f"The backbone takes images of shape (N, D, H, W) with D = {self.num_slices} slices "
                f"(MODEL.A3D.NUM_SLICES). Got {tuple(x.shape)} instead!"
            )
        features = self.trunk(x.unsqueeze(1), thickness)  # (N, D, H, W) -> {name: (N, C, D, H', W')}
        return {name: squeeze(features[name]) for name, squeeze in self.squeeze.items()}

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[self._out_features[-1]]


class SliceFPN(FPN):
    """Detectron2's FPN over a :class:`SliceBackbone`."""

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"p2": (N, out_channels, H/4, W/4), "p3": ...}"""
        return super().forward((x, thickness))  # handed to bottom_up as it is


class FusedBackbone(Backbone):
    """A :class:`SliceBackbone` under the paper's fused neck: one map, called "p2" when its stride is 4.

    Args:
        bottom_up: the backbone below.
        in_features: names of its outputs to fuse, finest first.
        out_channels: channels of the map.
    """

    def __init__(self, bottom_up: SliceBackbone, in_features: list[str], out_channels: int):
        super().__init__()
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.in_features = in_features
        self.neck = FusedNeck([shapes[name].channels for name in in_features], out_channels)
        stride = shapes[in_features[0]].stride
        name = f"p{stride.bit_length() - 1}"
        self._out_features = [name]
        self._out_feature_channels = {name: out_channels}
        self._out_feature_strides = {name: stride}
        self._size_divisibility = shapes[in_features[-1]].stride

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"p2": (N, out_channels, H/4, W/4)}"""
        features = self.bottom_up(x, thickness)
        return {self._out_features[0]: self.neck([features[name] for name in self.in_features])}

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_backbone(cfg, input_shape: ShapeSpec) -> SliceBackbone:
    """
    Returns:
        DenseNet trunk and squeeze; the outputs are "dense1", "dense2", ..., all of them.

    Raises:
        ValueError: if NUM_SLICES is even, PIXEL_MEAN has not one entry, OPERATOR or NORM is unknown, or THICKNESS_AWARE
            is set for another operator than a3d.
    """
    return _build_densenet(cfg, input_shape, out_features=None)


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fpn_backbone(cfg, input_shape: ShapeSpec) -> SliceFPN:
    """
    Returns:
        Detectron2's FPN over MODEL.FPN.IN_FEATURES of the DenseNet trunk; the outputs are "p2", "p3", ...
    """
    return _build_fpn(cfg, _build_densenet(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES))


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fused_backbone(cfg, input_shape: ShapeSpec) -> FusedBackbone:
    """
    Returns:
        the fused neck over MODEL.FPN.IN_FEATURES of the DenseNet trunk, with MODEL.FPN.OUT_CHANNELS; the output is
        "p2".
    """
    return FusedBackbone(
        _build_densenet(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
    )


@BACKBONE_REGISTRY.register()
def build_a3d_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> SliceFPN:
    """
    Returns:
        Detectron2's FPN over Detectron2's ResNet (MODEL.RESNETS) with its convolutions exchanged; the stem stays
        slice-wise. The outputs are "p2", "p3", ..., as of ``build_resnet_fpn_backbone``, and a checkpoint of a 2D model
        with that backbone loads into it (see :func:`convert_detectron2_2d`).
    """
    num_slices = _num_slices(cfg, input_shape)
    resnet = build_resnet_backbone(cfg, input_shape)
    trunk = convert_to_3d(
        resnet,
        cfg.MODEL.A3D.OPERATOR,
        num_slices,
        slice_wise=lambda name, conv: name.startswith("stem."),
        subclasses={Conv2d: _keep_norm_and_activation},
        **_operator_options(cfg),
    )
    bottom_up = SliceBackbone(trunk, num_slices, resnet.output_shape(), cfg.MODEL.FPN.IN_FEATURES)
    return _build_fpn(cfg, bottom_up, top_block=LastLevelMaxPool())


def _build_densenet(cfg, input_shape: ShapeSpec, out_features: list[str] | None) -> SliceBackbone:
    num_slices = _num_slices(cfg, input_shape)
    trunk = DenseNet3D(
        cfg.MODEL.A3D.OPERATOR,
        num_slices,
        block_config=cfg.MODEL.A3D.BLOCK_CONFIG,
        growth_rate=cfg.MODEL.A3D.GROWTH_RATE,
        num_init_features=cfg.MODEL.A3D.NUM_INIT_FEATURES,
        bn_size=cfg.MODEL.A3D.BN_SIZE,
        norm=_usable_norm(cfg),
        **_operator_options(cfg),
    )
    shapes = {
        name: ShapeSpec(channels=channels, stride=trunk.out_strides[name])
        for name, channels in trunk.out_channels.items()
    }
    return SliceBackbone(trunk, num_slices, shapes, out_features)


def _build_fpn(cfg, bottom_up: SliceBackbone, top_block: nn.Module | None = None) -> SliceFPN:
    return SliceFPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _num_slices(cfg, input_shape: ShapeSpec) -> int:
    if input_shape.channels != 1:
        raise ValueError(
            "MODEL.PIXEL_MEAN must have one entry, for the one grey channel; it is broadcast over the slices and "
            f"MODEL.A3D.NUM_SLICES says how many these are. Got {input_shape.channels} entries instead!"
        )
    num_slices = cfg.MODEL.A3D.NUM_SLICES
    if num_slices < 1 or num_slices % 2 == 0:
        raise ValueError(
            f"MODEL.A3D.NUM_SLICES must be odd, so that the key slice is the middle one. Got {num_slices} instead!"
        )
    return num_slices


def _operator_options(cfg) -> dict:
    op, thickness_aware = cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.THICKNESS_AWARE
    if thickness_aware and op != "a3d":
        raise ValueError(
            f"MODEL.A3D.THICKNESS_AWARE is an option of the operator a3d (alignshift always is). Got {op!r} instead!"
        )
    uses_thickness = thickness_aware or op == "alignshift"
    if uses_thickness != (cfg.INPUT.RESAMPLING in ("thin", "none")) and op != "a3d":
        log_first_n(
            logging.WARNING,
            f"MODEL.A3D.OPERATOR is {op!r} and INPUT.RESAMPLING {cfg.INPUT.RESAMPLING!r}. The published setup has "
            '"thin" for alignshift, which interpolates between thick slices itself, and "linear" for all others.',
            name=__name__,
            key="message",
        )
    # Slices closer than SLICE_INTERVAL are resampled to it: up to there nothing has to adapt.
    reference = {"reference_thickness": cfg.INPUT.SLICE_INTERVAL}
    if op == "alignshift":
        return reference
    return {"thickness_aware": True, **reference} if thickness_aware else {}


def _usable_norm(cfg) -> str:
    norm = cfg.MODEL.A3D.NORM
    if norm == "SyncBN" and (not cfg.MODEL.DEVICE.startswith("cuda") or comm.get_world_size() == 1):
        log_first_n(
            logging.WARNING,
            f"MODEL.A3D.NORM is SyncBN, which needs CUDA and several processes; using BN on {cfg.MODEL.DEVICE} with "
            f"{comm.get_world_size()} process(es).",
            name=__name__,
        )
        return "BN"
    return norm


def _keep_norm_and_activation(fusion_conv: FusionConv, original: Conv2d) -> None:
    """Give a fusion conv what Detectron2's Conv2d has beside the convolution."""
    fusion_conv.norm, fusion_conv.activation = original.norm, original.activation
    fusion_conv.register_forward_hook(_norm_and_activation)


def _norm_and_activation(conv: FusionConv, args: tuple, y: Tensor) -> Tensor:
    if conv.norm is not None:
        y = conv.norm(y)
    return y if conv.activation is None else conv.activation(y)
