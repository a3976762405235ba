"""How a dense block runs fast: every value moved as seldom as can be.

The plain :class:`DenseBlock` copies all channels so far for each layer, normalises them, applies the ReLU and mixes the
slices, each in passes of its own. Here

- all channels lie in one tensor, channels_last_3d, to which each layer appends its new ones;
- norm, ReLU and mixing are one pass (:func:`.mix_slices`) from there to the convolution's input;
- the norms of all layers share the statistics of the channels they have in common;
- the gradients of all layers are added up in place.

Parameters, buffers and results are those of the plain path. It has to be one tensor per block: with ``torch.cat`` every
layer would keep a copy of its own of all channels before it for the backward, however they are mixed.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .batch_norm import (
    Statistics,
    add_channel_statistics_backward,
    batch_statistics,
    channel_statistics,
    coefficients,
    has_hooks,
    is_affine,
    over_batch,
    update_running_statistics,
)
from .memory_format import like, side_by_side
from .mixing import is_exported, kernel_for, mix_slices

STRIPE_BYTES = 4 * 2**20
CHECKPOINTS = ("", "layer", "block")
Updates = list[tuple[nn.Module, Statistics]]  # norms, and what their running statistics are to see


def is_fast(x: Tensor, norms: Sequence[nn.Module]) -> bool:
    """Whether what is below may take the place of calling the norms: there is a kernel, they are batch norms, and
    nobody looks at each of torch's operations, which the kernel is none of."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and type(x) is Tensor
        and x.numel() > 0
        and kernel_for(x) is not None
        and all(is_affine(norm) for norm in norms)
    )


def is_fast_block(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether :func:`dense_block` may take the place of calling the layers, whose forward nobody has changed."""
    convs = [conv for layer in layers for conv in (layer.conv1, layer.conv2)]
    return (
        len({layer.conv1.out_channels for layer in layers}) == 1  # the bottlenecks share their memory
        and is_fast(x, [norm for layer in layers for norm in (layer.norm1, layer.norm2)])
        and not any(has_hooks(module) for module in (*layers, *convs))
    )


def norm_relu(norm: nn.Module, x: Tensor, overwrite: bool) -> Tensor:
    """relu(norm(x)) of (N, C, D, H, W); if ``overwrite`` says so and there are no gradients, in the place of ``x``."""
    if not is_fast(x, [norm]):
        return F.relu_(norm(x))
    statistics = batch_statistics(norm, x) if norm.training else None
    if statistics is not None:
        update_running_statistics(norm, statistics)
    return (_mix if overwrite else mix_slices)(x, None, *coefficients(norm, statistics))


def dense_block(layers: Sequence[nn.Module], x: Tensor, thickness: Tensor | None, checkpointing: str = "") -> Tensor:
    """
    Args:
        layers: dense layers, each with norm1, conv1, norm2 and conv2. A convolution has ``out_channels``,
            ``mixing_weight(thickness, N)``, which says how it mixes the slices or None, and ``fuse(x, thickness)``,
            the rest of what it does.
        x: (N, C, D, H, W)
        thickness: (N,) in mm, or None.
        checkpointing: where there are gradients, "layer" keeps only what each layer adds, and "block" only ``x``; the
            rest is computed once more in the backward. "" keeps everything. As with torch's ``checkpoint``, parameters
            that ``functional_call`` puts in the place of the modules' own are not seen by then.

    Returns:
        (N, C + new channels, D, H, W), channels_last_3d
    """
    if not torch.is_grad_enabled():
        if not any(norm.training for layer in layers for norm in (layer.norm1, layer.norm2)):
            return _inference(layers, x, thickness)
        checkpointing = ""
    updates: Updates = []
    if checkpointing == "block":
        y = checkpoint(_training, layers, x, thickness, "", updates, use_reentrant=False, preserve_rng_state=False)
    else:
        y = _training(layers, x, thickness, checkpointing, updates)
    for norm, statistics in updates:
        update_running_statistics(norm, statistics)
    return y


class _NothingLearnt:
    """Keeps norms from changing their running statistics while it is entered, which each backward does anew."""

    def __init__(self, norms: Sequence[nn.Module]):
        self.norms = [norm for norm in norms if getattr(norm, "track_running_stats", False) and norm.training]

    def __enter__(self) -> None:
        self.momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error) -> None:
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.sub_(1)


def recomputed(function: Callable, norms: Sequence[nn.Module], *args):
    """``function(*args)``, computed once more in the backward, when it leaves the running statistics of the ``norms``
    as they are."""
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _NothingLearnt(norms)),
    )


def stripes(x: Tensor, channels: int, multiple: int = 1) -> list[slice]:
    """Ranges of H for work that looks at each pixel alone: the whole height on a GPU; on the CPU so few rows, a
    multiple of ``multiple``, that ``channels`` of them stay in its cache, and in memory that it already has. A network
    that is exported has no stripes, whose number would be that of one size of images."""
    height = x.shape[3]
    if is_exported():
        return [slice(0, height)]
    row = max(1, x.numel() // (x.shape[1] * max(height, 1)) * channels * x.element_size())
    rows = max(multiple, STRIPE_BYTES // row // multiple * multiple) if x.device.type == "cpu" else height
    return [slice(first, min(first + rows, height)) for first in range(0, height, max(rows, 1))]


def _inference(layers: Sequence[nn.Module], x: Tensor, thickness: Tensor | None) -> Tensor:
    batch, channels = x.shape[:2]
    kernel = kernel_for(x)
    block = _channels_last(x, channels + sum(layer.conv2.out_channels for layer in layers))
    block[:, :channels].copy_(x)
    hidden = _channels_last(x, layers[0].conv1.out_channels)
    for layer in layers:
        weight_1 = layer.conv1.mixing_weight(thickness, batch)
        weight_2 = layer.conv2.mixing_weight(thickness, batch)
        norm_1, norm_2 = coefficients(layer.norm1, None), coefficients(layer.norm2, None)
        for rows in stripes(x, channels):
            seen = block[:, :channels, :, rows]
            mixed = _channels_last(seen, channels)
            kernel.mix(seen, weight_1, *norm_1, mixed)
            to = hidden[:, :, :, rows]
            bottleneck = layer.conv1.fuse(mixed, thickness).to(to.dtype)  # autocast may have changed it
            kernel.mix(like(bottleneck, to), weight_2, *norm_2, to)
        new = layer.conv2.fuse(hidden, thickness)
        block[:, channels : channels + new.shape[1]].copy_(new)
        channels += new.shape[1]
    return block


def _training(
    layers: Sequence[nn.Module], x: Tensor, thickness: Tensor | None, checkpointing: str, updates: Updates
) -> Tensor:
    norm = layers[0].norm1
    count = x.numel() // x.shape[1]
    block = _channels_last(x, x.shape[1] + sum(layer.conv2.out_channels for layer in layers))
    seen, mean, var = _Append.apply(_same_memory(block, 0), x)
    parts = []
    trains = any(layer.norm1.training for layer in layers)
    for layer in layers:
        statistics = None
        if trains:
            parts.append(over_batch(norm, mean, var, count))
        if layer.norm1.training:
            statistics = Statistics.cat(parts)
            updates.append((layer.norm1, statistics))
        arguments = (layer, seen, thickness, *coefficients(layer.norm1, statistics))
        if checkpointing == "layer":
            seen, new, statistics = checkpoint(_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            seen, new, statistics = _layer(*arguments)
        if statistics is not None:
            updates.append((layer.norm2, statistics))
        seen, mean, var = _Append.apply(seen, new)
    return _End.apply(seen)


def _layer(
    layer: nn.Module, seen: Tensor, thickness: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Statistics | None]:
    """
    Returns:
        ``seen`` for the next layer, the new channels, and the statistics of the second norm in training.
    """
    seen, mixed = _MixSeen.apply(seen, layer.conv1.mixing_weight(thickness, len(seen)), scale, shift)
    hidden = layer.conv1.fuse(mixed, thickness)
    statistics = batch_statistics(layer.norm2, hidden) if layer.norm2.training else None
    weight = layer.conv2.mixing_weight(thickness, len(seen))
    hidden = _mix(hidden, weight, *coefficients(layer.norm2, statistics))
    if statistics is not None:
        statistics = Statistics(*(t.detach() if isinstance(t, Tensor) else t for t in statistics))
    return seen, layer.conv2.fuse(hidden, thickness), statistics


def _mix(x: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """:func:`mix_slices`, without gradients in the place of ``x``."""
    if torch.is_grad_enabled():
        return mix_slices(x, weight, scale, shift)
    x = side_by_side(x)
    kernel_for(x).mix(x, weight, scale, shift, x)
    return x


def _channels_last(x: Tensor, channels: int) -> Tensor:
    """An empty tensor like ``x`` with another number of channels, side by side."""
    batch, _, slices, height, width = x.shape
    return x.new_empty(batch, slices, height, width, channels).permute(0, 4, 1, 2, 3)  # (N, C, D, H, W)


# In training the channels so far are a tensor of their own at each layer, though all lie in the same memory: autograd
# must not see that later layers write beside what earlier ones have read. Until _End nobody else holds these
# tensors or their gradients, which is why the gradients may be added up in place.


def _same_memory(seen: Tensor, channels: int) -> Tensor:
    """The first ``channels`` channels of the block in which ``seen`` lies, as a tensor that is no view of ``seen``."""
    batch, _, *rest = seen.shape
    shape = (batch, channels, *rest)
    return seen.new_empty(0).set_(seen.untyped_storage(), seen.storage_offset(), shape, seen.stride())


class _MixSeen(torch.autograd.Function):
    """:func:`mix_slices`, which also hands on ``seen``: so its backward gets the gradient with respect to it from all
    later layers, and adds its own to that."""

    @staticmethod
    def forward(ctx, seen: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        mixed = _channels_last(seen, seen.shape[1])
        ctx.kernel = kernel_for(seen)
        ctx.kernel.mix(seen, weight, scale, shift, mixed)
        ctx.save_for_backward(seen, weight, scale, shift)
        return _same_memory(seen, seen.shape[1]), mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_seen: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        seen, *coefficients = ctx.saved_tensors
        grads = ctx.kernel.mix_backward(like(grad, seen), seen, *coefficients, grad_seen, accumulate=True)
        return grad_seen, *(None if t is None else g for t, g in zip(coefficients, grads, strict=True))


class _Append(torch.autograd.Function):
    """``seen`` and the ``new`` channels after it, and the mean and variance of the new ones."""

    @staticmethod
    def forward(ctx, seen: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channels = seen.shape[1]
        both = _same_memory(seen, channels + new.shape[1])
        part = _same_memory(both, both.shape[1])[:, channels:]
        part.copy_(new)
        mean, var = channel_statistics(part)
        ctx.save_for_backward(part, mean)
        ctx.set_materialize_grads(False)
        return both, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, Tensor]:
        part, mean = ctx.saved_tensors
        channels = grad.shape[1] - part.shape[1]
        grad_seen, grad_new = grad[:, :channels], grad[:, channels:]
        if grad_mean is not None:  # in evaluation mode nobody uses the statistics
            grad_new = add_channel_statistics_backward(grad_new, part, mean, grad_mean, grad_var)
        return grad_seen, grad_new


class _End(torch.autograd.Function):
    """Hands the block on as a tensor that anybody may use, and copies its gradient, which the layers then change."""

    @staticmethod
    def forward(ctx, seen: Tensor) -> Tensor:
        block = _same_memory(seen, seen.shape[1])
        ctx.save_for_backward(block)  # autograd then notices when it, and all that was saved of it, is overwritten
        return block

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return _channels_last(grad, grad.shape[1]).copy_(grad)
