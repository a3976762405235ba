#!/usr/bin/env python
"""Samples per second and bytes read: PNG and packed slices, by z interval and number of workers.

    python datasets/prepare_deeplesion.py --output datasets/deeplesion --pack
    python tools/benchmark_loader.py --root datasets/deeplesion --split test --workers 0 1 2

Three forms take turns on the same key slices: each neighbour decoded from PNG where it is used (straightforward), each
PNG decoded once (png), and the packed series (packed). All must give the same pixels. Each is timed in three stages:

    read      the stack of slices in HU is made, and stays in the worker
    deliver   it is sent to the main process as well, as a data loader does
    mapper    the mapper makes a sample for training of it, with augmentation and masks; needs Detectron2
"""

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from measuring import alternate, spread, write_json
from tabulate import tabulate
from torch.utils.data import DataLoader

from a3d_det2.data import load_deeplesion, load_slice_stack
from a3d_det2.data.packed import packed_path
from a3d_det2.files import slice_number

INTERVAL = 2.0  # mm between the slices of a stack
FORMS = ("straightforward", "png", "packed")


def straightforward_stack(path: str, num_slices: int, interval: float) -> np.ndarray:
    """As load_slice_stack, with a decoder call for every slice that an interpolation takes."""
    folder, key = os.path.dirname(path), slice_number(path)

    def find(offset: int) -> str:
        while not os.path.exists(path_of := os.path.join(folder, f"{key + offset:03d}.png")):
            offset += -1 if offset > 0 else 1
        return path_of

    def read(path_of: str) -> np.ndarray:
        return cv2.imread(path_of, cv2.IMREAD_UNCHANGED).astype(np.float32) - 32768

    slices = []
    for i in range(-(num_slices // 2), num_slices // 2 + 1):
        step = round(abs(i) * INTERVAL / interval, 6)
        near, fraction, sign = int(step), step - int(step), 1 if i > 0 else -1
        low, high = find(sign * near), find(sign * (near + 1))
        image = read(low)
        if fraction and low != high:
            image = image * np.float32(1 - fraction) + read(high) * np.float32(fraction)
        slices.append(image)
    return np.stack(slices)


def make_stack(record: dict, num_slices: int, form: str) -> np.ndarray:
    """(D, H, W) HU."""
    path, interval = record["file_name"], record["slice_interval"]
    if form == "straightforward":
        return straightforward_stack(path, num_slices, interval)
    return load_slice_stack(path, num_slices, interval, INTERVAL, packed=form == "packed")


def read(stack: Callable[[dict], np.ndarray], record: dict) -> tuple[int, ...]:
    return stack(record).shape


def deliver(stack: Callable[[dict], np.ndarray], record: dict) -> torch.Tensor:
    return torch.from_numpy(stack(record))


def image_of(mapper: Callable[[dict], dict], record: dict) -> torch.Tensor:
    return mapper(record)["image"]


def build_mapper(stack: Callable[[dict], np.ndarray]) -> Callable[[dict], dict]:
    """Detectron2's mapper for training, with another way to make the stacks."""
    from detectron2.data import transforms as T

    from a3d_det2 import DeepLesionMapper, RandomAffine

    mapper = DeepLesionMapper(
        augmentations=[T.RandomFlip(), RandomAffine()],
        is_train=True,
        num_slices=1,  # not looked at: the stack is made here
        slice_interval=INTERVAL,
        hu_window=(-1024, 2050),
        use_instance_mask=True,
    )
    mapper.load._load = stack
    return mapper


STAGES = {
    "read": lambda stack: partial(read, stack),
    "deliver": lambda stack: partial(deliver, stack),
    "mapper": lambda stack: partial(image_of, build_mapper(stack)),
}


def samples_per_second(make: Callable[[dict], object], records: list[dict], workers: int) -> float:
    """From the first sample to the last, without the start of the workers."""
    loader = iter(DataLoader(records, batch_size=None, num_workers=workers, collate_fn=make))
    next(loader)
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def bytes_read(make: Callable[[dict], object], records: list[dict]) -> float:
    """Bytes per sample that this process reads from files or their cache; NaN where the system does not say."""
    if not os.path.exists("/proc/self/io"):
        return float("nan")

    def of_process() -> int:
        with open("/proc/self/io") as f:
            return int(f.readline().split()[1])  # rchar

    before = of_process()
    for record in records:
        make(record)
    return (of_process() - before) / len(records)


def choose(records: list[dict], interval: float, count: int) -> list[dict]:
    """Key slices of the interval that are packed, of the size that most have, spread over the split."""
    packed = [
        record
        for record in records
        if record["slice_interval"] == interval and os.path.exists(packed_path(os.path.dirname(record["file_name"])))
    ]
    if not packed:
        raise SystemExit(f"No packed series with slices {interval} mm apart; see --intervals, --split.")
    by_size = Counter((record["height"], record["width"]) for record in packed)
    size = by_size.most_common(1)[0][0]
    packed = [record for record in packed if (record["height"], record["width"]) == size]
    return [packed[i] for i in np.random.default_rng(0).permutation(len(packed))[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with DL_info.csv, Images_png and Images_packed")
    parser.add_argument("--split", default="test", help="train, val, test or a split file")
    parser.add_argument("--num-slices", type=int, default=7)
    parser.add_argument("--intervals", type=float, nargs="+", default=[1.0, 5.0], help="z intervals in mm")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=100, help="key slices of each interval (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="see above")
    parser.add_argument("--json", help="file to write the figures to as well")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    records = load_deeplesion(os.path.join(args.root, "DL_info.csv"), os.path.join(args.root, "Images_png"), args.split)
    stacks = {form: partial(make_stack, num_slices=args.num_slices, form=form) for form in FORMS}
    rows = []
    for interval in args.intervals:
        chosen = choose(records, interval, args.samples)
        for record in chosen:
            first, *others = (stack(record) for stack in stacks.values())
            if not all(np.array_equal(other, first) for other in others):
                raise SystemExit(f"{record['file_name']}: the forms give different pixels.")
        size = {form: bytes_read(stack, chosen) for form, stack in stacks.items()}
        for stage, workers in itertools.product(args.stages, args.workers):
            steps = {form: STAGES[stage](stack) for form, stack in stacks.items()}
            measure = partial(samples_per_second, records=chosen, workers=workers)
            speed = {form: spread(s) for form, s in alternate(steps, args.repetitions, measure).items()}
            for form, (median, lowest, highest) in speed.items():
                rows.append({"stage": stage, "interval_mm": interval, "workers": workers, "form": form})
                rows[-1] |= {"samples_per_s": median, "lowest": lowest, "highest": highest}
                rows[-1] |= {"ratio": median / speed["straightforward"][0], "MB_read": size[form] / 1e6}
    height, width = chosen[0]["height"], chosen[0]["width"]
    print(f"{args.num_slices} slices, {height} x {width}; medians of {args.repetitions}, same pixels")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))
    if args.json:
        write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
