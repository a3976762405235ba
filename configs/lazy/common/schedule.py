"""20 epochs of DeepLesion with 8 images a step."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0001),
    lr=0.02,
    momentum=0.9,
    weight_decay=0.0001,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[25290, 44960, 56200]),
    warmup_length=500 / 56200,
    warmup_method="linear",
    warmup_factor=0.01,
)
train = dict(
    output_dir="./output/lazy",
    init_checkpoint="",
    max_iter=56200,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=2810, max_to_keep=100),
    eval_period=2810,
    log_period=20,
    device="cuda",
)
