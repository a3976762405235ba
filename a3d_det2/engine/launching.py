"""The command line of a training with Detectron2, and its processes."""

import logging
import multiprocessing
import os
import sys
from difflib import get_close_matches

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import distributed

from ..config import add_a3d_config
from ..data import deeplesion
from ..data.deeplesion import datasets_root, named_splits
from ..files import is_url
from ..model_zoo import find_config_file
from .config_check import Start, check_config, merge_config
from .detectron2_rules import detectron2_checks, detectron2_rules
from .mistakes import DATA_FAULTS, TRAINING_FAULTS, Mistake, exit_on_mistakes, mistakes
from .torchrun import goes_on, join_processes, process_timeout
from .trainer import Trainer


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """
    Args:
        config_file: a path.
        opts: KEY VALUE ..., changes of the config.

    Returns:
        the config, frozen.

    Raises:
        Mistake: see :func:`.merge_config`.
    """
    cfg = get_cfg()
    add_a3d_config(cfg)
    merge_config(cfg, config_file, opts)
    return cfg


def dataset_files(name: str) -> list[str]:
    """List what a dataset of Detectron2's catalog cannot do without, as far as it says.

    Raises:
        ValueError: if there is none of that name.
    """
    if name in named_splits(datasets_root()):
        return deeplesion.dataset_files(name)
    if name not in DatasetCatalog:
        close = get_close_matches(name, DatasetCatalog, n=3) or named_splits(datasets_root())
        raise ValueError(f"Unknown dataset {name!r}. Did you mean {' or '.join(close)}?")
    metadata = MetadataCatalog.get(name)
    paths = metadata.get("csv_file"), metadata.get("json_file")
    return [str(path) for path in paths if isinstance(path, (str, os.PathLike)) and not is_url(path)]


def train(args):
    """Train, or with ``--eval-only`` evaluate, in this process.

    Args:
        args: of ``default_argument_parser``.

    Raises:
        Mistake: if model, data or weights are not what the config says.
    """
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="a3d_det2", abbrev_name="a3d")
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    if args.eval_only:
        with mistakes():
            model = Trainer.build_model(cfg)
            Trainer.build_checkpointer(cfg, model).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        with mistakes(kinds=DATA_FAULTS):
            results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    with mistakes():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    with mistakes(kinds=TRAINING_FAULTS):
        return trainer.train()


def torchrun_processes() -> tuple[int, int] | None:
    """How many processes torchrun has started, on all machines and on this one; None if it has not started this one.

    Raises:
        Mistake: if the environment has no numbers of them.
    """
    if not distributed.is_torchelastic_launched():
        return None
    with mistakes("WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them: "):
        return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])


def join_torchrun(cfg: CfgNode, processes_here: int) -> None:
    """Join the other processes that torchrun has started, as ``launch`` does with those that it starts itself."""
    on_gpus = cfg.MODEL.DEVICE.startswith("cuda")
    join_processes("cuda" if on_gpus else "cpu", process_timeout(cfg))
    comm.create_local_process_group(processes_here)
    if on_gpus:
        torch.cuda.set_device(comm.get_local_rank())
    comm.synchronize()


def _train_and_leave(args) -> None:
    """Train in one of the processes that ``launch`` starts, and end it."""
    status = 0
    try:
        with exit_on_mistakes():
            train(args)
    except SystemExit as error:
        status = error.code
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        # Gloo's threads outlive the interpreter, which then aborts; launch() would take that for a failure and stop the
        # other processes. So wait for all, unless there was a mistake, and leave without the interpreter's own end.
        if not status:
            comm.synchronize()
        for worker in multiprocessing.active_children():  # of a data loader, that a mistake left at work
            worker.terminate()
        logging.shutdown()
        os._exit(status)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if status:
        sys.exit(status)


def main(argv: list[str] | None = None) -> None:
    """Run the command line of ``train_net.py``, that of Detectron2's trainings."""
    parser = default_argument_parser()
    args = parser.parse_args(argv)
    if args.num_gpus < 0 or args.num_machines < 1:
        parser.error(
            f"expected --num-gpus from 0 and --num-machines from 1 on, got {args.num_gpus}, {args.num_machines}"
        )
    with exit_on_mistakes():
        with mistakes("--config-file: "):
            args.config_file = find_config_file(args.config_file)  # default_setup reads it as a file
        cfg = load_config(args.config_file, args.opts)
        started = torchrun_processes()
        if started and (args.num_gpus, args.num_machines) != (1, 1):
            raise Mistake(
                "Expected --num-gpus and --num-machines with Detectron2's own launch alone, as torchrun has started "
                f"{started[0]} processes; got {args.num_gpus} and {args.num_machines}."
            )
        processes, here = started or (args.num_gpus * args.num_machines, args.num_gpus)
        rules = detectron2_rules(), detectron2_checks
        check_config(cfg, Start(args.resume, args.eval_only, processes, here, dataset_files, *rules))
        if cfg.MODEL.DEVICE == "cpu":
            # Where there are GPUs, launch() would otherwise take NCCL and one GPU per process.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if started:
            join_torchrun(cfg, here)
            if not args.eval_only:
                args.resume = goes_on(args.resume, cfg.OUTPUT_DIR)
            _train_and_leave(args)
            return
        launch(
            _train_and_leave,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
            timeout=process_timeout(cfg),
        )
