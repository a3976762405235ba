#!/usr/bin/env python
"""Parameters, GFLOPs and time of the trunk with each fusion operator, beside Table 1 of the A3D paper.

    python tools/complexity.py                                     # the 14 configs of Table 2, at 512 x 512
    python tools/complexity.py --time --repeat 5 --json complexity.json
    python tools/complexity.py configs/a3d_resnet50_fpn_7slice.yaml --size 256 --time

What the paper counts is the trunk: stem, dense blocks and transitions; not the squeeze, neck and heads.

    GFLOPs      the published convention: multiply-accumulates of the convolutions + 2 per element of a norm + 1 per
                element of a ReLU + 1 per input element of a pooling. Mixing outside of a convolution is not seen.
    GMACs       true multiply-accumulates: of the convolutions and of the mixing.

Times, of the forward and of forward and backward, are medians over repetitions that alternate between the operators,
relative to the seconds that the same trunk takes without fusion.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
from collections import defaultdict
from datetime import date
from math import prod
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from tabulate import tabulate
from timing import time_alternating
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from a3d_det2 import add_a3d_config
from a3d_det2.layers import FUSION_CONVS

REPO = Path(__file__).resolve().parents[1]
TABLE_1 = {
    **{(op, 3): 40.64 for op in ("none", "acs", "tsm", "alignshift", "a3d")},
    **{(op, 7): 94.83 for op in ("none", "acs", "tsm", "alignshift", "a3d")},
    ("i3d", 3): 78.69,
    ("i3d", 7): 183.61,
    ("p3d", 3): 67.79,
    ("p3d", 7): 158.18,
}
P3D_NOTE = """\
p3d: its K x 1 x 1 convolutions after the 1 x 1 and the 3 x 3 convolutions account for 67.59 and 157.72; the rest of the
published 67.79 and 158.18 is one more norm and ReLU after each 1 x 1 convolution, which the operator as the paper
defines it does not have."""

aten = torch.ops.aten
_CONVOLUTION, _MIXING = (aten.convolution,), (aten.bmm, aten.baddbmm, aten.lerp)
_ELEMENT_WISE = {  # operations per element of the first input, in the published convention
    aten.native_batch_norm: 2,
    aten.relu: 1,
    aten.relu_: 1,
    aten.max_pool2d_with_indices: 1,
    aten.max_pool3d_with_indices: 1,
    aten.avg_pool2d: 1,
    aten.avg_pool3d: 1,
}


def load_config(path: str) -> CfgNode:
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"  # where it is built
    cfg.MODEL.A3D.NORM = "BN"  # SyncBN counts the same and needs several processes
    return cfg


def build_trunk(cfg: CfgNode, device: str) -> nn.Module:
    """The network over D slices of the config's backbone, with random weights."""
    with torch.device(device):
        backbone = build_backbone(cfg)
    trunks = [module for name, module in backbone.named_modules() if name.split(".")[-1] == "trunk"]
    if len(trunks) != 1:
        raise SystemExit(
            f"{cfg.MODEL.BACKBONE.NAME}: expected a backbone of a3d_det2, with one trunk. Got {len(trunks)}."
        )
    return trunks[0]


def trunk_input(cfg: CfgNode, size: int, device: str) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 1, cfg.MODEL.A3D.NUM_SLICES, size, size, device=device), torch.full((1,), 5.0, device=device)


def count(cfg: CfgNode, size: int) -> dict[str, float]:
    """Parameters and operations of the config's trunk on one sample; nothing is computed.

    Returns:
        parameters, and in units of 1e9: published_gflops, convolution_gmacs, mixing_gmacs.
    """
    trunk = build_trunk(cfg, "meta").eval()
    formulas = {
        op: lambda shape, *args, out_shape=None, _each=each, **kwargs: _each * prod(shape)
        for op, each in _ELEMENT_WISE.items()
    }
    formulas[aten.lerp] = lambda shape, *args, out_shape=None, **kwargs: 4 * prod(shape)  # two multiply-accumulates
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), counter:
        trunk(*trunk_input(cfg, size, "meta"))
    flops = counter.get_flop_counts()["Global"]
    convolution, mixing, element_wise = (
        sum(flops.get(op, 0) for op in ops) / 1e9 for ops in (_CONVOLUTION, _MIXING, _ELEMENT_WISE)
    )
    return {
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "published_gflops": convolution / 2 + element_wise,  # torch counts 2 per multiply-accumulate
        "convolution_gmacs": convolution / 2,
        "mixing_gmacs": mixing / 2,
    }


