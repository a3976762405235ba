#!/usr/bin/env python
"""Train and evaluate a lesion detector with Detectron2.

    python train_net.py --config-file configs/a3d_7slice.yaml --num-gpus 8
    python train_net.py --config-file configs/a3d_7slice.yaml --eval-only \
        MODEL.WEIGHTS output/a3d_7slice/model_best.pth DATASETS.TEST '("deeplesion_test",)'
    python train_net.py --config-file configs/quick/a3d_7slice.yaml --resume
"""

import logging
import os
import weakref

import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.evaluation import verify_results
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed

from a3d_det2 import BestCheckpointer, DeepLesionEvaluator, DeepLesionMapper, LesionCheckpointer, add_a3d_config
from a3d_det2.config import amp_dtype, loader_timeout


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
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_step(cls, cfg, model, data_loader, optimizer) -> SimpleTrainer:
        if not cfg.SOLVER.AMP.ENABLED:
            return SimpleTrainer(model, data_loader, optimizer)
        dtype = amp_dtype(cfg, "cuda")  # AMPTrainer knows no other device
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        return AMPTrainer(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)

    def build_hooks(self):
        hooks = super().build_hooks()
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            # Between the evaluation and the writers, which stand last.
            hooks.insert(-1, BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, best_metric(self.cfg)))
        return hooks

    @classmethod
    def build_checkpointer(cls, cfg, model, **checkpointables):
        return LesionCheckpointer(model, cfg.OUTPUT_DIR, stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS, **checkpointables)

    @classmethod
    def build_optimizer(cls, cfg, model):
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
            return build_optimizer(cfg, model)
        # Detectron2 clips each parameter by itself; "full_model" clips the norm over all of them.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_optimizer(cfg, model)

        def clip_full_model(*_):
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_full_model)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(
            cfg, mapper=DeepLesionMapper(cfg, is_train=True), timeout=loader_timeout(cfg)
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = DeepLesionMapper(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.timeout = loader_timeout(cfg)  # the function has no argument for it
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, dataset_name)
        return DeepLesionEvaluator(dataset_name, folder)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        # BN statistics differ between processes; all shall test the model that is saved.
        if comm.get_world_size() > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)
        return super().test(cfg, model, evaluators)


def best_metric(cfg) -> str:
    """Name of the average sensitivity, of the first test set, in the event storage."""
    return "froc/avg" if len(cfg.DATASETS.TEST) == 1 else f"{cfg.DATASETS.TEST[0]}/froc/avg"


def get_config(args):
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def setup(args):
    cfg = get_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="a3d_det2", abbrev_name="a3d")
    return cfg


def main(args):
    cfg = setup(args)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Trainer.build_checkpointer(cfg, model).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main_of_process(args):
    """What ``launch`` runs in each process."""
    main(args)
    if distributed.is_initialized():
        # Gloo's threads outlive the interpreter, which then aborts; launch() would take that for a failure and stop the
        # other processes. So wait for all, and leave without the interpreter's own end.
        comm.synchronize()
        logging.shutdown()
        os._exit(0)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    if get_config(args).MODEL.DEVICE == "cpu":
        # Where there are GPUs, launch() would otherwise take NCCL and one GPU per process.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    launch(
        main_of_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
