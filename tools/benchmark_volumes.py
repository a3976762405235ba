#!/usr/bin/env python
"""Time and memory of predicting volumes with the full network, with weights as they are drawn.

    python tools/benchmark_volumes.py memory --slices 300 600    # each in a process of its own
    python tools/benchmark_volumes.py speed                      # beside slice by slice, float32, whole slices
    python tools/benchmark_volumes.py speed --monai              # and beside MONAI's 3D RetinaNet, if it is installed

``memory`` predicts whole volumes and prints the most memory that the process had, the time of a slice, and the part of
it that the network takes. ``speed`` alternates the ways and prints medians.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import torch
from measuring import alternate, spread, write_json
from tabulate import tabulate

from a3d_det2.checkpoint.strict import StrictCheckpointer
from a3d_det2.data.slices import resample_stack, window_hu
from a3d_det2.engine.command import ENGINES
from a3d_det2.engine.predict import load_config
from a3d_det2.engine.predictor import LesionPredictor
from a3d_det2.model_zoo import find_config_file
from a3d_det2.optional import detectron2_problem
from a3d_det2.volumes import Volume
from a3d_det2.volumes.body import body_boxes
from a3d_det2.volumes.phantom import random_volume, render
from a3d_det2.volumes.predictor import Found

MONAI_PATCH, MONAI_SPACING, MONAI_OVERLAP = (192, 192, 80), (0.703125, 0.703125, 1.25), 0.25  # of the LUNA16 bundle


def make_volume(slices: int, interval: float, size: int) -> Volume:
    """A phantom of that many slices."""
    phantom = random_volume(0, size=size, slice_interval=interval, length=slices * interval)
    hu = np.empty((slices, size, size), dtype=np.int16)
    for k in range(slices):
        hu[k] = np.rint(render(phantom, min(k, phantom.shape[0] - 1)))
    offsets = np.zeros((slices, 2))
    return Volume(hu, phantom.affine, np.arange(slices) * interval, offsets, "phantom")


def make_predictor(args, folder: str, **options) -> LesionPredictor:
    cfg, _ = load_config(args.engine, find_config_file(args.config_file), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    weights = os.path.join(folder, "model.pth")
    if not os.path.exists(weights):
        torch.manual_seed(0)
        if args.engine == "detectron2":
            from detectron2.modeling import build_model as build
        else:
            from a3d_det2.modeling.torchvision_rcnn import build_lesion_rcnn as build
        StrictCheckpointer(build(cfg), folder).save("model", tag=False)
    return LesionPredictor(cfg, weights, batch_size=args.batch_size, min_score=args.min_score, **options)


class Timed:
    """A detector, and the seconds that it takes."""

    def __init__(self, detector):
        self.detector, self.seconds = detector, 0.0

    def __call__(self, images, interval):
        start = time.perf_counter()
        found = self.detector(images, interval)
        self.seconds += time.perf_counter() - start
        return found


def measure_memory(args, slices: int) -> dict:
    """Predict a volume, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = make_predictor(args, folder, dtype=args.dtype)
        volume = make_volume(slices, args.interval, args.size)
        predictor.detector = Timed(predictor.detector)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        lesions = predictor.predict(volume)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        # The bare network: the same images once more, with nothing else to do.
        bodies = body_boxes(volume)
        keys = [int(k) for k in np.flatnonzero(bodies.any(axis=1))]
        bare = bare_seconds(predictor, volume, keys[:: max(1, len(keys) // args.bare)])
    return {
        "slices": slices,
        "key_slices": len(keys),
        "lesions": len(lesions),
        "peak_mib": peak,
        "before_mib": before,
        "volume_mib": volume.hu.nbytes / 2**20,
        "seconds": seconds,
        "seconds_per_slice": seconds / len(keys),
        "network_share": predictor.detector.seconds / seconds,
        "bare_network_seconds_per_slice": bare,
    }


def bare_seconds(predictor: LesionPredictor, volume: Volume, keys: list[int]) -> float:
    """Seconds of a slice, where the images are there already."""
    recorded = []
    timed, predictor.detector = predictor.detector, lambda images, _: recorded.append(images) or none_found(images)
    predictor.detect(volume, keys)
    predictor.detector = timed
    seconds = []
    for images in recorded:
        start = time.perf_counter()
        timed.detector(images, volume.slice_interval)
        seconds.append((time.perf_counter() - start) / len(images))
    return float(np.median(seconds))


def none_found(images: torch.Tensor) -> list[Found]:
    return [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), None) for _ in images]


def memory(args) -> dict:
    rows = []
    for slices in args.slices:
        command = [sys.executable, __file__, *args.repeated, "memory-of-one", "--slices", str(slices)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), floatfmt=".3f"))
    return {"memory": rows}


def speed(args) -> dict:
    """Seconds of a mm of body, in several ways; all but the first with the same network."""
    interval, step = args.interval, args.step
    with tempfile.TemporaryDirectory() as folder:
        ours = make_predictor(args, folder, dtype="bfloat16", progress=False)
        plain = make_predictor(args, folder, dtype="float32", progress=False, crop_to_body=False)
        volume = make_volume(args.slices[0], interval, args.size)
        bodies = body_boxes(volume)
        inside = np.flatnonzero(bodies.any(axis=1))
        keys = [int(k) for k in inside[np.linspace(0, len(inside) - 1, args.keys).astype(int)]]

        def slice_by_slice():
            for key in keys:
                stack = resample_stack(volume.hu, key, plain._stacks["num_slices"], interval)
                image = torch.from_numpy(window_hu(stack, plain._stacks["hu_window"]))
                plain.detector(image[None], interval)

        steps = {
            "slice by slice, float32, whole slices": slice_by_slice,
            "float32, body": lambda: with_dtype(ours, plain).detect(volume, keys),
            "bfloat16, body": lambda: ours.detect(volume, keys),
        }
        mm = {name: len(keys) * step for name in steps}
        if args.monai:
            patch, patch_mm = monai_step(volume, bodies)
            for dtype in (torch.float32, torch.bfloat16):
                name = f"MONAI 3D RetinaNet, {str(dtype).removeprefix('torch.')}"
                steps[name], mm[name] = partial(patch, dtype), patch_mm
        figures = alternate(steps, args.repeat)
    medians = {name: spread(values)[0] / mm[name] for name, values in figures.items()}
    first = next(iter(medians.values()))
    rows = [[name, value, first / value] for name, value in medians.items()]
    print(tabulate(rows, ["", "s per mm of body", "times faster"], floatfmt=".3f"))
    return {"speed": {"seconds_per_mm": medians, "figures": figures, "mm": mm}}


def with_dtype(ours: LesionPredictor, plain: LesionPredictor) -> LesionPredictor:
    """The predictor of bodies with the detector in float32."""
    other = copy.copy(ours)
    other.detector = plain.detector
    return other


def monai_step(volume: Volume, bodies: np.ndarray):
    """One patch through the network of MONAI's LUNA16 bundle, and the mm of body that it stands for.

    Patches overlap by a quarter, and as many lie side by side as cover the body.
    """
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets import resnet

    backbone = resnet.ResNet(
        block=resnet.ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=resnet.get_inplanes(),
        n_input_channels=1,
        conv1_t_stride=[2, 2, 1],
        conv1_t_size=[7, 7, 7],
    )
    extractor = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
    network = RetinaNet(3, 1, 3, extractor, (16, 16, 8)).eval()
    patch = torch.randn(1, 1, *MONAI_PATCH)

    @torch.inference_mode()
    def step(dtype: torch.dtype):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            network(patch)

    side = np.array(MONAI_PATCH) * MONAI_SPACING  # mm
    boxes = bodies[bodies.any(axis=1)]
    body = np.median(boxes[:, 2:] - boxes[:, :2], axis=0) * volume.spacing  # mm
    beside = np.prod(
        [
            1 if length <= one else np.ceil((length - one) / (one * (1 - MONAI_OVERLAP))) + 1
            for length, one in zip(body, side[:2], strict=True)
        ]
    )
    return step, float(side[2] * (1 - MONAI_OVERLAP) / beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="a3d_7slice.yaml")
    parser.add_argument("--engine", choices=ENGINES, default="torchvision" if detectron2_problem() else "detectron2")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--min-score", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=512, help="of slices in pixels (default %(default)s)")
    parser.add_argument("--interval", type=float, default=2.0, help="mm between slices (default %(default)s)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", help="JSON to write")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("memory", "memory-of-one"):
        one = commands.add_parser(name)
        one.add_argument("--slices", type=int, nargs="+", default=[300, 600])
        one.add_argument("--bare", type=int, default=12, help="slices for the time of the bare network")
    one = commands.add_parser("speed")
    one.add_argument("--slices", type=int, nargs=1, default=[200])
    one.add_argument("--keys", type=int, default=6, help="key slices in a round")
    one.add_argument("--step", type=float, default=2.0, help="mm of body that a key slice stands for")
    one.add_argument("--repeat", type=int, default=3)
    one.add_argument("--monai", action="store_true")
    args = parser.parse_args()
    args.repeated = sys.argv[1 : sys.argv.index(args.command)]
    if args.command == "memory-of-one":
        print(json.dumps(measure_memory(args, args.slices[0])))
        return
    report = memory(args) if args.command == "memory" else speed(args)
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
