"""A batch that is done in parts, one after the other: the memory of one part, the gradients of all of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Losses = Mapping[str, Tensor]


def losses_in_parts(
    model: nn.Module,
    batch: Sequence,
    parts: int,
    losses_of: Callable[[Sequence], Losses],
    scale: Callable[[Tensor], Tensor] = torch.Tensor.clone,
) -> dict[str, Tensor]:
    """Compute the losses of a batch as the mean over its parts.

    The backward of all parts but the last is done here: the gradients must be zero before. That of the last is left to
    the caller, by the sum of what is returned, as that of a batch in one part would be. Batch norm sees a part as its
    batch.

    Args:
        model: whose gradients are meant; with several processes they are exchanged in the last backward alone.
        batch: images, as many in each part.
        parts: how many.
        losses_of: gives the losses of a part by their names.
        scale: what a loss becomes before its backward, such as that of a ``GradScaler``.

    Raises:
        ValueError: if the batch cannot be divided like that.
    """
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise ValueError(f"Expected a batch that can be divided into {parts} parts, got one of {len(batch)}.")
    before: dict[str, Tensor] = {}
    for start in range(0, len(batch) - size, size):
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            losses = {name: loss / parts for name, loss in losses_of(batch[start : start + size]).items()}
            total = sum(losses.values())
            with torch.autocast(total.device.type, enabled=False):
                scale(total).backward()
        before = {name: loss.detach() + before.get(name, 0) for name, loss in losses.items()}
    return {name: loss / parts + before.get(name, 0) for name, loss in losses_of(batch[-size:]).items()}


class AccumulatingModel(nn.Module):
    """A detector of Detectron2 that does its batches in parts, see :func:`losses_in_parts`, in training.

    Args:
        module: the detector, or one in ``DistributedDataParallel``.
        parts, scale: see :func:`losses_in_parts`.
    """

    def __init__(self, module: nn.Module, parts: int, scale: Callable[[Tensor], Tensor] = torch.Tensor.clone):
        super().__init__()
        self.module, self._parts, self._scale = module, parts, scale

    def forward(self, batch: list[dict]):
        if not (self.training and torch.is_grad_enabled()):  # Detectron2's PreciseBN trains without gradients
            return self.module(batch)
        return losses_in_parts(self.module, batch, self._parts, self.module, self._scale)
