"""Train and evaluate a lesion detector with torchvision: the configs of Detectron2, the same files in OUTPUT_DIR.

python tools/train_torchvision.py --config-file configs/quick/a3d_7slice.yaml [--resume | --eval-only] KEY VALUE ...
torchrun --nproc-per-node 8 tools/train_torchvision.py --config-file configs/a3d_7slice.yaml
"""

import argparse
import logging
import os
import random
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from torchvision.ops import box_convert
from tqdm import tqdm

from ..checkpoint.strict import StrictCheckpointer
from ..config import add_a3d_config, amp_dtype, clips_full_model
from ..data.deeplesion import dataset_files, load_named
from ..data.dl_info import LESION_TYPES
from ..data.torch_dataset import build_loader
from ..evaluation.evaluation_files import evaluate_results
from ..model_zoo import find_config_file, get_config_file
from ..modeling.torchvision_rcnn import build_lesion_rcnn
from ..segmentation import encode_mask
from .accumulation import losses_in_parts
from .averaging import EMA, averaged_model, in_ema_folder
from .common import broadcast_buffers, check_loss, inference_folder, naming_the_batch, whole_number
from .config_check import Start, check_config, merge_config
from .config_rules import Allowed
from .ensemble import TorchvisionEnsemble, with_views
from .loss_watch import ChanceWatch, LossWatch
from .mistakes import TRAINING_FAULTS, exit_on_mistakes, mistakes
from .predictor import load_detector
from .torchrun import goes_on, join_processes, process_timeout

DEFAULTS = {  # Detectron2's, of the keys that Base-DeepLesion.yaml leaves alone
    "MODEL": {"DEVICE": "cuda"},
    "INPUT": {"FORMAT": "BGR", "RANDOM_FLIP": "horizontal"},
    "DATASETS": {"TRAIN": (), "TEST": ()},
    "DATALOADER": {"NUM_WORKERS": 4},
    "SOLVER": {
        "AMP": {"ENABLED": False},
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0},
        "GAMMA": 0.1,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0001,
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,
}

RULES = {"VERSION": Allowed("2, as Detectron2 has it", lambda value: value == 2)}


