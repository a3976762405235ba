"""Batch norm as a scaling and a shift per channel, which the mixing step takes along, with the statistics apart.

Several norms over the same channels, as in a dense block, share one pass over the data for their statistics, and their
gradients with respect to the statistics meet before they go through the data again.
"""

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_reduce

from . import cpu
from .memory_format import side_by_side
from .mixing import kernel_for

_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Statistics(NamedTuple):
    """Mean and biased variance per channel, (C,) each, over ``count`` values; a tensor where it is on several GPUs."""

    mean: Tensor
    var: Tensor
    count: int | Tensor

    @classmethod
    def cat(cls, parts: list["Statistics"]) -> "Statistics":
        """Join the statistics of parts of the channels, in their order."""
        return cls(torch.cat([part.mean for part in parts]), torch.cat([part.var for part in parts]), parts[0].count)


def is_affine(norm: nn.Module) -> bool:
    """Whether ``norm`` is a batch norm that :func:`coefficients` replaces: none with hooks, nor without parameters or
    running statistics."""
    return (
        type(norm) in _BATCH_NORMS
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and "forward" not in vars(norm)
        and not has_hooks(norm)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what ``module`` takes and gives, it alone or all modules."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    of_all = vars(nn.modules.module)
    return any(getattr(module, f"_{kind}") or of_all[f"_global_{kind}"] for kind in kinds)


def coefficients(norm: nn.Module, statistics: Statistics | None) -> tuple[Tensor, Tensor]:
    """scale and shift, (C,) each, with which ``norm(x) = scale x + shift``.

    Args:
        norm: see :func:`is_affine`.
        statistics: of the batch; None for the running ones of ``norm``.
    """
    mean, var = (norm.running_mean, norm.running_var) if statistics is None else statistics[:2]
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    return scale, torch.addcmul(norm.bias, mean, scale, value=-1)


@torch.no_grad()
def update_running_statistics(norm: nn.Module, statistics: Statistics) -> None:
    """Move the running statistics of ``norm`` towards those of a batch, as its training forward does."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(statistics.mean.detach().to(norm.running_mean), norm.momentum)
    unbiased = statistics.var.detach() * (statistics.count / (statistics.count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var), norm.momentum)


def batch_statistics(norm: nn.Module, x: Tensor) -> Statistics:
    """The statistics with which ``norm`` normalises (N, C, D, H, W) in training, differentiable.

    Raises:
        ValueError: see :func:`over_batch`.
    """
    return over_batch(norm, *_ChannelStatistics.apply(x), x.numel() // x.shape[1])


def over_batch(norm: nn.Module, mean: Tensor, var: Tensor, count: int) -> Statistics:
    """The statistics with which ``norm`` normalises, from those of this process: for SyncBN those of its group.

    Raises:
        ValueError: as batch norm, if there is only one value per channel.
    """
    synchronised = isinstance(norm, nn.SyncBatchNorm) and distributed.is_available() and distributed.is_initialized()
    if synchronised and distributed.get_world_size(norm.process_group) > 1:
        return over_processes(mean, var, count, norm.process_group)
    if count <= 1:
        raise ValueError(f"Expected more than one value per channel in training. Got {count}!")
    return Statistics(mean, var, count)


def over_processes(mean: Tensor, var: Tensor, count: int, group=None) -> Statistics:
    """Combine the statistics of all processes, whose counts may differ; differentiable."""
    wide = mean.double()  # the square of the mean is subtracted again
    sums = torch.cat([wide, var.double() + wide.square(), wide.new_ones(1)]) * count
    sums = all_reduce(sums, group=group)
    total = sums[-1].detach()  # stays where it is: the process must not wait for its GPU
    mean_of_all, squares = (sums[:-1] / total).chunk(2)
    var_of_all = (squares - mean_of_all.square()).clamp(min=0)
    return Statistics(mean_of_all.to(mean), var_of_all.to(var), total)


@torch.no_grad()
def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of (N, C, D, H, W): two of (C,) in float32 or the input's wider dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if kernel_for(x) is cpu and x.numel() > 0:
        mean, var = cpu.statistics(side_by_side(x))
    else:
        var, mean = torch.var_mean(x.to(dtype), (0, 2, 3, 4), correction=0)
    return mean.to(dtype), var.to(dtype)


def add_channel_statistics_backward(
    grad: Tensor | float, x: Tensor, mean: Tensor, grad_mean: Tensor, grad_var: Tensor
) -> Tensor:
    """``grad`` and the gradient with respect to ``x`` of what :func:`channel_statistics` gives, (N, C, D, H, W)."""
    # d mean / dx = 1 / count and d var / dx = 2 (x - mean) / count.
    each = x.shape[1] / x.numel()
    factor = 2 * each * grad_var
    offset = each * grad_mean - factor * mean
    # In the precision of the statistics: rounded before it is added, a shift of all pixels would stay one.
    return torch.addcmul(grad + offset.view(-1, 1, 1, 1), x.to(mean.dtype), factor.view(-1, 1, 1, 1)).to(x.dtype)


class _ChannelStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = channel_statistics(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        return add_channel_statistics_backward(0.0, *ctx.saved_tensors, grad_mean, grad_var)