def without_fusion(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.THICKNESS_AWARE = "none", False
    return cfg


def measure(configs: dict[str, CfgNode], size: int, repeat: int, device: str) -> dict[str, dict[str, float]]:
    """Median times of the configs' trunks relative to the same trunk without fusion.

    Returns:
        per config inference and training (forward and backward), and the seconds they are relative to.
    """
    groups: dict[str, dict[str, CfgNode]] = defaultdict(dict)
    for name, cfg in configs.items():
        baseline = without_fusion(cfg)
        groups[f"{baseline.MODEL.BACKBONE.NAME} {baseline.MODEL.A3D} {baseline.MODEL.RESNETS}"][name] = cfg
    ratios = {}
    for group in groups.values():
        trunks = {name: build_trunk(cfg, "cpu").to(device) for name, cfg in group.items()}
        first = next(iter(group.values()))
        none = next((name for name, cfg in group.items() if cfg.MODEL.A3D.OPERATOR == "none"), "without fusion")
        if none not in trunks:
            trunks[none] = build_trunk(without_fusion(first), "cpu").to(device)
        inputs = trunk_input(first, size, device)

        def infer(trunk, inputs=inputs):
            with torch.no_grad():
                trunk.eval()(*inputs)

        def train(trunk, inputs=inputs):
            sum(y.mean() for y in trunk.train()(*inputs).values()).backward()
            trunk.zero_grad()

        medians = {}
        for kind, step in (("inference", infer), ("training", train)):
            seconds = time_alternating(
                {name: lambda trunk=trunk, step=step: step(trunk) for name, trunk in trunks.items()}, repeat
            )
            medians[kind] = {name: statistics.median(values) for name, values in seconds.items()}
        for name in group:
            ratios[name] = {kind: medians[kind][name] / medians[kind][none] for kind in medians}
            ratios[name] |= {f"{kind}_seconds_without_fusion": medians[kind][none] for kind in medians}
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="config files; the 14 of Table 2 by default")
    parser.add_argument("--size", type=int, default=512, help="height and width (default %(default)s)")
    parser.add_argument("--time", action="store_true", help="measure times as well")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of the measurement (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to measure (default %(default)s)")
    parser.add_argument("--json", help="write all numbers to this file")
    parser.add_argument("--table", help="write the table to this Markdown file")
    args = parser.parse_args()
    paths = args.configs or [f"{REPO}/configs/{op}_{slices}slice.yaml" for slices in (3, 7) for op in FUSION_CONVS]
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    configs = {name: load_config(path) for name, path in zip(names, paths, strict=True)}

    results = {name: count(cfg, args.size) for name, cfg in configs.items()}
    default = get_cfg()
    add_a3d_config(default)
    for name, cfg in configs.items():
        shape = [cfg.MODEL.A3D[key] for key in ("BLOCK_CONFIG", "GROWTH_RATE", "NUM_INIT_FEATURES", "BN_SIZE")]
        published = [default.MODEL.A3D[key] for key in ("BLOCK_CONFIG", "GROWTH_RATE", "NUM_INIT_FEATURES", "BN_SIZE")]
        if "densenet" in cfg.MODEL.BACKBONE.NAME and shape == published and args.size == 512:
            results[name]["table_1"] = TABLE_1.get((cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.NUM_SLICES))
    if args.time:
        for name, ratios in measure(configs, args.size, args.repeat, args.device).items():
            results[name] |= ratios
    if args.json:
        Path(args.json).write_text(json.dumps({"size": args.size, "repeat": args.repeat, "configs": results}, indent=2))

    columns = {
        "parameters": ("parameters (M)", lambda r: f"{r['parameters'] / 1e6:.2f}"),
        "published_gflops": ("GFLOPs", lambda r: f"{r['published_gflops']:.2f}"),
        "table_1": ("Table 1", lambda r: f"{r['table_1']:.2f}"),
        "convolution_gmacs": ("conv GMACs", lambda r: f"{r['convolution_gmacs']:.2f}"),
        "mixing_gmacs": ("mixing GMACs", lambda r: f"{r['mixing_gmacs']:.2f}"),
        "inference": (
            "inference time",
            lambda r: f"x {r['inference']:.2f} of {r['inference_seconds_without_fusion']:.2f} s",
        ),
        "training": (
            "training time",
            lambda r: f"x {r['training']:.2f} of {r['training_seconds_without_fusion']:.2f} s",
        ),
    }
    shown = [key for key in columns if any(result.get(key) is not None for result in results.values())]
    rows = [
        [name, *("" if result.get(key) is None else columns[key][1](result) for key in shown)]
        for name, result in results.items()
    ]
    table = tabulate(rows, ["config", *(columns[key][0] for key in shown)], "github", disable_numparse=True)
    notes = [f"Trunk at {args.size} x {args.size}", table]
    if any(result.get("table_1") and configs[name].MODEL.A3D.OPERATOR == "p3d" for name, result in results.items()):
        notes.append(P3D_NOTE)
    print("\n\n".join(notes))
    if args.table:
        command = shlex.join(["python", "tools/complexity.py", *sys.argv[1:]])
        machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}, device {args.device}"
        explanation = __doc__[__doc__.index("What the paper counts") :].strip()
        page = ["# Parameters, operations and time", f"`{command}`,\n{date.today()}, {machine}.", explanation, *notes]
        Path(args.table).write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
