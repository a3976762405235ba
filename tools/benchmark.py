#!/usr/bin/env python
"""Time and memory of A3D as published and as it is here, side by side in one process.

    python tools/benchmark.py --json benchmark.json --plot growth.png
    python tools/benchmark.py --device cuda --batch 1 4 16 --compile --json benchmark.json

Measured are, at inference and in a training step (forward and backward), in rounds in which all alternate:

    published       Algorithm 1 of the paper as it is written: einsum, then a 3D convolution with a 1 x K x K kernel, 3D
                    norms and poolings, concatenation; contiguous, float32
    published AMP   the same under autocast
    ours            this package, float32
    ours AMP        the same under autocast
    none            this package without fusion, float32
    none AMP        the same under autocast

of the operator (the mixing step alone, beside a copy of its tensor), the trunk, and the whole detector; and how time
and memory of the trunk grow with the number of slices, the batch and the image size. Seconds and milliseconds are
medians, with the least and the most.
"""

import argparse
import gc
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import alternate, peak_memory, spread, write_json
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from a3d_det2.kernels.mixing import mix_slices
from a3d_det2.modeling import DenseNet3D

REPO = Path(__file__).resolve().parents[1]
WHAT = ("operator", "trunk", "detector", "growth")
KINDS = ("inference", "training")
OPERATOR_SHAPES = ((256, 64), (128, 128), (992, 32))  # channels and height = width, as in the three dense blocks
LAYOUTS = {"channels_last_3d": torch.channels_last_3d, "contiguous": torch.contiguous_format}
AXES = {"slices": "slices D", "batch": "batch", "size": "height and width (pixels)"}
QUANTITIES = {"seconds": ("time (s)", 1), "bytes": ("peak memory (GiB)", 2**30)}


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


def measure(steps: dict[str, Callable[[], object]], repeat: int, baseline: str) -> dict[str, dict[str, float]]:
    """Seconds (median, least and most), peak bytes, and the speed relative to ``baseline`` of each step."""
    results = {}
    for name, values in alternate(steps, repeat).items():
        results[name] = dict(zip(("seconds", "least", "most"), spread(values), strict=True))
        results[name]["bytes"] = peak_memory(steps[name])
    return {name: {**r, "speedup": results[baseline]["seconds"] / r["seconds"]} for name, r in results.items()}


def measure_operator(shape: tuple[int, ...], repeat: int, device: str) -> dict[str, dict[str, dict[str, float]]]:
    """The mixing step of one tensor (N, C, D, H, W) in float32, and a copy of it, which reads and writes it once as the
    forward does."""
    torch.manual_seed(0)
    _, channels, slices, *_ = shape
    weight = torch.randn(slices, slices, channels, device=device)
    einsum = partial(torch.einsum, "ncdhw,dkc->nckhw")
    results = {}
    for layout, memory_format in LAYOUTS.items():
        x = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
        inputs, grad = (x.clone().requires_grad_(), weight.clone().requires_grad_()), torch.randn_like(x)

        def train(mix, inputs=inputs, grad=grad):
            torch.autograd.grad(mix(*inputs), inputs, grad)

        forward = {"copy": x.clone, "einsum": partial(einsum, x, weight), "ours": partial(mix_slices, x, weight)}
        backward = {"copy": x.clone, "einsum": partial(train, einsum), "ours": partial(train, mix_slices)}
        results[f"{layout} forward"] = measure(forward, repeat, "copy")
        results[f"{layout} forward + backward"] = measure(backward, repeat, "einsum")
    return results


def run(model: nn.Module, dtype: torch.dtype | None, inputs: Tensor | list[dict], kind: str) -> None:
    """One forward, and in training the backward of a sum of the outputs; under autocast to ``dtype`` unless None."""
    training, device = kind == "training", next(model.parameters()).device.type
    torch.manual_seed(0)  # of the proposals that a detector draws
    model.train(training)
    with torch.autocast(device, dtype, enabled=dtype is not None), torch.set_grad_enabled(training):
        outputs = model(inputs)
    if training:
        sum(y.float().mean() for y in outputs.values()).backward()
        model.zero_grad()


def measure_networks(
    models: dict[str, nn.Module], inputs: Tensor | list[dict], amp: torch.dtype | None, compiled: bool, repeat: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Inference and training of each model, in float32 and, unless ``amp`` is None, under autocast to it."""
    variants = {name: (model, None) for name, model in models.items()}
    if amp is not None:
        variants |= {f"{name} AMP": (model, amp) for name, model in models.items()}
    if compiled:
        variants |= {f"{name} AMP, compiled": (torch.compile(models[name]), amp) for name in ("published", "ours")}
    return {
        kind: measure(
            {name: partial(run, model, dtype, inputs, kind) for name, (model, dtype) in variants.items()},
            repeat,
            "published",
        )
        for kind in KINDS
    }


def measure_trunk(
    slices: int, batch: int, size: int, repeat: int, device: str, amp: torch.dtype | None = None, compiled: bool = False
) -> dict:
    torch.manual_seed(0)
    a3d, none = DenseNet3D("a3d", slices).to(device), DenseNet3D("none", slices).to(device)
    models = {"published": Published(a3d), "ours": a3d, "none": none}
    x = torch.randn(batch, 1, slices, size, size, device=device)
    results = measure_networks(models, x, amp, compiled, repeat)
    return {"what": "trunk", "slices": slices, "batch": batch, "size": size, "results": results}


def measure_detector(slices: int, batch: int, size: int, repeat: int, device: str, amp: torch.dtype) -> dict:
    """The whole detector of configs/a3d_{slices}slice.yaml, with Detectron2's heads."""
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    from a3d_det2.engine.launching import load_config

    def build(op: str) -> nn.Module:
        opts = ["MODEL.DEVICE", device, "MODEL.A3D.OPERATOR", op, "MODEL.A3D.NORM", "BN"]
        torch.manual_seed(0)
        return build_model(load_config(str(REPO / "configs" / f"a3d_{slices}slice.yaml"), opts))

    models = {"published": build("a3d"), "ours": build("a3d"), "none": build("none")}
    bottom_up = models["published"].backbone.bottom_up
    bottom_up.trunk = Published(bottom_up.trunk)
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[0.2, 0.2, 0.3, 0.3], [0.5, 0.6, 0.56, 0.64]]) * size)
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, size // 5 : size // 3, size // 5 : size // 3] = masks[1, size // 2 : size * 2 // 3, size // 2 :] = True
    instances.gt_masks = BitMasks(masks)
    inputs = [{"image": torch.randn(slices, size, size) * 50, "instances": instances} for _ in range(batch)]
    with EventStorage():
        results = measure_networks(models, inputs, amp, False, repeat)
    return {"what": "detector", "slices": slices, "batch": batch, "size": size, "results": results}


def measure_growth(what: list[str], size: int, repeat: int, device: str) -> dict[str, list[dict]]:
    """The trunk at several numbers of slices, batches or image sizes, the other two fixed."""
    axes = {"slices": (3, 7, 9, 15, 27), "batch": (1, 2, 4, 8), "size": (size // 2, size, size * 3 // 2, size * 2)}
    results = {axis: [] for axis in what}
    for axis in what:
        for value in axes[axis]:
            point = {"slices": 7, "batch": 1, "size": size, axis: value}
            results[axis].append(measure_trunk(**point, repeat=repeat, device=device))
            gc.collect()
    return results


def check_same_results(device: str) -> float:
    """The largest difference between the trunk as published and ours, relative to the largest value."""
    torch.manual_seed(0)
    trunk = DenseNet3D("a3d", 7).to(device).eval()
    x = torch.randn(1, 1, 7, 64, 64, device=device)
    with torch.no_grad():
        expected, got = Published(trunk)(x), trunk(x)
    return max(((got[name] - y).abs().max() / y.abs().max()).item() for name, y in expected.items())


def plot_growth(results: dict[str, list[dict]]) -> Figure:
    figure = Figure(figsize=(11, 12), layout="constrained")
    axes = figure.subplots(4, len(results), sharex="col", squeeze=False)
    for column, (axis, points) in enumerate(results.items()):
        for row, (quantity, kind) in enumerate(itertools.product(QUANTITIES, KINDS)):
            place, (label, unit) = axes[row, column], QUANTITIES[quantity]
            for name in ("published", "ours", "none"):
                values = [point["results"][kind][name][quantity] / unit for point in points]
                place.plot([point[axis] for point in points], values, "o-", label=name)
            place.set_ylim(bottom=0)
            place.grid(alpha=0.3)
            if column == 0:
                place.set_ylabel(f"{kind}: {label}")
        axes[-1, column].set_xlabel(AXES[axis])
        axes[0, column].set_title(", ".join(f"{key} {points[0][key]}" for key in AXES if key != axis), fontsize=10)
    axes[0, 0].legend()
    return figure


def operator_table(results: list[dict]) -> str:
    rows = []
    for result in results:
        for name, parts in result["results"].items():
            copy, einsum, ours = (1e3 * parts[key]["seconds"] for key in ("copy", "einsum", "ours"))
            least, most = (1e3 * parts["ours"][key] for key in ("least", "most"))
            times = [f"{copy:.1f}", f"{einsum:.1f}", f"{ours:.1f} ({least:.1f} to {most:.1f})"]
            shape = " x ".join(map(str, result["shape"]))
            rows.append([shape, *name.split(" ", 1), *times, f"x {ours / copy:.2f}", f"x {einsum / ours:.1f}"])
    headers = ["tensor", "layout", "", "copy (ms)", "einsum (ms)", "ours (ms)", "ours / copy", "einsum / ours"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def network_table(results: list[dict]) -> str:
    rows = []
    for result in results:
        for kind, parts in result["results"].items():
            for name, value in parts.items():
                none = parts["none AMP" if "AMP" in name else "none"]
                times = f"{value['seconds']:.3f} ({value['least']:.3f} to {value['most']:.3f})"
                ratios = [f"x {value['speedup']:.2f}", f"x {value['seconds'] / none['seconds']:.2f}"]
                place = [result[key] for key in ("what", *AXES)]
                rows.append([*place, kind, name, times, *ratios, f"{value['bytes'] / 2**30:.2f}"])
    headers = ["", *AXES, "", "", "seconds", "speed of published", "time of none", "peak memory (GiB)"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="default: all")
    parser.add_argument("--slices", type=int, nargs="+", default=[3, 7])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, default=512, help="height and width (default %(default)s)")
    parser.add_argument("--growth", nargs="+", choices=AXES, default=list(AXES), help="what grows; default: all")
    parser.add_argument("--growth-size", type=int, default=256, help="that of the growth (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--amp", choices=["bfloat16", "float16"], help="default: torch's for the device")
    parser.add_argument("--compile", action="store_true", help="also the trunks under torch.compile")
    parser.add_argument("--json", help="write all numbers to this file")
    parser.add_argument("--plot", help="draw the growth into this file")
    args = parser.parse_args()
    if args.plot and "growth" not in args.what:
        parser.error(f"--plot draws the growth: expected it in --what, got {' '.join(args.what)}")
    device, amp = args.device, getattr(torch, args.amp) if args.amp else torch.get_autocast_dtype(args.device)
    gc.freeze()  # what is imported, of which there is so much that each collection would take a tenth of a second
    results = {"repeat": args.repeat, "amp": str(amp), "difference": check_same_results(device)}
    results |= {"operator": [], "trunk": [], "detector": [], "growth": {}}
    for slices in args.slices:
        for batch in args.batch:
            point = {"slices": slices, "batch": batch, "size": args.size, "repeat": args.repeat, "device": device}
            for channels, size in OPERATOR_SHAPES if "operator" in args.what else ():
                shape = (batch, channels, slices, size, size)
                each = measure_operator(shape, 3 * args.repeat, device)
                results["operator"].append({"shape": shape, "results": each})
            if "trunk" in args.what:
                results["trunk"].append(measure_trunk(**point, amp=amp, compiled=args.compile))
            if "detector" in args.what:
                results["detector"].append(measure_detector(**point, amp=amp))
            gc.collect()
    if "growth" in args.what:
        results["growth"] = measure_growth(args.growth, args.growth_size, max(1, args.repeat // 2), device)
    print(operator_table(results["operator"]))
    print(network_table([*results["trunk"], *results["detector"]]))
    print(f"Largest difference between the trunk as published and ours: {results['difference']:.1e} of the largest")
    if args.json:
        write_json(args.json, results)
    if args.plot:
        plot_growth(results["growth"]).savefig(args.plot, dpi=110)


if __name__ == "__main__":
    main()
