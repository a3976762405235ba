"""Says when the loss of a training does what it does not do where something is learned."""

import logging
import math
import statistics

WINDOW = 20  # iterations of which the median counts, as in Detectron2's log
RISE = 1.5  # times the lowest median so far
PATIENCE = 3  # windows for which it stays above that
LEAST_RISE = 0.1  # of the first loss: one that is near nothing may be a multiple of what it was
LONG_WINDOW = 50  # iterations of which the mean is compared with chance
NEAR_CHANCE = 0.8  # of the loss of who knows the frequencies alone


class LossWatch:
    """Compares the loss of a training with its own past, and warns once where it has risen and does not come back.

    The medians of ``WINDOW`` iterations are compared, and with the very first loss, that of what has learned nothing. A
    spike that is over within one of them is not seen, as most trainings get over them. Where the loss comes back to
    where it was, the next rise is told again.

    Args:
        logger: is told.
    """

    def __init__(self, logger: logging.Logger | None = None):
        self._logger = logger or logging.getLogger(__name__)
        self._window: list[float] = []
        self._first = self._lowest = None
        self._lowest_at = 1
        self._above: list[float] = []  # medians in a row above the lowest
        self._told = False

    def add(self, iteration: int, loss: float) -> None:
        """
        Args:
            iteration: from 1 on.
            loss: the sum of all losses.
        """
        if self._first is None:
            self._first = self._lowest = loss
        self._window.append(loss)
        if len(self._window) < WINDOW:
            return
        median, self._window = statistics.median(self._window), []
        if median <= self._lowest:
            self._lowest, self._lowest_at = median, iteration
        if median <= max(RISE * self._lowest, self._lowest + LEAST_RISE * self._first):
            self._above, self._told = [], False
            return
        self._above.append(median)
        if len(self._above) >= PATIENCE and not self._told:
            self._told = True
            self._logger.warning(
                f"Iteration {iteration}: the loss has risen, and does not come back. It is {median:.4g}, and was "
                f"{self._lowest:.4g} at iteration {self._lowest_at} (medians of {WINDOW}). The training may have "
                "collapsed: look at a smaller SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS.CLIP_VALUE, docs/stability.md."
            )


class ChanceWatch:
    """Compares the classification loss of the box head with that of a head that knows how often its regions are
    lesions, and nothing else: -p log p - (1 - p) log(1 - p), with p the share of lesions among them. A head that is
    hardly better in the second half of a training has learned nothing of the images, as where annotations are of
    others. It warns once.

    Args:
        iterations: of the whole training.
        classes: of lesions; with several, all are as frequent for who knows nothing.
        logger: is told.
    """

    def __init__(self, iterations: int, classes: int = 1, logger: logging.Logger | None = None):
        self._half, self._classes = iterations // 2, classes
        self._logger = logger or logging.getLogger(__name__)
        self._losses: list[float] = []
        self._chances: list[float] = []
        self._told = False

    def add(self, iteration: int, loss: float, share: float) -> None:
        """
        Args:
            iteration: from 1 on.
            loss: cross-entropy of the regions that the box head classifies.
            share: of lesions among them.
        """
        if iteration <= self._half or self._told:
            return
        shares = [share / self._classes] * self._classes + [1 - share]
        self._losses.append(loss)
        self._chances.append(-sum(p * math.log(p) for p in shares if p > 0))
        if len(self._losses) < LONG_WINDOW:
            return
        mean, chance = statistics.mean(self._losses), statistics.mean(self._chances)
        self._losses, self._chances = [], []
        if mean >= NEAR_CHANCE * chance > 0:
            self._told = True
            self._logger.warning(
                f"Iteration {iteration}: the box head tells lesions from the rest hardly better than by how frequent "
                f"they are. Its loss is {mean:.3g}, by chance it would be {chance:.3g} (means of {LONG_WINDOW}). Are "
                "the annotations those of these images? docs/stability.md."
            )
