#!/usr/bin/env python
"""Blosc2, Zarr and LMDB as a packed form of CT series: size, random reads, and handles that cross a fork.

    pip install blosc2 zarr lmdb
    python tools/compare_formats.py --image-root datasets/deeplesion/Images_png --series 12

Every format holds each slice as one chunk with Zstandard and bit shuffling. The formats take turns on the same stacks
of 7 slices, every second one; the files of a series are opened anew for each stack.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import blosc2
import lmdb
import numpy as np
import zarr
from tabulate import tabulate
from tqdm import tqdm
from zarr.codecs import BloscCodec

from a3d_det2.data.packed import PackedSeries, write_packed
from a3d_det2.data.series import PngSeries


class Png:
    def __init__(self, folder: str):
        self.open = lambda name: PngSeries(os.path.join(folder, name))

    @staticmethod
    def read(handle: PngSeries, k: int) -> np.ndarray:
        return handle.read(handle.numbers[k])


class Blosc2:
    def __init__(self, folder: str):
        self._folder = folder

    def write(self, name: str, volume: np.ndarray) -> None:
        write_packed(os.path.join(self._folder, name), list(range(len(volume))), volume)

    def open(self, name: str) -> PackedSeries:
        return PackedSeries(os.path.join(self._folder, name))

    @staticmethod
    def read(handle: PackedSeries, k: int) -> np.ndarray:
        return handle.read(k)


class Zarr:
    def __init__(self, folder: str):
        self._folder = folder

    def write(self, name: str, volume: np.ndarray) -> None:
        array = zarr.create_array(
            os.path.join(self._folder, name),
            shape=volume.shape,
            chunks=(1, *volume.shape[1:]),
            shards=volume.shape,
            dtype=volume.dtype,
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
        )
        array[:] = volume

    def open(self, name: str) -> zarr.Array:
        return zarr.open_array(os.path.join(self._folder, name), mode="r")

    @staticmethod
    def read(handle: zarr.Array, k: int) -> np.ndarray:
        return handle[k]


class Lmdb:
    """Values compressed by Blosc2, as LMDB does not compress; one database for all series, open once in a process."""

    def __init__(self, folder: str):
        self._folder = folder
        self._env = None

    def write(self, name: str, volume: np.ndarray) -> None:
        with lmdb.open(self._folder, map_size=1 << 35) as env, env.begin(write=True) as transaction:
            for k, image in enumerate(volume):
                compressed = blosc2.compress2(
                    image,
                    codec=blosc2.Codec.ZSTD,
                    clevel=5,
                    filters=[blosc2.Filter.BITSHUFFLE],
                    filters_meta=[0],
                    typesize=2,
                    nthreads=1,
                )
                transaction.put(f"{name}/{k}".encode(), compressed)
            transaction.put(f"{name}/shape".encode(), np.array(volume.shape[1:]).tobytes())

    def open(self, name: str) -> tuple[lmdb.Transaction, str]:
        self._env = self._env or lmdb.open(self._folder, readonly=True, lock=False)
        return self._env.begin(buffers=True), name

    @staticmethod
    def read(handle: tuple[lmdb.Transaction, str], k: int) -> np.ndarray:
        transaction, name = handle
        image = np.empty(np.frombuffer(transaction.get(f"{name}/shape".encode()), dtype=np.int64), dtype=np.uint16)
        blosc2.decompress2(transaction.get(f"{name}/{k}".encode()), dst=image)
        return image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-root", required=True, help="folder Images_png")
    parser.add_argument("--series", type=int, default=12, help="series of at least 13 slices (default %(default)s)")
    parser.add_argument("--stacks", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def size_of(folder: str) -> int:
    return sum(os.stat(os.path.join(a, name)).st_blocks * 512 for a, _, names in os.walk(folder) for name in names)


def survives_a_fork(read: Callable, handle, expected: list[np.ndarray]) -> str:
    """Whether two children that read at once through a handle of their parent get the right pixels."""
    read(handle, 0)

    def child() -> None:
        same = all(np.array_equal(read(handle, k), image) for _ in range(5) for k, image in enumerate(expected))
        os._exit(0 if same else 1)

    children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    for process in children:
        process.join(30)
    codes = [process.exitcode for process in children]
    for process in children:
        process.kill()
    return {0: "yes", None: "hangs"}.get(max(codes, key=lambda code: code != 0), "wrong or crashed")


def main() -> None:
    args = parse_args()
    blosc2.set_nthreads(1)
    opened = {name: PngSeries(os.path.join(args.image_root, name)) for name in sorted(os.listdir(args.image_root))}
    opened = {name: series for name, series in opened.items() if len(series.numbers) >= 13}
    names = list(opened)[: args.series]
    rng = np.random.default_rng(0)
    stacks = []
    for _ in range(args.stacks):
        name = names[rng.integers(len(names))]
        key = int(rng.integers(6, len(opened[name].numbers) - 6))
        stacks.append((name, range(key - 6, key + 7, 2)))
    with tempfile.TemporaryDirectory() as folder:
        formats, rows = {"PNG": Png(args.image_root)}, []
        png_size = sum(os.path.getsize(opened[n].path(k)) for n in names for k in opened[n].numbers)
        sizes = {"PNG": png_size}
        for label, kind in (("Blosc2", Blosc2), ("Zarr", Zarr), ("LMDB", Lmdb)):
            os.makedirs(os.path.join(folder, label))
            formats[label] = kind(os.path.join(folder, label))
            for name in tqdm(names, desc=f"write {label}", unit="series"):
                formats[label].write(name, np.stack([opened[name].read(k) for k in opened[name].numbers]))
            sizes[label] = size_of(os.path.join(folder, label))
        times = {label: [] for label in formats}
        for _ in tqdm(range(args.repetitions), desc="read", unit="repetition"):
            for label, form in formats.items():
                start = time.perf_counter()
                for name, ks in stacks:
                    handle = form.open(name)
                    for k in ks:
                        form.read(handle, k)
                times[label].append((time.perf_counter() - start) / len(stacks))
        expected = [opened[names[0]].read(k) for k in opened[names[0]].numbers]
        for label, form in formats.items():
            assert all(np.array_equal(form.read(form.open(names[0]), k), image) for k, image in enumerate(expected))
            median = statistics.median(times[label])
            rows.append(
                {
                    "format": label,
                    "size / PNG": sizes[label] / png_size,
                    "ms per stack": median * 1000,
                    "times PNG": statistics.median(times["PNG"]) / median,
                    "handle survives a fork": survives_a_fork(form.read, form.open(names[0]), expected),
                }
            )
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
