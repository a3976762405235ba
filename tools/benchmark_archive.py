#!/usr/bin/env python
"""What the processes of tools/predict_archive.py cost beside a bare loop, and what a long manifest costs.

    python tools/benchmark_archive.py overhead --manifest archive.csv --ray -- \\
        --config-file configs/quick/a3d_volumes_7slice.yaml --weights model_final.pth
    python tools/benchmark_archive.py manifest --rows 100000 --workers 2

overhead: seconds of an item are the difference between a run of many volumes and one of a few, so that what is done
once (imports, the model) is not in them; runs of the kinds take turns.
manifest: the work on an item is to write a small file.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from a3d_det2.engine.archive.manifest import Item, read_manifest, write_manifest
from a3d_det2.engine.archive.running import predict_archive
from a3d_det2.engine.archive.work import How

REPO = Path(__file__).resolve().parents[1]
TOOL = REPO / "tools" / "predict_archive.py"


class Nothing:
    """Work that needs no time; see :class:`a3d_det2.engine.archive.work.Task`."""

    run, how = "nothing", {}

    def read(self, item: Item) -> Item:
        return item

    def wants_gpu(self) -> bool:
        return False

    def build(self, index: int) -> "Nothing":
        return self

    def __call__(self, item: Item, folder: str) -> dict:
        Path(folder, "lesions.csv").write_text(item.id)
        return {"lesions": 0}

    def with_less_memory(self) -> None:
        return None


def bare_loop(argv: list[str]) -> None:
    """Read, predict and write volumes one after the other, in this process; prints nothing but the bar of tqdm."""
    from tqdm import tqdm

    from a3d_det2.engine.archive.commands import parse_args
    from a3d_det2.engine.archive.prediction import Prediction

    args = parse_args(["predict", *argv])
    task = Prediction(args)
    processor = task.build(0)
    for item in tqdm(list(read_manifest(args.manifest)), "bare loop"):
        folder = os.path.join(args.output, item.id)
        os.makedirs(folder)
        processor(task.read(item), folder)


def seconds_of(command: list[str], manifest: str, options: list[str]) -> float:
    """Seconds that a run takes as a process of its own."""
    output = tempfile.mkdtemp()
    try:
        start = time.perf_counter()
        arguments = ["--manifest", manifest, "--output", output, *options]
        subprocess.run([sys.executable, *command, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(output)


def overhead(args: argparse.Namespace) -> None:
    """Compare the kinds of runs."""
    items = list(read_manifest(args.manifest))
    kinds = {"bare loop": [__file__, "bare"], "a3d-archive": [str(TOOL), "--threads", str(args.threads)]}
    if args.ray:
        kinds["a3d-archive --ray"] = [str(TOOL), "--ray", "--threads", str(args.threads)]
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the loop; the others have an option for it
    with tempfile.TemporaryDirectory() as folder:
        few, many = (os.path.join(folder, f"{name}.csv") for name in ("few", "many"))
        repeated = [items[i % len(items)]._replace(id=str(i)) for i in range(args.many)]
        write_manifest(few, repeated[: args.few])
        write_manifest(many, repeated)
        for _ in range(args.repeat):
            for name, command in kinds.items():
                short, long = (seconds_of(command, manifest, args.options) for manifest in (few, many))
                each = (long - short) / (args.many - args.few)
                figures[name].append((each, short - args.few * each))
    median = {name: [statistics.median(part) for part in zip(*runs, strict=True)] for name, runs in figures.items()}
    bare = median["bare loop"][0]
    rows = [[name, each, f"{each / bare - 1:+.1%}", once] for name, (each, once) in median.items()]
    print(tabulate(rows, ["", "s of an item", "more than the loop", "s once"], "github", floatfmt=".3f"))
    print({name: [round(each, 3) for each, _ in runs] for name, runs in figures.items()})


def manifest(args: argparse.Namespace) -> None:
    """Do a long manifest."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, output = os.path.join(folder, "archive.csv"), os.path.join(folder, "output")
        write_manifest(path, (Item(f"item {i}", f"{i}.nii") for i in range(args.rows)))
        for again in (False, True):
            start = time.perf_counter()
            counts = predict_archive(Nothing(), path, How(output), workers=args.workers, ray=args.ray)
            took = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            what = "again, with nothing left" if again else f"{counts.total()} items"
            print(f"{what}: {took:.1f} s, peak memory of the first process {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("overhead")
    one.add_argument("--manifest", required=True)
    one.add_argument("--few", type=int, default=2, help="volumes of the short run (%(default)s)")
    one.add_argument("--many", type=int, default=10, help="and of the long one (%(default)s)")
    one.add_argument("--threads", type=int, default=os.cpu_count())
    one.add_argument("--repeat", type=int, default=3)
    one.add_argument("--ray", action="store_true", help="also as actors of Ray")
    one.add_argument("options", nargs="*", help="of tools/predict_archive.py, after --")
    other = commands.add_parser("manifest")
    other.add_argument("--rows", type=int, default=100_000)
    other.add_argument("--workers", type=int, default=2)
    other.add_argument("--ray", action="store_true")
    other.add_argument("--folder", help="to write in (that of temporary files)")
    if sys.argv[1:2] == ["bare"]:
        bare_loop(sys.argv[2:])
        return
    args = parser.parse_args()
    overhead(args) if args.command == "overhead" else manifest(args)


if __name__ == "__main__":
    main()
