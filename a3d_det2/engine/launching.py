"""The command line of a training with Detectron2, and its processes."""

import logging
import os

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed

from ..config import add_a3d_config
from ..model_zoo import find_config_file
from .trainer import Trainer


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """
    Args:
        config_file: a path.
        opts: KEY VALUE ..., changes of the config.

    Returns:
        the config, frozen.
    """
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(opts)
    cfg.freeze()
    return cfg


def train(args):
    """Train, or with ``--eval-only`` evaluate, in this process.

    Args:
        args: of ``default_argument_parser``.
    """
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="a3d_det2", abbrev_name="a3d")
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


def _train_and_leave(args) -> None:
    """Train in one of the processes that ``launch`` starts, and end it."""
    train(args)
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        # Gloo's threads outlive the interpreter, which then aborts; launch() would take that for a failure and stop the
        # other processes. So wait for all, and leave without the interpreter's own end.
        comm.synchronize()
        logging.shutdown()
        os._exit(0)


def main(argv: list[str] | None = None) -> None:
    """Run the command line of ``train_net.py``, that of Detectron2's trainings."""
    parser = default_argument_parser()
    args = parser.parse_args(argv)
    try:
        args.config_file = find_config_file(args.config_file)  # default_setup reads it as a file
    except FileNotFoundError as error:
        parser.error(f"--config-file: {error}")
    if load_config(args.config_file, args.opts).MODEL.DEVICE == "cpu":
        # Where there are GPUs, launch() would otherwise take NCCL and one GPU per process.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    launch(
        _train_and_leave,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
