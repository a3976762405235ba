"""Detectron2 backbones: trunk and squeeze, alone or under a neck. The builders are the only readers of cfg here.

An image is (D, H, W), one grey channel per slice, so a batch is (N, D, H, W).
"""

import logging

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from .densenet import DenseNet3D, SliceSqueeze
from .fused_neck import FusedNeck


class DenseNet3DBackbone(Backbone):
    """The trunk with its outputs squeezed to 2D.

    Args:
        trunk: the network over D slices.
        out_features: which of its outputs, such as ["dense1", "dense2", "dense3"]; all by default. The last one must be
            the trunk's last, or a part of the trunk would do nothing.
    """

    def __init__(self, trunk: DenseNet3D, out_features: list[str] | None = None):
        super().__init__()
        names = list(trunk.out_channels)
        out_features = out_features or names
        if not set(out_features) <= set(names) or out_features[-1] != names[-1]:
            raise ValueError(
                f"Expected out_features among {names}, ending with {names[-1]!r} (see MODEL.A3D.BLOCK_CONFIG). "
                f"Got {list(out_features)}."
            )
        self.trunk = trunk
        self.squeeze = nn.ModuleDict(
            {name: SliceSqueeze(trunk.out_channels[name], trunk.num_slices) for name in out_features}
        )
        self._out_features = list(out_features)
        self._out_feature_channels = trunk.out_channels
        self._out_feature_strides = trunk.out_strides

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, D, H, W)

        Returns:
            {"dense1": (N, 256, H/4, W/4), ...}: the trunk's outputs without D.

        Raises:
            ValueError: if ``x`` does not have D channels.
        """
        if x.dim() != 4 or x.shape[1] != self.trunk.num_slices:
            raise ValueError(
                f"The backbone takes images of shape (N, D, H, W) with D = {self.trunk.num_slices} slices "
                f"(MODEL.A3D.NUM_SLICES). Got {tuple(x.shape)} instead!"
            )
        features = self.trunk(x.unsqueeze(1))  # (N, D, H, W) -> {name: (N, C, D, H', W')}
        return {name: squeeze(features[name]) for name, squeeze in self.squeeze.items()}

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[self._out_features[-1]]


class FusedBackbone(Backbone):
    """A backbone under the paper's fused neck: one map, called "p2" when its stride is 4.

    Args:
        bottom_up: the backbone below.
        in_features: names of its outputs to fuse, finest first.
        out_channels: channels of the map.
    """

    def __init__(self, bottom_up: Backbone, in_features: list[str], out_channels: int):
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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, D, H, W) -> {"p2": (N, out_channels, H/4, W/4)}"""
        features = self.bottom_up(x)
        return {self._out_features[0]: self.neck([features[name] for name in self.in_features])}

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_backbone(cfg, input_shape: ShapeSpec) -> DenseNet3DBackbone:
    """
    Returns:
        trunk and squeeze; the outputs are "dense1", "dense2", ..., all of them.

    Raises:
        ValueError: if NUM_SLICES is even, PIXEL_MEAN has not one entry, or OPERATOR or NORM is unknown.
    """
    return _build_bottom_up(cfg, input_shape, out_features=None)


def _build_bottom_up(cfg, input_shape: ShapeSpec, out_features: list[str] | None) -> DenseNet3DBackbone:
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
    return DenseNet3DBackbone(
        DenseNet3D(
            cfg.MODEL.A3D.OPERATOR,
            num_slices,
            block_config=cfg.MODEL.A3D.BLOCK_CONFIG,
            growth_rate=cfg.MODEL.A3D.GROWTH_RATE,
            num_init_features=cfg.MODEL.A3D.NUM_INIT_FEATURES,
            bn_size=cfg.MODEL.A3D.BN_SIZE,
            norm=_usable_norm(cfg),
        ),
        out_features,
    )


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    Returns:
        Detectron2's FPN over MODEL.FPN.IN_FEATURES of the trunk; the outputs are "p2", "p3", ...
    """
    return FPN(
        bottom_up=_build_bottom_up(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_a3d_densenet_fused_backbone(cfg, input_shape: ShapeSpec) -> FusedBackbone:
    """
    Returns:
        the fused neck over MODEL.FPN.IN_FEATURES of the trunk, with MODEL.FPN.OUT_CHANNELS; the output is "p2".
    """
    return FusedBackbone(
        _build_bottom_up(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
    )


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
