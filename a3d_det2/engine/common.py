"""What the trainings of both engines share."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fvcore.common.config import CfgNode
from torch import distributed, nn

from ..files import shortened


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first, which is the one that saves: the statistics of BN differ between
    them, and a test is to be of the model that is saved."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def check_loss(losses: Mapping[str, float]) -> float:
    """
    Args:
        losses: of a batch, by their names.

    Returns:
        their sum.

    Raises:
        FloatingPointError: if their sum is NaN or infinite.
    """
    total = sum(losses.values())
    if not math.isfinite(total):
        parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        raise FloatingPointError(f"The loss is {total} ({parts}).")
    return total


@contextmanager
def naming_the_batch(iteration: int, names: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Let the message of a ``FloatingPointError`` within begin with the iteration, from 1 on, and the images of it."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"Iteration {iteration}, with the images {', '.join(names())}: {error} The last checkpoint is of before."
        ) from error


def whole_number(state: dict, key: str) -> int:
    """Get a number that a checkpoint has of its training, such as the iteration.

    Raises:
        ValueError: if it is no whole number from 0 on.
    """
    value = state.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number from 0 on as {key!r}, got {shortened(value)}")
    return value


def inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Where the results on a dataset go: ``inference`` in OUTPUT_DIR, or a folder in that for each of several."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder
