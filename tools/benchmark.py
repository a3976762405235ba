#!/usr/bin/env python
"""Time and memory of A3D as published and as it is here, side by side in one process.

    python tools/benchmark.py --json benchmark.json --page docs/performance.md
    python tools/benchmark.py --device cuda --batch 1 4 16 --compile --json benchmark.json

Measured are, at inference and in a training step (forward and backward), in rounds in which all alternate:

    published       Algorithm 1 of the paper as it is written: einsum, then a 3D convolution with a 1 x K x K kernel, 3D
                    norms and poolings, concatenation; contiguous, float32
    published AMP   the same under autocast
    ours            this package, float32
    ours AMP        the same under autocast
    none            this package without fusion, float32

of the operator (the mixing step alone, beside a copy of its tensor), the trunk, and the whole detector; and how time
and memory of the trunk grow with the number of slices, the batch and the image size.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tabulate import tabulate
from timing import peak_memory, time_alternating
from torch import Tensor, nn
from torch.nn import functional as F

from a3d_det2.layers.mixing import mix_slices
from a3d_det2.modeling import DenseNet3D

REPO = Path(__file__).resolve().parents[1]
WHAT = ("operator", "trunk", "detector", "growth")
KINDS = ("inference", "training")
OPERATOR_SHAPES = ((256, 64), (128, 128), (992, 32))  # channels and height = width, as in the three dense blocks


def algorithm_1(conv: nn.Module, x: Tensor) -> Tensor:
    """Algorithm 1 of the A3D paper, (N, C, D, H, W) -> (N, C_out, D, H', W')."""
    if hasattr(conv, "fusion_weight"):
        x = torch.einsum("bcdhw,dkc->bckhw", x, conv.fusion_weight)
    weight = conv.weight.contiguous().unsqueeze(2)  # ours is channels_last, and would make the result so
    return F.conv3d(x, weight, conv.bias, (1, *conv.stride), (0, *conv.padding))


class Published(nn.Module):
    """The trunk as it is published, with the parameters of one of ours."""

    def __init__(self, trunk: DenseNet3D):
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor, thickness: Tensor | None = None) -> dict[str, Tensor]:
        trunk, outputs = self.trunk, {}
        x = F.relu_(trunk.norm0(algorithm_1(trunk.conv0, x)))
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for i, name in enumerate(trunk.out_channels, start=1):
            if i > 1:
                transition = getattr(trunk, f"transition{i - 1}")
                x = F.avg_pool3d(algorithm_1(transition.conv, F.relu_(transition.norm(x))), (1, 2, 2))
            for layer in getattr(trunk, f"denseblock{i}").values():
                y = algorithm_1(layer.conv1, F.relu_(layer.norm1(x)))
                x = torch.cat([x, algorithm_1(layer.conv2, F.relu_(layer.norm2(y)))], dim=1)
            outputs[name] = x
        return outputs


def autocast(device: str, dtype: torch.dtype | None):
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def measure(steps: dict[str, Callable[[], object]], repeat: int, baseline: str) -> dict[str, dict]:
    """Seconds (median, least and most), peak bytes, and the times relative to ``baseline`` for each step."""
    seconds = time_alternating(steps, repeat)
    results = {}
    for name, values in seconds.items():
        results[name] = {
            "seconds": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "bytes": peak_memory(steps[name]),
        }
    for result in results.values():
        result["speedup"] = results[baseline]["seconds"] / result["seconds"]
    return results


def measure_operator(channels: int, size: int, slices: int, batch: int, repeat: int, device: str) -> dict[str, dict]:
    """The mixing step of one tensor in float32, in channels_last_3d and contiguous, and a copy of it; "forward" writes
    a new tensor, as the copy does."""
    torch.manual_seed(0)
    weight = torch.randn(slices, slices, channels, device=device)
    einsum = partial(torch.einsum, "ncdhw,dkc->nckhw")
    results = {}
    for layout in (torch.channels_last_3d, torch.contiguous_format):
        x = torch.randn(batch, channels, slices, size, size, device=device).contiguous(memory_format=layout)
        grad = torch.randn_like(x)
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()

        def train(mix, inputs=inputs, grad=grad):
            torch.autograd.grad(mix(*inputs), inputs, grad)

        name = "channels_last_3d" if layout is torch.channels_last_3d else "contiguous"
        forward = {
            "copy": x.clone,
            "einsum": lambda x=x: einsum(x, weight),
            "ours": lambda x=x: mix_slices(x, weight),
        }
        backward = {
            "copy": x.clone,
            "einsum": partial(train, einsum),
            "ours": partial(train, mix_slices),
        }
        # A copy reads and writes the tensor once; so does the forward.
        results[f"{name} forward"] = measure(forward, repeat, "copy")
        results[f"{name} forward + backward"] = measure(backward, repeat, "einsum")
        for part in results[f"{name} forward"].values():
            part["gigabytes_per_second"] = 2 * x.numel() * x.element_size() / part["seconds"] / 1e9
    return results


def trunk_variants(
    slices: int, amp: torch.dtype, device: str, compiled: bool
) -> dict[str, tuple[nn.Module, torch.dtype | None]]:
    torch.manual_seed(0)
    a3d, none = DenseNet3D("a3d", slices).to(device), DenseNet3D("none", slices).to(device)
    published = Published(a3d)
    variants = {
        "published": (published, None),
        "published AMP": (published, amp),
        "ours": (a3d, None),
        "ours AMP": (a3d, amp),
        "none": (none, None),
        "none AMP": (none, amp),
    }
    if compiled:
        variants["published AMP, compiled"] = (torch.compile(published), amp)
        variants["ours AMP, compiled"] = (torch.compile(a3d), amp)
    return variants


def trunk_step(model: nn.Module, dtype: torch.dtype | None, x: Tensor, kind: str) -> None:
    model.train(kind == "training")
    with autocast(x.device.type, dtype), torch.set_grad_enabled(kind == "training"):
        outputs = model(x)
        if kind == "training":
            loss = sum(y.float().mean() for y in outputs.values())
    if kind == "training":
        loss.backward()
        model.zero_grad()


def measure_trunk(variants: dict, x: Tensor, repeat: int) -> dict[str, dict]:
    return {
        kind: measure(
            {name: partial(trunk_step, model, dtype, x, kind) for name, (model, dtype) in variants.items()},
            repeat,
            "published",
        )
        for kind in KINDS
    }


def measure_detector(config: str, size: int, batch: int, amp: torch.dtype, repeat: int, device: str) -> dict[str, dict]:
    """The whole detector of a config, with Detectron2's heads."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    from a3d_det2 import add_a3d_config

    def build(op: str) -> nn.Module:
        cfg = get_cfg()
        add_a3d_config(cfg)
        cfg.merge_from_file(config)
        cfg.MODEL.DEVICE, cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.NORM = device, op, "BN"
        torch.manual_seed(0)
        return build_model(cfg)

    models = {"published": build("a3d"), "ours": build("a3d"), "none": build("none")}
    bottom_up = models["published"].backbone.bottom_up
    bottom_up.trunk = Published(bottom_up.trunk)
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[0.2, 0.2, 0.3, 0.3], [0.5, 0.6, 0.56, 0.64]]) * size)
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, size // 5 : size // 3, size // 5 : size // 3] = masks[1, size // 2 : size * 2 // 3, size // 2 :] = True
    instances.gt_masks = BitMasks(masks)
    slices = bottom_up.num_slices
    inputs = [{"image": torch.randn(slices, size, size) * 50, "instances": instances} for _ in range(batch)]

    def step(model: nn.Module, dtype: torch.dtype | None, kind: str) -> None:
        torch.manual_seed(0)
        model.train(kind == "training")
        with autocast(device, dtype), torch.set_grad_enabled(kind == "training"), EventStorage(0):
            outputs = model(inputs)
        if kind == "training":
            sum(outputs.values()).backward()
            model.zero_grad()

    variants = {
        f"{name}{suffix}": (model, dtype)
        for name, model in models.items()
        for suffix, dtype in (("", None), (" AMP", amp))
    }
    return {
        kind: measure(
            {name: partial(step, model, dtype, kind) for name, (model, dtype) in variants.items()}, repeat, "published"
        )
        for kind in KINDS
    }


def check_same_results(device: str) -> float:
    """The largest difference between the trunk as published and ours, relative to the largest value."""
    torch.manual_seed(0)
    trunk = DenseNet3D("a3d", 7).to(device).eval()
    x = torch.randn(1, 1, 7, 64, 64, device=device)
    with torch.no_grad():
        expected, got = Published(trunk)(x), trunk(x)
    return max(((got[name] - y).abs().max() / y.abs().max()).item() for name, y in expected.items())


def growth(size: int, repeat: int, device: str, amp: torch.dtype) -> dict[str, list]:
    """Time and memory of the trunk against slices, batch and image size, the others fixed."""
    axes = {
        "slices": [{"slices": d, "batch": 1, "size": size} for d in (3, 7, 9, 15, 27)],
        "batch": [{"slices": 7, "batch": n, "size": size} for n in (1, 2, 4, 8)],
        "size": [{"slices": 7, "batch": 1, "size": s} for s in (size // 2, size, size * 3 // 2, size * 2)],
    }
    results: dict[str, list] = {}
    for axis, points in axes.items():
        results[axis] = []
        for point in points:
            variants = trunk_variants(point["slices"], amp, device, compiled=False)
            variants = {name: variants[name] for name in ("published", "ours", "none")}
            x = torch.randn(point["batch"], 1, point["slices"], point["size"], point["size"], device=device)
            results[axis].append({**point, **measure_trunk(variants, x, repeat)})
            gc.collect()
    return results


def plot_growth(results: dict[str, list], path: str) -> None:
    figure, axes = plt.subplots(4, 3, figsize=(11, 12), sharex="col", constrained_layout=True)
    labels = {"slices": "slices D", "batch": "batch", "size": "height and width (pixels)"}
    for column, (axis, points) in enumerate(results.items()):
        for row, (kind, quantity) in enumerate((k, q) for q in ("seconds", "bytes") for k in KINDS):
            place = axes[row, column]
            for name in ("published", "ours", "none"):
                values = [p[kind][name][quantity] / (1 if quantity == "seconds" else 2**30) for p in points]
                place.plot([p[axis] for p in points], values, "o-", label=name)
            place.set_ylim(bottom=0)
            place.grid(alpha=0.3)
            if column == 0:
                place.set_ylabel(f"{kind}: " + ("seconds" if quantity == "seconds" else "peak memory (GiB)"))
        axes[-1, column].set_xlabel(labels[axis])
        fixed = {key: points[0][key] for key in labels if key != axis}
        axes[0, column].set_title(", ".join(f"{key} {value}" for key, value in fixed.items()), fontsize=10)
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def operator_table(results: list[dict]) -> str:
    rows = []
    for result in results:
        for name, parts in result["results"].items():
            layout, _, what = name.partition(" ")
            copy, einsum, ours = (parts[key]["seconds"] for key in ("copy", "einsum", "ours"))
            c, d, size, n = (result[key] for key in ("channels", "slices", "size", "batch"))
            rate = parts["ours"].get("gigabytes_per_second")
            rows.append(
                [
                    f"{n} x {c} x {d} x {size} x {size}",
                    layout,
                    what,
                    f"{1e3 * copy:.1f}",
                    f"{1e3 * einsum:.1f}",
                    f"{1e3 * ours:.1f} ({1e3 * parts['ours']['least']:.1f} to {1e3 * parts['ours']['most']:.1f})",
                    f"x {ours / copy:.2f}",
                    f"x {einsum / ours:.1f}",
                    "" if rate is None else f"{rate:.1f} of {parts['copy']['gigabytes_per_second']:.1f}",
                ]
            )
    headers = ["tensor", "layout", "", "copy (ms)", "einsum (ms)", "ours (ms)", "ours / copy", "einsum / ours", "GB/s"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def network_table(results: list[dict]) -> str:
    rows = [
        [
            result["what"],
            str(result["slices"]),
            str(result["batch"]),
            kind,
            name,
            f"{value['seconds']:.3f} ({value['least']:.3f} to {value['most']:.3f})",
            f"x {value['speedup']:.2f}",
            f"x {value['seconds'] / result['results'][kind]['none AMP' if 'AMP' in name else 'none']['seconds']:.2f}",
            f"{value['bytes'] / 2**30:.2f}",
        ]
        for result in results
        for kind in KINDS
        for name, value in result["results"][kind].items()
    ]
    headers = ["", "slices", "batch", "", "", "seconds", "speed of published", "time of none", "peak memory (GiB)"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def summary(results: dict) -> str:
    """The figures to look at first, of the most slices and the first batch."""
    lines = []
    if results["operator"]:
        slices = max(result["slices"] for result in results["operator"])
        ratios: dict[str, list[float]] = {}
        for result in results["operator"]:
            for name, parts in result["results"].items() if result["slices"] == slices else ():
                other = "copy" if name.endswith(" forward") else "einsum"
                ours = parts["ours"]["seconds"]
                ratios.setdefault(name, []).append(
                    ours / parts["copy"]["seconds"] if other == "copy" else parts["einsum"]["seconds"] / ours
                )
        for name, values in ratios.items():
            span = f"{min(values):.2f} to {max(values):.2f}"
            forward = name.endswith(" forward")
            what = f"takes {span} times a copy of its tensor" if forward else f"is {span} times as fast as the einsum"
            lines.append(f"- {slices} slices, the mixing step, {name}, {what}.")
    for result in (*results["trunk"], *results["detector"]):
        same = [r["slices"] for r in (*results["trunk"], *results["detector"]) if r["what"] == result["what"]]
        if result["slices"] != max(same):
            continue
        for kind, parts in result["results"].items():
            ours, none = parts["ours"], parts["none"]
            lines.append(
                f"- {result['slices']} slices, batch {result['batch']}, {result['what']}, {kind}: "
                f"{ours['speedup']:.2f} times as fast as published, {parts['ours AMP']['speedup']:.2f} times with AMP, "
                f"{100 * (ours['seconds'] / none['seconds'] - 1):+.0f} % to no fusion, "
                f"{ours['bytes'] / parts['published']['bytes']:.2f} of the memory."
            )
    return "\n".join(lines)


def read_page(path: str) -> tuple[str, str]:
    """What stands in a page before and after the measured part, with the markers."""
    page = Path(path)
    begin, end = "<!-- measured -->\n", "<!-- end of what was measured -->\n"
    text = page.read_text() if page.is_file() else f"# Performance\n\n{begin}{end}"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{path}: expected the lines {begin.strip()} and {end.strip()}, between which to write.")
    return before + begin, end + after


def write_page(path: str, results: dict, plot: str) -> None:
    """Write the measured part of a page; what stands around it stays."""
    before, after = read_page(path)
    parts = [
        f"`{results['command']}`,\n{results['date']}, {results['machine']}.\nMedians of {results['repeat']} rounds of "
        f"the networks and {3 * results['repeat']} of the mixing step, with the least and most.",
        "## In short",
        summary(results),
        "## The mixing step",
        operator_table(results["operator"]),
        "## Trunk and detector",
        network_table([*results["trunk"], *results["detector"]]),
        f"Largest difference between the trunk as published and ours: {results['difference']:.1e} of the largest.",
    ]
    if results["growth"]:
        parts += ["## How it grows", f"Medians of {max(1, results['repeat'] // 2)} round(s)."]
        parts.append(f"![Time and memory of the trunk]({Path(plot).name})")
    Path(path).write_text(before + "\n" + "\n\n".join(parts) + "\n\n" + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="default: all")
    parser.add_argument("--slices", type=int, nargs="+", default=[3, 7])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, default=512, help="height and width (default %(default)s)")
    parser.add_argument("--growth-size", type=int, default=256, help="that of the growth (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--amp", choices=["bfloat16", "float16"], help="default: torch's for the device")
    parser.add_argument("--compile", action="store_true", help="also the trunks under torch.compile")
    parser.add_argument("--json", help="write all numbers to this file")
    parser.add_argument("--page", help="write the tables into this Markdown file, and a plot beside it")
    args = parser.parse_args()
    if args.page:
        read_page(args.page)  # an error now rather than after all measurements
    amp = getattr(torch, args.amp) if args.amp else torch.get_autocast_dtype(args.device)
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    results = {
        "command": shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": f"{args.device} ({name}), {os.cpu_count()} CPU cores, torch {torch.__version__}, AMP in {amp}",
        "repeat": args.repeat,
        "difference": check_same_results(args.device),
        "operator": [],
        "trunk": [],
        "detector": [],
        "growth": {},
    }
    for slices in args.slices:
        for batch in args.batch:
            point = {"slices": slices, "batch": batch}
            if "operator" in args.what:
                for channels, size in OPERATOR_SHAPES:
                    each = measure_operator(channels, size, slices, batch, 3 * args.repeat, args.device)
                    results["operator"].append({**point, "channels": channels, "size": size, "results": each})
            if "trunk" in args.what:
                x = torch.randn(batch, 1, slices, args.size, args.size, device=args.device)
                variants = trunk_variants(slices, amp, args.device, args.compile)
                results["trunk"].append({"what": "trunk", **point, "results": measure_trunk(variants, x, args.repeat)})
                del variants
            if "detector" in args.what:
                config = REPO / "configs" / f"a3d_{slices}slice.yaml"
                each = measure_detector(str(config), args.size, batch, amp, args.repeat, args.device)
                results["detector"].append({"what": "detector", **point, "results": each})
            gc.collect()
    if "growth" in args.what:
        results["growth"] = growth(args.growth_size, max(1, args.repeat // 2), args.device, amp)
    print(operator_table(results["operator"]), network_table([*results["trunk"], *results["detector"]]), sep="\n\n")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    if args.page:
        plot = str(Path(args.page).with_suffix(".png"))
        if results["growth"]:
            plot_growth(results["growth"], plot)
        write_page(args.page, results, plot)


if __name__ == "__main__":
    main()
