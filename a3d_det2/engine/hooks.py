"""Hooks of Detectron2's trainers."""

import logging
import math
import os

import torch
from detectron2.engine import HookBase
from torch.optim.swa_utils import AveragedModel

from ..checkpoint.detectron2 import LesionCheckpointer


class BestCheckpointer(HookBase):
    """Keep the weights with the highest value of a metric as ``model_best.pth``; to stand after ``EvalHook``.

    Other than Detectron2's hook of this name it keeps the value with the weights, so a resumed run does not overwrite
    a better model of the run before, and ``--resume`` never goes on from the best instead of the last weights.

    Args:
        eval_period: of the ``EvalHook``.
        checkpointer: what saves.
        metric: name in the event storage, such as "froc/avg".
    """

    def __init__(self, eval_period: int, checkpointer: LesionCheckpointer, metric: str):
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = metric
        self._best = -math.inf
        self._logger = logging.getLogger(__name__)

    def before_train(self) -> None:
        path = os.path.join(self._checkpointer.save_dir, "model_best.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            try:
                saved = torch.load(path, map_location="cpu", mmap=True)
            except Exception as error:  # of all kinds where the file is damaged
                raise ValueError(f"{path}: expected the best weights so far, got another file ({error}).") from error
            if self._metric in saved:
                self._best = saved[self._metric]
            else:
                self._logger.warning(f"{path} was not chosen by {self._metric}; the best is looked for anew.")

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._keep_if_best()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_best()

    def _keep_if_best(self) -> None:
        if self._metric not in self.trainer.storage.latest():
            self._logger.warning(f"The evaluation has no {self._metric}: no lesions? There is no model_best.pth.")
            return
        value, iteration = self.trainer.storage.latest()[self._metric]
        if value > self._best:
            self._best = value
            self._checkpointer.save("model_best", tag=False, iteration=iteration, **{self._metric: value})
        self._logger.info(f"{self._metric} = {value:.4f} at iteration {iteration}; the best so far is {self._best:.4f}")


class WeightAverage(HookBase):
    """Take the weights of each iteration into an average; to stand before what saves and tests it.

    Args:
        averaged: the average.
        model: whose weights they are, without ``DistributedDataParallel``.
        checkpointer: saves the average.
    """

    def __init__(self, averaged: AveragedModel, model: torch.nn.Module, checkpointer: LesionCheckpointer):
        self._averaged, self._model, self._checkpointer = averaged, model, checkpointer

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            self._checkpointer.go_on()

    def after_step(self) -> None:
        self._averaged.update_parameters(self._model)
