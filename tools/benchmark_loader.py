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
import json
import os
import platform
import statistics
import time
from collections import Counter

import cv2
import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from a3d_det2.data import load_deeplesion, load_slice_stack
from a3d_det2.data.packed import packed_path

INTERVAL = 2.0  # mm between the slices of a stack
FORMS = ("straightforward", "png", "packed")
STAGES = ("read", "deliver", "mapper")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with DL_info.csv, Images_png and Images_packed")
    parser.add_argument("--split", default="test", help="train, val, test or a split file")
    parser.add_argument("--num-slices", type=int, default=7)
    parser.add_argument("--intervals", type=float, nargs="+", default=[1.0, 5.0], help="z intervals in mm")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=100, help="key slices of each interval (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="see above")
    parser.add_argument("--json", help="file to write the figures to as well")
    return parser.parse_args()


def straightforward_stack(path: str, num_slices: int, interval: float) -> np.ndarray:
    """As load_slice_stack, with a decoder call for every slice that an interpolation takes."""
    folder, name = os.path.split(path)
    key = int(os.path.splitext(name)[0])

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


class Delivered(Dataset):
    """The stack of each key slice, as a tensor (D, H, W)."""

    def __init__(self, records: list[dict], num_slices: int, form: str):
        self.records, self.num_slices, self.form = records, num_slices, form

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> torch.Tensor:
        path, interval = self.records[index]["file_name"], self.records[index]["slice_interval"]
        if self.form == "straightforward":
            return torch.from_numpy(straightforward_stack(path, self.num_slices, interval))
        stack = load_slice_stack(path, self.num_slices, interval, INTERVAL, packed=self.form == "packed")
        return torch.from_numpy(stack)


class Read(Delivered):
    """The shape of the stack of each key slice, which is made for it."""

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(super().__getitem__(index).shape)


class Mapped(Delivered):
    """What the mapper makes of each key slice in training."""

    def __init__(self, records: list[dict], num_slices: int, form: str):
        from detectron2.data import transforms as T

        from a3d_det2 import DeepLesionMapper, RandomAffine
        from a3d_det2.data.sample import SampleLoader

        super().__init__(records, num_slices, form)
        stacks = Delivered(records, num_slices, form)
        index = {record["file_name"]: i for i, record in enumerate(records)}
        options = {
            "is_train": True,
            "num_slices": num_slices,
            "slice_interval": INTERVAL,
            "hu_window": (-1024, 2050),
            "use_instance_mask": True,
        }

        class Stacks(SampleLoader):
            def _load(self, record: dict) -> np.ndarray:
                return stacks[index[record["file_name"]]].numpy()

        self._mapper = DeepLesionMapper(augmentations=[T.RandomFlip(), RandomAffine()], **options)
        self._mapper.load = Stacks(**options)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._mapper(self.records[index])["image"]


def bytes_read(dataset: Dataset) -> float:
    """By this process, from files or their cache, per sample; NaN where the system does not say."""
    if not os.path.exists("/proc/self/io"):
        return float("nan")
    before = _bytes_of_process()
    for i in range(len(dataset)):
        dataset[i]
    return (_bytes_of_process() - before) / len(dataset)


def _bytes_of_process() -> int:
    with open("/proc/self/io") as f:
        return int(f.readline().split()[1])  # rchar


def samples_per_second(dataset: Dataset, workers: int) -> float:
    """From the first sample to the last, without the start of the workers."""
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    next(loader)
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def choose(records: list[dict], interval: float, count: int) -> list[dict]:
    """Key slices of the interval that are packed, of the size that most have, spread over the split."""
    packed = [
        record
        for record in records
        if record["slice_interval"] == interval and os.path.exists(packed_path(os.path.dirname(record["file_name"])))
    ]
    if not packed:
        raise SystemExit(f"No packed series with slices {interval} mm apart; see --intervals, --split.")
    sizes = Counter((record["height"], record["width"]) for record in packed)
    size = sizes.most_common(1)[0][0]
    packed = [record for record in packed if (record["height"], record["width"]) == size]
    order = np.random.default_rng(0).permutation(len(packed))[:count]
    return [packed[i] for i in order]


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    records = load_deeplesion(os.path.join(args.root, "DL_info.csv"), os.path.join(args.root, "Images_png"), args.split)
    rows = []
    for interval in args.intervals:
        chosen = choose(records, interval, args.samples)
        stacks = {form: Delivered(chosen, args.num_slices, form) for form in FORMS}
        for i in range(len(chosen)):
            first = stacks["straightforward"][i]
            if not all(torch.equal(stacks[form][i], first) for form in FORMS):
                raise SystemExit(f"{chosen[i]['file_name']}: the forms give different pixels.")
        size = {form: bytes_read(stacks[form]) for form in FORMS}
        for stage, workers in itertools.product(args.stages, args.workers):
            kind = {"read": Read, "deliver": Delivered, "mapper": Mapped}[stage]
            speed = {form: [] for form in FORMS}
            title = f"{interval} mm, {stage}, {workers} workers"
            for _ in tqdm(range(args.repetitions), desc=title, unit="repetition"):
                for form in FORMS:
                    speed[form].append(samples_per_second(kind(chosen, args.num_slices, form), workers))
            median = {form: statistics.median(values) for form, values in speed.items()}
            for form in FORMS:
                rows.append(
                    {
                        "stage": stage,
                        "interval_mm": interval,
                        "workers": workers,
                        "form": form,
                        "samples_per_s": median[form],
                        "lowest": min(speed[form]),
                        "highest": max(speed[form]),
                        "ratio": median[form] / median["straightforward"],
                        "MB_read": size[form] / 1e6,
                    }
                )
    height, width = chosen[0]["height"], chosen[0]["width"]
    print(f"{args.num_slices} slices, {height} x {width}; medians of {args.repetitions}, same pixels")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"machine": platform.platform(), "cpus": os.cpu_count(), "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