def torchvision_checks(cfg: CfgNode) -> Iterator[str]:
    """What this engine cannot do, a sentence for each."""
    if (count := cfg.MODEL.ROI_HEADS.NUM_CLASSES) != 1:
        yield f"MODEL.ROI_HEADS.NUM_CLASSES: expected 1, for the one class of this engine's datasets, got {count}."


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """
    Args:
        config_file: a path.
        opts: KEY VALUE ..., changes of the config.

    Returns:
        the config, frozen. A key that none of ``DEFAULTS``, config.py and Base-DeepLesion.yaml has is an error.

    Raises:
        Mistake: see :func:`.merge_config`.
    """
    cfg = CfgNode(DEFAULTS)
    add_a3d_config(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(get_config_file("Base-DeepLesion.yaml"))
    cfg.set_new_allowed(False)
    merge_config(cfg, config_file, opts)
    return cfg


def forward(model: torch.nn.Module, batch: list[tuple], device: torch.device):
    """
    Args:
        batch: items of a :class:`.LesionDataset`.

    Returns:
        the losses in training, otherwise the detections, as torchvision's detectors give them.
    """
    images, targets, thickness, output_sizes, _ = zip(*batch, strict=True)
    targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
    thickness = torch.tensor(thickness, dtype=torch.float32, device=device)
    return model([image.to(device) for image in images], targets, thickness, output_sizes)


def learning_rate(solver: CfgNode, iteration: int) -> float:
    """BASE_LR after a linear warm-up from WARMUP_FACTOR of it, times GAMMA from each of STEPS on."""
    warmup = min(1, iteration / solver.WARMUP_ITERS) if solver.WARMUP_ITERS else 1
    factor = solver.WARMUP_FACTOR * (1 - warmup) + warmup
    return solver.BASE_LR * factor * solver.GAMMA ** bisect_right(solver.STEPS, iteration)


@torch.no_grad()
def evaluate(cfg: CfgNode, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
    """Test on all of DATASETS.TEST; in the main process returns the metrics, by their names in TensorBoard."""
    broadcast_buffers(model)
    model = with_views(cfg, model, TorchvisionEnsemble, partial(_build_trained, cfg, device)).eval()
    metrics = {}
    for name in cfg.DATASETS.TEST:
        records, results = load_named(name), []
        share = np.array_split(np.arange(len(records)), world_size())[rank()]
        for batch in tqdm(build_loader(cfg, records, share, 1, is_train=False), name, disable=rank() > 0):
            (found,) = forward(model, batch, device)
            columns = {"bbox": box_convert(found["boxes"], "xyxy", "xywh").tolist(), "score": found["scores"].tolist()}
            columns["category_id"] = (found["labels"] - 1).tolist()
            if "masks" in found:
                columns["segmentation"] = [encode_mask(mask[0].cpu().numpy() >= 0.5) for mask in found["masks"]]
            rows = zip(*columns.values(), strict=True)
            results += [{"image_id": batch[0][-1], **dict(zip(columns, row, strict=True))} for row in rows]
        gathered = [results] * world_size()
        if len(gathered) > 1:
            distributed.all_gather_object(gathered, results)
        if rank() == 0:
            folder = inference_folder(cfg, name)
            tasks = evaluate_results(list(chain(*gathered)), records, name, folder, lesion_types=LESION_TYPES)
            prefix = f"{name}/" if len(cfg.DATASETS.TEST) > 1 else ""
            metrics |= {f"{prefix}{task}/{key}": value for task, part in tasks.items() for key, value in part.items()}
    model.train()
    return metrics


def _build_trained(cfg: CfgNode, device: torch.device, weights: str) -> torch.nn.Module:
    model = build_lesion_rcnn(cfg).to(device)
    load_detector(StrictCheckpointer(model, stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS), weights)
    return model


def write_scalars(writer: SummaryWriter | None, step: int, scalars: dict[str, float]) -> None:
    for name, value in scalars.items() if writer else ():
        writer.add_scalar(name, value, step)


def train(cfg: CfgNode, model: torch.nn.Module, device: torch.device, checkpointer, resume: bool, seed: int) -> None:
    solver, clip, batch_size = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS, cfg.SOLVER.IMS_PER_BATCH
    world = world_size()
    optimizer = torch.optim.SGD(model.parameters(), solver.BASE_LR, solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY)
    dtype = amp_dtype(cfg, device.type)
    scaler = torch.amp.GradScaler(device.type, enabled=solver.AMP.ENABLED and dtype == torch.float16)
    checkpointer.add_checkpointable("optimizer", optimizer)
    checkpointer.add_checkpointable("scaler", scaler)
    averaged = averaged_model(cfg, model)
    if averaged:
        checkpointer.add_checkpointable(EMA, averaged)
    resume = resume and checkpointer.has_checkpoint()
    loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    start = 0
    if resume:
        with mistakes(f"{checkpointer.get_checkpoint_file()}: "):
            start, seed = whole_number(loaded, "iteration") + 1, whole_number(loaded, "seed")
    parallel = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    records = [record for name in cfg.DATASETS.TRAIN for record in load_named(name)]
    share = range(start * batch_size + rank(), solver.MAX_ITER * batch_size, world)
    loader = build_loader(cfg, records, share, batch_size // world, is_train=True, seed=seed)
    losses_of = partial(forward, parallel, device=device)
    if averaged:
        ema_cfg = in_ema_folder(cfg)
        ema_checkpointer = StrictCheckpointer(averaged.module, ema_cfg.OUTPUT_DIR, save_to_disk=rank() == 0)
        if resume:
            ema_checkpointer.go_on()

    def test() -> dict[str, float]:
        metrics = evaluate(cfg, model, device)
        if averaged:
            metrics |= {f"{EMA}/{key}": value for key, value in evaluate(ema_cfg, averaged.module, device).items()}
        return metrics

    model.train()
    watch, chance = LossWatch(), ChanceWatch(solver.MAX_ITER)
    # Closed also after an error, since its thread ends with the process and takes what it has not written with it.
    with SummaryWriter(cfg.OUTPUT_DIR, purge_step=start + 1) if rank() == 0 else nullcontext() as writer:
        progress = tqdm(loader, "training", initial=start, total=solver.MAX_ITER, disable=rank() > 0)
        for done, batch in enumerate(progress, start + 1):
            # A resumed training draws the same regions.
            torch.manual_seed(int(np.random.SeedSequence([seed, done, rank()]).generate_state(1)[0]))
            optimizer.param_groups[0]["lr"] = learning_rate(solver, done - 1)
            optimizer.zero_grad()
            with naming_the_batch(done, lambda batch=batch: [item[-1] for item in batch]):
                with torch.autocast(device.type, dtype, solver.AMP.ENABLED):
                    losses = losses_in_parts(parallel, batch, solver.ACCUMULATION, losses_of, scaler.scale)
                    loss = sum(losses.values())
                values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
                total = check_loss(values)
            watch.add(done, total)
            if "loss_classifier" in values:
                chance.add(done, values["loss_classifier"], model.roi_heads.lesion_share)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if clips_full_model(cfg):
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip.CLIP_VALUE)
            scaler.step(optimizer)
            scaler.update()
            if averaged:
                averaged.update_parameters(model)
            if done % 20 == 0:
                write_scalars(writer, done, {**losses, "total_loss": total, "lr": optimizer.param_groups[0]["lr"]})
                progress.set_postfix_str(f"loss: {total:.3f}")
            last = done == solver.MAX_ITER
            if last or done % solver.CHECKPOINT_PERIOD == 0:
                name = "model_final" if last else f"model_{done - 1:07d}"
                checkpointer.save(name, iteration=done - 1, seed=seed)
                if averaged:
                    ema_checkpointer.save(name, iteration=done - 1)
            if not last and cfg.TEST.EVAL_PERIOD and done % cfg.TEST.EVAL_PERIOD == 0:
                write_scalars(writer, done, test())
        write_scalars(writer, solver.MAX_ITER, test())  # also of a training that had ended before


def main(argv: list[str] | None = None) -> None:
    """Run the command line of ``tools/train_torchvision.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS alone")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE, changes of the config")
    args = parser.parse_args(argv)
    with exit_on_mistakes():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Train, or with ``--eval-only`` evaluate, in this process.

    Raises:
        Mistake: if the config cannot work, or model, data or weights are not what it says.
    """
    with mistakes("--config-file: "):
        config_file = find_config_file(args.config_file)
    cfg = load_config(config_file, args.opts)
    with mistakes("WORLD_SIZE and LOCAL_WORLD_SIZE, as torchrun sets them: "):
        processes, here = (int(os.getenv(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    check_config(cfg, Start(args.resume, args.eval_only, processes, here, dataset_files, RULES, torchvision_checks))
    device, seed = torch.device(cfg.MODEL.DEVICE), [cfg.SEED if cfg.SEED >= 0 else random.getrandbits(31)]
    if device.type == "cuda":
        torch.cuda.set_device(int(os.getenv("LOCAL_RANK", device.index or 0)))
    if processes > 1:
        join_processes(device.type, process_timeout(cfg))
        distributed.broadcast_object_list(seed)
    if distributed.is_torchelastic_launched() and not args.eval_only:
        args.resume = goes_on(args.resume, cfg.OUTPUT_DIR)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if rank() == 0:
        handlers.append(logging.FileHandler(os.path.join(cfg.OUTPUT_DIR, "log.txt")))
    logging.basicConfig(level=logging.INFO if rank() == 0 else logging.ERROR, handlers=handlers)
    if rank() == 0:
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    torch.manual_seed(seed[0])
    with mistakes():
        model = build_lesion_rcnn(cfg).to(device)
    how = {"stem_weights": cfg.MODEL.A3D.STEM_WEIGHTS, "save_to_disk": rank() == 0}
    checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, **how)
    with mistakes(kinds=TRAINING_FAULTS):
        if args.eval_only:
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
            evaluate(cfg, model, device)
        else:
            train(cfg, model, device, checkpointer, args.resume, seed[0])
    if distributed.is_initialized():
        distributed.destroy_process_group()
