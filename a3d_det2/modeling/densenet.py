"""DenseNet that sees D slices at once, its dense layers' convolutions exchanged for context-fusion convs.

Parameter names are those of torchvision's DenseNet without the leading ``features.``, so ImageNet weights load by name.
Shape legend: N batch, C channels, D slices, H height, W width. D is never pooled.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.fast_block import CHECKPOINTS, dense_block, is_fast_block, norm_relu, recomputed, stripes
from ..kernels.memory_format import channels_last_kernel
from ..layers import FusionConv, SliceConv, build_fusion_conv
from ..layers.fusion_conv import fold_slices, unfold_slices
from ..layers.thickness import current_thickness, slice_thickness

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm3d,
    "SyncBN": nn.SyncBatchNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module], channels: int) -> nn.Module:
    """
    Args:
        norm: a key of ``NORMS``, or any callable that makes a norm over (N, C, D, H, W) from its channel count.

    Raises:
        ValueError: if ``norm`` is a string and not a key of ``NORMS``.
    """
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(f"Unknown norm {norm!r}. Choose one of {', '.join(NORMS)}.")
        norm = NORMS[norm]
    return norm(channels)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 fusion conv (bottleneck), norm, ReLU, 3x3 fusion conv: C -> growth_rate new channels."""

    def __init__(self, conv: Callable[..., FusionConv], in_channels: int, growth_rate: int, bn_size: int, norm):
        super().__init__()
        bottleneck = bn_size * growth_rate
        self.norm1 = get_norm(norm, in_channels)
        self.conv1 = conv(in_channels, bottleneck, 1)
        self.norm2 = get_norm(norm, bottleneck)
        self.conv2 = conv(bottleneck, growth_rate, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, D, H, W) -> (N, growth_rate, D, H, W)"""
        x = self.conv1(F.relu_(self.norm1(x)))  # (N, bn_size * growth_rate, D, H, W)
        return self.conv2(F.relu_(self.norm2(x)))


def _has_own_forward(layer: nn.Module) -> bool:
    """Whether a layer and its convolutions do what their classes in this package do, and not what a subclass with
    another forward, or somebody who has replaced it, wants them to."""

    def is_own(module: nn.Module, base: type[nn.Module]) -> bool:
        # nn.Module.compile also takes the place of the forward.
        return getattr(type(module), "forward", None) is base.forward and not (
            "forward" in vars(module) or module._compiled_call_impl
        )

    return is_own(layer, DenseLayer) and is_own(layer.conv1, FusionConv) and is_own(layer.conv2, FusionConv)


class DenseBlock(nn.ModuleDict):
    """``num_layers`` dense layers, each of which sees the channels of all before it: (N, in_channels, D, H, W) ->
    (N, in_channels + num_layers * growth_rate, D, H, W).

    Args:
        conv: makes a fusion conv of ``in_channels, out_channels, kernel_size`` and, by name, ``padding``.
        num_layers: dense layers.
        in_channels: channels of the input.
        growth_rate: channels each layer adds.
        bn_size: width of the bottleneck in growth rates.
        norm: see :func:`get_norm`.
        checkpointing: see :class:`DenseNet3D`.

    Attributes:
        out_channels: channels of the output.
    """

    def __init__(
        self,
        conv: Callable[..., FusionConv],
        num_layers: int,
        in_channels: int,
        growth_rate: int,
        bn_size: int,
        norm,
        checkpointing: str,
    ):
        super().__init__(
            {
                f"denselayer{i + 1}": DenseLayer(conv, in_channels + i * growth_rate, growth_rate, bn_size, norm)
                for i in range(num_layers)
            }
        )
        self.out_channels = in_channels + num_layers * growth_rate
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self.values())
        if all(map(_has_own_forward, layers)) and is_fast_block(x, layers):
            return dense_block(layers, x, current_thickness(), self.checkpointing)
        if self.checkpointing == "block" and torch.is_grad_enabled():
            return _recomputed(self._append_all, self, x)
        return self._append_all(x)

    def _append_all(self, x: Tensor) -> Tensor:
        for layer in self.values():
            if self.checkpointing == "layer" and torch.is_grad_enabled():
                new = _recomputed(layer, layer, x)
            else:
                new = layer(x)
            x = torch.cat([x, new], dim=1)
        return x


def _recomputed(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """``function(x)``, computed once more in the backward, with the same slice thickness and without another update of
    the running statistics in ``module``."""
    thickness = current_thickness()

    def within_scope(x: Tensor) -> Tensor:
        with slice_thickness(thickness):
            return function(x)

    return recomputed(within_scope, list(module.modules()), x)


def pool_slices(pool: nn.Module, x: Tensor) -> Tensor:
    """Pool each slice: (N, C, D, H, W) -> (N, C, D, H', W')."""
    return unfold_slices(pool(fold_slices(x)), x.shape[2])


def channels_last_image(x: Tensor) -> Tensor:
    """A tensor of one channel is contiguous as well as channels_last_3d; said by its strides, the convolution of it and
    all that follows is channels_last: (N, 1, D, H, W) -> the same. Anything else is left as it is."""
    if x.dim() != 5 or x.shape[1] != 1:
        return x
    return x.squeeze(1).contiguous().unsqueeze(-1).movedim(-1, 1)


class Transition(nn.Module):
    """Norm, ReLU, slice-wise 1x1 conv, 2x2 average pooling within the slice: (C, H, W) -> (C_out, H/2, W/2)."""

    def __init__(self, num_slices: int, in_channels: int, out_channels: int, norm):
        super().__init__()
        self.norm = get_norm(norm, in_channels)
        self.conv = SliceConv(in_channels, out_channels, 1, num_slices, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.norm.training:
            return self._forward(x)
        pairs = x[:, :, :, : x.shape[3] // 2 * 2]  # of rows; what is left over is in no pool
        ranges = stripes(pairs, x.shape[1], multiple=2)
        if len(ranges) <= 1:
            return self._forward(x)
        return torch.cat([self._forward(pairs[:, :, :, rows]) for rows in ranges], dim=3)

    def _forward(self, x: Tensor) -> Tensor:
        return pool_slices(self.pool, self.conv(norm_relu(self.norm, x, overwrite=False)))


class DenseNet3D(nn.Module):
    """DenseNet trunk over D slices; the default is DenseNet-121 truncated after dense block 3, as in Sec. 2.3 of the
    A3D paper.

    Fusion convs stand in both convolutions of every dense layer; stem and transitions work slice by slice.

    Args:
        op: name of the fusion operator, a key of ``a3d_det2.layers.FUSION_CONVS``.
        num_slices: D.
        block_config: dense layers per block; block i has stride 2 ** (i + 1), counted from 1.
        growth_rate: channels each dense layer adds.
        num_init_features: channels of the stem.
        bn_size: width of the bottleneck in growth rates.
        norm: "BN", "SyncBN" or a callable channels -> module.
        checkpointing: what the dense blocks keep for the backward: "" everything, "layer" only what each layer adds,
            "block" only their inputs; the rest is computed once more, which takes time and spares memory.
        in_channels: C of the input, 1 for grey slices.
        op_options: further arguments of the operator, such as ``thickness_aware=True`` for "a3d".

    Attributes:
        out_channels, out_strides: dicts with the channels and the H and W stride of each output, by name.
    """

    def __init__(
        self,
        op: str,
        num_slices: int,
        block_config: Sequence[int] = (6, 12, 24),
        growth_rate: int = 32,
        num_init_features: int = 64,
        bn_size: int = 4,
        norm: str | Callable[[int], nn.Module] = "BN",
        checkpointing: str = "",
        in_channels: int = 1,
        **op_options,
    ):
        super().__init__()
        if checkpointing not in CHECKPOINTS:
            raise ValueError(f"Unknown checkpointing {checkpointing!r}. Choose one of {CHECKPOINTS}.")
        self.num_slices = num_slices
        conv = partial(build_fusion_conv, op, num_slices=num_slices, bias=False, **op_options)
        self.conv0 = SliceConv(in_channels, num_init_features, 7, num_slices, stride=2, padding=3, bias=False)
        self.norm0 = get_norm(norm, num_init_features)
        self.pool0 = nn.MaxPool2d(3, stride=2, padding=1)

        self.out_channels: dict[str, int] = {}
        self.out_strides: dict[str, int] = {}
        channels = num_init_features
        for i, num_layers in enumerate(block_config, start=1):
            if i > 1:
                self.add_module(f"transition{i - 1}", Transition(num_slices, channels, channels // 2, norm))
                channels //= 2
            block = DenseBlock(conv, num_layers, channels, growth_rate, bn_size, norm, checkpointing)
            self.add_module(f"denseblock{i}", block)
            channels = block.out_channels
            self.out_channels[f"dense{i}"] = channels
            self.out_strides[f"dense{i}"] = 2 ** (i + 1)
        self._init_weights()

    def _init_weights(self) -> None:
        # As torchvision's DenseNet; the norms' weight 1 and bias 0 are torch's default.
        for module in self.modules():
            if isinstance(module, FusionConv):
                kernel = torch.empty(module.out_channels, module.in_channels, *module.kernel_size)
                module.weight.data.copy_(module.from_2d(nn.init.kaiming_normal_(kernel)))
                channels_last_kernel(module)

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, D, H, W)
            thickness: (N,) slice thickness in mm, which some operators need; None is that of the scope, see
                :func:`~a3d_det2.layers.thickness.slice_thickness`.

        Returns:
            {"dense1": (N, 256, D, H/4, W/4), "dense2": (N, 512, D, H/8, W/8), "dense3": (N, 1024, D, H/16, W/16)}
            for the default arguments.

        Raises:
            ValueError: if ``x`` has another shape, or the operator needs the thickness and it is missing or bad.
        """
        with slice_thickness(thickness):
            return self._forward(x)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        x = norm_relu(self.norm0, self.conv0(channels_last_image(x)), overwrite=True)
        x = pool_slices(self.pool0, x)  # (N, 1, D, H, W) -> (N, C, D, H/4, W/4)
        outputs = {}
        for i, name in enumerate(self.out_channels, start=1):
            if i > 1:
                x = getattr(self, f"transition{i - 1}")(x)
            x = getattr(self, f"denseblock{i}")(x)
            outputs[name] = x
        return outputs
