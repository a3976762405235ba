"""Detectron2's DefaultTrainer for lesions."""

import weakref
from functools import partial

import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.solver import build_optimizer
from detectron2.utils import comm

from .. import registration  # noqa: F401 - a process that is given a config has to know what it names
from ..checkpoint.detectron2 import LesionCheckpointer
from ..config import amp_dtype, clips_full_model
from ..data.loaders import build_lesion_test_loader, build_lesion_train_loader
from ..evaluation.deeplesion_evaluation import DeepLesionEvaluator
from .averaging import EMA, averaged_model, in_ema_folder
from .common import broadcast_buffers, inference_folder, whole_number
from .ensemble import Detectron2Ensemble, with_views
from .hooks import BestCheckpointer, WeightAverage
from .loss_watch import ChanceWatch
from .predictor import load_detector
from .steps import AMPStep, Step


class Trainer(DefaultTrainer):
    """DefaultTrainer with DeepLesion's mapper and evaluator, strict checkpoints, and several processes on CPU."""

    def __init__(self, cfg):
        # As DefaultTrainer, which leaves no room for another checkpointer nor for DDP without a device.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device_ids = [comm.get_local_rank()] if model.device.type == "cuda" else None
        ddp_model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = self.build_step(cfg, ddp_model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.averaged = averaged_model(cfg, model)
        checkpointables = {"trainer": weakref.proxy(self)} | ({EMA: self.averaged} if self.averaged else {})
        self.checkpointer = self.build_checkpointer(cfg, model, **checkpointables)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_step(cls, cfg, model, data_loader, optimizer) -> SimpleTrainer:
        """Make what runs an iteration, with or without mixed precision.

        Raises:
            ValueError: if SOLVER.AMP.DTYPE is unknown.
        """
        how = {
            "accumulation": cfg.SOLVER.ACCUMULATION,
            "chance": ChanceWatch(cfg.SOLVER.MAX_ITER, cfg.MODEL.ROI_HEADS.NUM_CLASSES),
        }
        if not cfg.SOLVER.AMP.ENABLED:
            return Step(model, data_loader, optimizer, **how)
        dtype = amp_dtype(cfg, "cuda")  # AMPTrainer knows no other device
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        return AMPStep(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype, **how)

    def after_train(self):
        # It is called after an exception too: what has diverged is not evaluated, and is never the best.
        if self._trainer.has_diverged:
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, (EvalHook, BestCheckpointer))]
        super().after_train()

    def build_hooks(self):
        hooks, cfg = super().build_hooks(), self.cfg
        after = next(i for i, hook in enumerate(hooks, start=1) if isinstance(hook, EvalHook))
        hooks[after:after] = self._best_checkpointers(self.checkpointer)
        if self.averaged:
            cfg, model = in_ema_folder(cfg), self.averaged.module
            checkpointer = self.build_checkpointer(cfg, model)
            hooks[after:after] = [
                *([PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)] if comm.is_main_process() else []),
                EvalHook(cfg.TEST.EVAL_PERIOD, lambda: {EMA: self.test(cfg, model)}),
                *self._best_checkpointers(checkpointer, f"{EMA}/"),
            ]
            average = WeightAverage(self.averaged, self.checkpointer.model, checkpointer)
            hooks.insert(0, average)  # before it is saved and tested
        return hooks

    def _best_checkpointers(self, checkpointer, prefix: str = "") -> list[BestCheckpointer]:
        """One, to stand after a test whose metrics have the prefix; none where there is nothing to test, or another
        process does it."""
        if not (comm.is_main_process() and self.cfg.DATASETS.TEST):
            return []
        return [BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, checkpointer, prefix + best_metric(self.cfg))]

    @classmethod
    def build_checkpointer(cls, cfg, model, **checkpointables) -> LesionCheckpointer:
        return LesionCheckpointer(model, cfg.OUTPUT_DIR, stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS, **checkpointables)

    @classmethod
    def build_optimizer(cls, cfg, model) -> torch.optim.Optimizer:
        """Detectron2's, or with SOLVER.CLIP_GRADIENTS.FULL_MODEL one that clips the norm over all parameters."""
        if not clips_full_model(cfg):
            return build_optimizer(cfg, model)
        clip, cfg = cfg.SOLVER.CLIP_GRADIENTS, cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_optimizer(cfg, model)

        def clip_full_model(*_):
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_full_model)
        return optimizer

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if its iteration is no whole number from 0 on.
        """
        whole_number(state_dict, "iteration")
        super().load_state_dict(state_dict)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_lesion_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_lesion_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name) -> DeepLesionEvaluator:
        return DeepLesionEvaluator(dataset_name, inference_folder(cfg, dataset_name))

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        broadcast_buffers(model)
        model = with_views(cfg, model, Detectron2Ensemble, partial(cls._build_trained, cfg))
        return super().test(cfg, model, evaluators)

    @classmethod
    def _build_trained(cls, cfg, weights: str) -> torch.nn.Module:
        model = cls.build_model(cfg)
        load_detector(cls.build_checkpointer(cfg, model), weights)
        return model.eval()


def best_metric(cfg) -> str:
    """Name of the average sensitivity, of the first test set, in the event storage."""
    return "froc/avg" if len(cfg.DATASETS.TEST) == 1 else f"{cfg.DATASETS.TEST[0]}/froc/avg"
