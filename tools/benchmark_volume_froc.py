#!/usr/bin/env python
"""How long many volumes take to score, with resamples, on one core.

python tools/benchmark_volume_froc.py
"""

import argparse
import time

import numpy as np

from a3d_det2.evaluation.volumes import RULES, FoundVolume, TrueVolume, VolumeEvaluation


def invent(volumes: int, lesions: int, results: int) -> tuple[list[TrueVolume], list[FoundVolume]]:
    """Volumes with lesions, half of them found, and other results."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for index in range(volumes):
        low = rng.integers(0, 400, (lesions, 3))
        boxes = np.concatenate([low, low + rng.integers(3, 40, (lesions, 3))], axis=1)
        other = rng.integers(0, 400, (results - lesions // 2, 3))
        ours = np.concatenate([boxes[: lesions // 2], np.concatenate([other, other + 20], axis=1)])
        ours = ours + rng.integers(-2, 3, ours.shape)
        ours[:, 3:] = np.maximum(ours[:, 3:], ours[:, :3])
        more = {"long_mm": rng.uniform(3, 60, lesions), "heights": rng.random(lesions), "to_mm": np.diag([1, 1, 2.0])}
        truth.append(TrueVolume(f"{index}", boxes, patient=f"{index // 2}", **more))
        found.append(FoundVolume(f"{index}", ours, rng.random(len(ours)), long_mm=rng.uniform(3, 60, len(ours))))
    return truth, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--lesions", type=int, default=50, help="in each volume")
    parser.add_argument("--results", type=int, default=100, help="in each volume")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--rules", nargs="+", default=["iou3d_0.3", "iobb3d_0.3", "luna16"], choices=RULES)
    args = parser.parse_args()
    volumes, found = invent(args.volumes, args.lesions, args.results)
    for name in args.rules:
        start = time.process_time()
        summary = VolumeEvaluation(volumes, found, RULES[name], resamples=args.resamples).summary()
        print(f"{name}: {time.process_time() - start:.1f} s of one core, average {summary['average']:.3f}")


if __name__ == "__main__":
    main()
