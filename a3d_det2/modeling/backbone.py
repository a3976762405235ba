"""Detectron2 backbones: trunk, squeeze and neck with the shapes of their outputs, and what builds them of a config.

A backbone is called with a batch (N, D, H, W), within a scope of the slice thickness if the operator needs it; see
:func:`~a3d_det2.layers.thickness.slice_thickness`.
"""

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..layers import convert_to_3d
from ..layers.convert import keep_norm_and_activation
from .build import build_squeezed_densenet, checked_num_slices, input_channels, operator_options, window_channels
from .fused_neck import FusedTrunk
from .squeeze import SqueezedTrunk, StackedTrunk


class SliceBackbone(SqueezedTrunk, Backbone):
    """A :class:`.SqueezedTrunk` as a Detectron2 backbone."""

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the trunk, if it is one of Detectron2's."""
        return getattr(self.trunk, "padding_constraints", {})

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=self.out_strides[name])
            for name, channels in self.out_channels.items()
        }


class StackedBackbone(StackedTrunk, SliceBackbone):
    """A :class:`.StackedTrunk` as a Detectron2 backbone."""


class FusedBackbone(FusedTrunk, Backbone):
    """A :class:`.FusedTrunk` as a Detectron2 backbone."""

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=self.out_channels, stride=stride) for name, stride in self.out_strides.items()}


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_backbone(cfg, input_shape: ShapeSpec) -> SliceBackbone:
    """Build DenseNet trunk and squeeze with all outputs, see :func:`.build_squeezed_densenet`."""
    return build_squeezed_densenet(cfg, squeezed=SliceBackbone)


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Returns:
        Detectron2's FPN over MODEL.FPN.IN_FEATURES of the DenseNet trunk; the outputs are "p2", "p3", ...
    """
    return _build_fpn(cfg, build_squeezed_densenet(cfg, cfg.MODEL.FPN.IN_FEATURES, SliceBackbone))


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fused_backbone(cfg, input_shape: ShapeSpec) -> FusedBackbone:
    """
    Returns:
        the fused neck over MODEL.FPN.IN_FEATURES of the DenseNet trunk, with MODEL.FPN.OUT_CHANNELS; the output is
        "p2".
    """
    bottom_up = build_squeezed_densenet(cfg, cfg.MODEL.FPN.IN_FEATURES, SliceBackbone)
    return FusedBackbone(bottom_up, cfg.MODEL.FPN.OUT_CHANNELS)


@BACKBONE_REGISTRY.register()
def build_densenet_2d_fused_backbone(cfg, input_shape: ShapeSpec) -> FusedBackbone:
    """
    Returns:
        as :func:`build_a3d_densenet_fused_backbone`, of a 2D DenseNet whose input channels are the slices;
        MODEL.A3D.OPERATOR has no effect.
    """
    bottom_up = build_squeezed_densenet(cfg, cfg.MODEL.FPN.IN_FEATURES, StackedBackbone)
    return FusedBackbone(bottom_up, cfg.MODEL.FPN.OUT_CHANNELS)


@BACKBONE_REGISTRY.register()
def build_a3d_retinanet_densenet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Returns:
        as :func:`build_a3d_densenet_fpn_backbone`, with the two coarser levels of RetinaNet and FCOS: "p3" to "p7" of
        dense2 to dense4, for which MODEL.A3D.BLOCK_CONFIG has a fourth block.
    """
    bottom_up = build_squeezed_densenet(cfg, cfg.MODEL.FPN.IN_FEATURES, SliceBackbone)
    return _build_fpn(cfg, bottom_up, _p6_p7(cfg, bottom_up))


@BACKBONE_REGISTRY.register()
def build_a3d_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Returns:
        Detectron2's FPN over Detectron2's ResNet (MODEL.RESNETS) with its convolutions exchanged; the stem stays
        slice-wise. The outputs are "p2", "p3", ..., as of ``build_resnet_fpn_backbone``, and a checkpoint of a 2D model
        with that backbone loads into it (see :class:`~a3d_det2.checkpoint.formats.Detectron2Model`).
    """
    return _build_fpn(cfg, _convert_resnet(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_a3d_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Returns:
        as :func:`build_a3d_resnet_fpn_backbone`, with the two coarser levels of RetinaNet and FCOS, as of
        ``build_retinanet_resnet_fpn_backbone``.
    """
    bottom_up = _convert_resnet(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _p6_p7(cfg, bottom_up))


def _convert_resnet(cfg, input_shape: ShapeSpec) -> SliceBackbone:
    num_slices = checked_num_slices(cfg)
    resnet = build_resnet_backbone(cfg, ShapeSpec(channels=input_channels(cfg)))
    trunk = convert_to_3d(
        resnet,
        cfg.MODEL.A3D.OPERATOR,
        num_slices,
        slice_wise=lambda name, conv: name.startswith("stem."),
        subclasses={Conv2d: keep_norm_and_activation},
        **operator_options(cfg),
    )
    shapes = resnet.output_shape()
    channels = {name: shape.channels for name, shape in shapes.items()}
    strides = {name: shape.stride for name, shape in shapes.items()}
    options = {"squeeze_init": cfg.MODEL.A3D.SQUEEZE_INIT, "windows": window_channels(cfg)}
    return SliceBackbone(trunk, num_slices, channels, strides, cfg.MODEL.FPN.IN_FEATURES, **options)


def _p6_p7(cfg, bottom_up: SliceBackbone) -> LastLevelP6P7:
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    return LastLevelP6P7(bottom_up.out_channels[last], cfg.MODEL.FPN.OUT_CHANNELS, last)


def _build_fpn(cfg, bottom_up: SliceBackbone, top_block: nn.Module | None = None) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        square_pad=bottom_up.padding_constraints.get("square_size", 0),
    )
