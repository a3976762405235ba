"""Predict whole archives of CTs, as the command a3d-archive and tools/predict_archive.py do.

    a3d-archive scan /data/cts --manifest archive.csv
    a3d-archive predict --manifest archive.csv --output results --config-file a3d_7slice.yaml --weights model_best.pth
    a3d-archive merge --manifest archive.csv --output results --table lesions.csv

The manifest is a table with the columns id, path and series, of which the last may be missing. Each id gets a folder in
OUTPUT, with its results or an error, that appears when it is complete; the same command does what is left, whatever
ended the one before.
For research, not a medical device.
"""

import argparse
import logging
import sys

from ...files import printable
from ...threads import available_cores
from ..mistakes import Mistake, exit_on_mistakes, mistakes
from ..prediction_options import add_output_options, add_prediction_options, check_output_options
from ..quiet import hide_patient_names
from .manifest import Shard, write_manifest
from .merging import merge
from .prediction import Prediction
from .running import predict_archive
from .scanning import scan
from .store import ERROR
from .work import How


def main(argv: list[str] | None = None) -> None:
    """
    Args:
        argv: the command line without the program's name; None takes that of the process.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    hide_patient_names()
    with exit_on_mistakes(), mistakes(kinds=(OSError, ValueError, ImportError)):
        args.run(args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **how)
    commands = parser.add_subparsers(dest="command", required=True, metavar="scan|predict|merge")

    scanning = commands.add_parser("scan", help="folders -> a manifest, by the headers of the files", **how)
    scanning.add_argument("folder", help="is searched at any depth")
    scanning.add_argument("--manifest", required=True, help="CSV file to write")
    scanning.add_argument("--workers", type=count, default=available_cores(), help="that read headers (%(default)s)")
    scanning.set_defaults(run=run_scan)

    predicting = commands.add_parser("predict", help="the lesions of each volume of a manifest", **how)
    predicting.add_argument("--manifest", required=True, help="CSV file with the columns id, path and series")
    predicting.add_argument("-o", "--output", required=True, help="folder for the results; goes on with those in it")
    predicting.add_argument("--workers", type=count, default=1, help="processes with a model each (%(default)s)")
    text = "of each (the cores of the machine by the number of workers; with --ray 1)"
    predicting.add_argument("--threads", type=count, help=text)
    predicting.add_argument("--readers", type=count, default=1, help="processes that read ahead, of each (%(default)s)")
    text = "seconds until an item is given up, for reading and for the rest of it (%(default)g)"
    predicting.add_argument("--timeout", type=seconds, default=3600.0, help=text)
    text = "do this part of the manifest, such as 1/64 to 64/64"
    predicting.add_argument("--shard", type=part, default=Shard(), metavar="I/N", help=text)
    predicting.add_argument("--retry-errors", action="store_true", help="do those again that ended with an error")
    text = "workers are actors of Ray, of the cluster in $RAY_ADDRESS or else of this machine; OUTPUT is on a file "
    predicting.add_argument("--ray", action="store_true", help=text + "system that all have. Needs the extra [ray]")
    add_prediction_options(predicting)
    add_output_options(predicting)
    predicting.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE, changes of the config")
    predicting.set_defaults(run=run_predict)

    merging = commands.add_parser("merge", help="the results as two tables, of lesions and of volumes", **how)
    merging.add_argument("--manifest", required=True)
    merging.add_argument("-o", "--output", required=True, help="folder with the results")
    merging.add_argument("--table", required=True, help=".csv or .parquet to write; beside it NAME.items.csv")
    merging.set_defaults(run=run_merge)

    args = parser.parse_args(argv)
    if args.command == "predict":
        if not args.config_file:
            predicting.error("expected --config-file")
        check_output_options(predicting, args)
    return args


def count(text: str) -> int:
    """A type for argparse: a whole number from 1 on."""
    if not (text.isdecimal() and 0 < int(text) < 10_000):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A type for argparse: a time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2e6:  # more than which no wait of the system takes
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and below 2e6, got {text!r}")
    return value


def part(text: str) -> Shard:
    """A type for argparse: a part of a manifest."""
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_scan(args: argparse.Namespace) -> None:
    """Write a manifest."""
    found = scan(args.folder, args.workers)
    for problem, number in found.problems.most_common():
        print(printable(f"left out: {number} x {problem}"))
    if not found.items:
        raise Mistake(f"{args.folder}: expected CTs as DICOM, NIfTI or 16-bit PNG, got none that can be used.")
    print(f"{write_manifest(args.manifest, found.items)} volumes -> {args.manifest}")


def run_predict(args: argparse.Namespace) -> None:
    """Predict the volumes of a manifest."""
    predict_archive(
        Prediction(args),
        args.manifest,
        How(args.output, args.readers, args.timeout),
        workers=args.workers,
        threads=args.threads,
        shard=args.shard,
        retry_errors=args.retry_errors,
        ray=args.ray,
    )


def run_merge(args: argparse.Namespace) -> None:
    """Write the tables, and say what they lack."""
    merged = merge(args.manifest, args.output, args.table)
    counts = merged.counts
    print(
        f"{counts.total()} volumes: {counts['done']} done with {merged.lesions} lesions, {counts[ERROR]} errors, "
        f"{counts['missing']} missing -> {args.table}"
    )
    if merged.missing:
        more = "" if counts["missing"] == len(merged.missing) else ", ..., see the table of volumes"
        print(printable(f"missing: {', '.join(merged.missing)}{more}"), file=sys.stderr)
        sys.exit(1)
