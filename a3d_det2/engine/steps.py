"""An iteration of Detectron2's trainers that stops where the loss is no number, before the weights are changed."""

from collections.abc import Iterable, Iterator

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import get_event_storage

from .accumulation import AccumulatingModel
from .common import check_loss, naming_the_batch
from .loss_watch import ChanceWatch, LossWatch


class Remembered:
    """A data loader that keeps the batch it has given last.

    Attributes:
        batch: a list of dicts, as the mappers make them.
    """

    def __init__(self, loader: Iterable[list[dict]]):
        self.loader, self.batch = loader, []

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            self.batch = batch
            yield batch


class _ChecksLoss:
    """Part of a step: each process looks at the loss of its own batch, whose files it knows.

    Args:
        model, data_loader, optimizer, options: as of Detectron2's.
        accumulation: in how many parts a batch is done, see :class:`.AccumulatingModel`.
        chance: is told what the box head does; None is told nothing.

    Attributes:
        has_diverged: whether it has stopped.
    """

    has_diverged = False

    def __init__(
        self, model, data_loader, optimizer, *, accumulation: int = 1, chance: ChanceWatch | None = None, **options
    ):
        if accumulation > 1:
            scaler = options.get("grad_scaler")
            model = AccumulatingModel(model, accumulation, *([scaler.scale] if scaler else []))
            options["zero_grad_before_forward"] = True  # a backward is a part of its forward
        super().__init__(model, Remembered(data_loader), optimizer, **options)
        self._watch, self._chance = LossWatch(), chance

    def run_step(self):
        try:
            with naming_the_batch(self.iter + 1, self._names):
                super().run_step()
        except FloatingPointError:
            self.has_diverged = True
            raise

    def _write_metrics(self, loss_dict, data_time, prefix="", iter=None):
        losses = {name: float(value.detach()) for name, value in loss_dict.items()}
        self._watch.add(self.iter + 1, check_loss(losses))
        drawn = [get_event_storage().latest().get(f"roi_head/num_{kind}_samples") for kind in ("fg", "bg")]
        if self._chance and "loss_cls" in losses and None not in drawn and (count := drawn[0][0] + drawn[1][0]):
            self._chance.add(self.iter + 1, losses["loss_cls"], drawn[0][0] / count)
        super()._write_metrics(loss_dict, data_time, prefix, iter)

    def _names(self) -> list[str]:
        return [str(one.get("file_name", one.get("image_id"))) for one in self.data_loader.batch]


class Step(_ChecksLoss, SimpleTrainer):
    """SimpleTrainer that raises ``FloatingPointError`` where the loss is NaN or infinite."""


class AMPStep(_ChecksLoss, AMPTrainer):
    """AMPTrainer that does."""
