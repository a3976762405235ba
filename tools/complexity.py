#!/usr/bin/env python
"""Parameters, GFLOPs and time of the trunk with each fusion operator, beside Table 1 of the A3D paper.

    python tools/complexity.py                                     # the 14 configs of Table 2, at 512 x 512
    python tools/complexity.py --time --repeat 5 --json complexity.json
    python tools/complexity.py configs/a3d_resnet50_fpn_7slice.yaml --size 256 --time

What the paper counts is the trunk: stem, dense blocks and transitions; not the squeeze, neck and heads.

    GFLOPs      the published convention: multiply-accumulates of the convolutions + 2 per element of a norm + 1 per
                element of a ReLU + 1 per input element of a pooling. Mixing outside of a convolution is not seen.
    GMACs       true multiply-accumulates: of the convolutions and of the mixing.

Of p3d the K x 1 x 1 convolutions after the 1 x 1 and the 3 x 3 convolutions account for 67.59 and 157.72; the rest of
the published 67.79 and 158.18 is one more norm and ReLU after each 1 x 1 convolution, which the operator as the paper
defines it does not have.

Times, of the forward and of forward and backward, are medians over repetitions that alternate between the operators,
relative to the seconds that the same trunk takes without fusion.
"""

import argparse
from collections import defaultdict
from functools import partial
from math import prod
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from measuring import alternate, spread, write_json
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from a3d_det2 import add_a3d_config

REPO = Path(__file__).resolve().parents[1]
TABLE_1 = {  # GFLOPs of the published trunk at 512 x 512, with 3 and 7 slices
    **{op: {3: 40.64, 7: 94.83} for op in ("none", "acs", "tsm", "alignshift", "a3d")},
    "i3d": {3: 78.69, 7: 183.61},
    "p3d": {3: 67.79, 7: 158.18},
}
SHAPE = ("BLOCK_CONFIG", "GROWTH_RATE", "NUM_INIT_FEATURES", "BN_SIZE")

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


def load_config(path: str | Path | None, *opts) -> CfgNode:
    """A config, or for None the defaults, to build on the CPU; SyncBN counts as BN does and needs several processes."""
    cfg = get_cfg()
    add_a3d_config(cfg)
    if path:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.A3D.NORM", "BN", *opts])
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
        parameters; in units of 1e9 published_gflops, convolution_gmacs, mixing_gmacs; and for a trunk and size of Table
        1 table_1.
    """
    trunk = build_trunk(cfg, "meta").eval()
    formulas = {
        overload: lambda shape, *args, out_shape=None, _each=each, **kwargs: _each * prod(shape)
        for op, each in {**_ELEMENT_WISE, aten.lerp: 4}.items()  # lerp: two multiply-accumulates
        for overload in (op, *(getattr(op, name) for name in op.overloads()))  # else torch 2.14 decomposes a norm
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), counter:
        trunk(*trunk_input(cfg, size, "meta"))
    flops = counter.get_flop_counts()["Global"]
    convolution, mixing, element_wise = (
        sum(flops.get(op, 0) for op in ops) / 1e9 for ops in (_CONVOLUTION, _MIXING, _ELEMENT_WISE)
    )
    result = {
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "published_gflops": convolution / 2 + element_wise,  # torch counts 2 per multiply-accumulate
        "convolution_gmacs": convolution / 2,
        "mixing_gmacs": mixing / 2,
    }
    a3d, default = cfg.MODEL.A3D, load_config(None).MODEL.A3D
    published = "densenet" in cfg.MODEL.BACKBONE.NAME and all(a3d[key] == default[key] for key in SHAPE)
    if published and size == 512:
        result["table_1"] = TABLE_1[a3d.OPERATOR].get(a3d.NUM_SLICES)
    return result


def measure(paths: dict[str, str], size: int, repeat: int, device: str) -> dict[str, dict[str, float]]:
    """Median times of the configs' trunks relative to the same trunk without fusion.

    Returns:
        per config inference and training (forward and backward), and the seconds they are relative to.
    """
    groups: dict[str, dict[str, CfgNode]] = defaultdict(dict)  # by the model without fusion
    for name, path in paths.items():
        baseline = load_config(path, "MODEL.A3D.OPERATOR", "none", "MODEL.A3D.THICKNESS_AWARE", False)
        group = groups[f"{baseline.MODEL.BACKBONE} {baseline.MODEL.A3D} {baseline.MODEL.RESNETS}"]
        group |= {"without fusion": baseline, name: load_config(path)}
    results = defaultdict(dict)
    for group in groups.values():
        trunks = {name: build_trunk(cfg, "cpu").to(device) for name, cfg in group.items()}
        inputs = trunk_input(group["without fusion"], size, device)

        def infer(trunk, inputs=inputs):
            with torch.no_grad():
                trunk.eval()(*inputs)

        def train(trunk, inputs=inputs):
            sum(y.mean() for y in trunk.train()(*inputs).values()).backward()
            trunk.zero_grad()

        for kind, step in (("inference", infer), ("training", train)):
            seconds = alternate({name: partial(step, trunk) for name, trunk in trunks.items()}, repeat)
            medians = {name: spread(values)[0] for name, values in seconds.items()}
            without = medians.pop("without fusion")
            for name, median in medians.items():
                results[name] |= {kind: median / without, f"{kind}_seconds_without_fusion": without}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="config files; the 14 of Table 2 by default")
    parser.add_argument("--size", type=int, default=512, help="height and width (default %(default)s)")
    parser.add_argument("--time", action="store_true", help="measure times as well")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of the measurement (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to measure (default %(default)s)")
    parser.add_argument("--json", help="write all numbers to this file")
    args = parser.parse_args()
    paths = args.configs or [f"{REPO}/configs/{op}_{slices}slice.yaml" for slices in (3, 7) for op in TABLE_1]
    stems = [Path(path).stem for path in paths]
    paths = dict(zip(stems if len(set(stems)) == len(stems) else paths, paths, strict=True))
    results = {name: count(load_config(path), args.size) for name, path in paths.items()}
    if args.time:
        for name, times in measure(paths, args.size, args.repeat, args.device).items():
            results[name] |= times

    columns = {
        "parameters (M)": lambda r: r["parameters"] / 1e6,
        "GFLOPs": lambda r: r["published_gflops"],
        "Table 1": lambda r: r.get("table_1"),
        "conv GMACs": lambda r: r["convolution_gmacs"],
        "mixing GMACs": lambda r: r["mixing_gmacs"],
    }
    for kind in ("inference", "training") if args.time else ():
        columns[f"{kind} / none"] = lambda r, kind=kind: r[kind]
        columns[f"{kind} of none (s)"] = lambda r, kind=kind: r[f"{kind}_seconds_without_fusion"]
    rows = [[name, *(value(result) for value in columns.values())] for name, result in results.items()]
    print(f"Trunk at {args.size} x {args.size}\n")
    print(tabulate(rows, ["config", *columns], "github", floatfmt=".2f"))
    if args.json:
        write_json(args.json, {"size": args.size, "repeat": args.repeat, "configs": results})


if __name__ == "__main__":
    main()
