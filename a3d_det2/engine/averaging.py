"""The exponential moving average of a model's weights, torch's, as the trainings of both engines keep it."""

import os

from fvcore.common.config import CfgNode
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

EMA = "ema"  # before the names of its metrics, and its folder in OUTPUT_DIR


def averaged_model(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Make the average that SOLVER.EMA_DECAY asks for, of weights and buffers; the first update takes those of the
    model as they are. None if it asks for none."""
    if cfg.SOLVER.EMA_DECAY == 0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA_DECAY), use_buffers=True)


def in_ema_folder(cfg: CfgNode) -> CfgNode:
    """The config whose OUTPUT_DIR is the folder for results and weights of the average."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, EMA)
    cfg.freeze()
    return cfg
