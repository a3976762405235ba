"""Find and measure lesions in CT volumes, as tools/predict.py and the command a3d-predict do.

    a3d-predict -i CT -o OUTPUT --config-file a3d_7slice.yaml --weights model_best.pth
    a3d-predict -i CT --list

CT is a .nii or .nii.gz, a DICOM file, or a folder with these or with slices as 16-bit PNG, at any depth. OUTPUT gets
lesions.json, lesions.csv, lesions.nii.gz, lesions.mrk.json, pictures and viewer.html, with --dicom also a Segmentation
and a structured report for an archive; with several volumes a folder of these for each.
For research, not a medical device.
"""

import argparse
import hashlib
import logging
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from fvcore.common.config import CfgNode
from tabulate import tabulate

from .. import __version__
from ..files import printable
from ..model_zoo import find_config_file
from ..optional import detectron2_problem
from ..volumes import UnreadableVolume, list_volumes
from ..volumes.linking import LinkingRule
from ..volumes.reading import Source, choose
from ..volumes.writing import OUTPUTS, replacing_folder, write_results
from .config_check import Start, check_prediction
from .mistakes import Mistake, exit_on_mistakes, mistakes
from .prediction_options import add_output_options, add_prediction_options, check_output_options
from .predictor import LesionPredictor
from .quiet import hide_patient_names

if TYPE_CHECKING:  # it needs highdicom
    from ..volumes.dicom_results import DicomResults


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, metavar="CT", help="file or folder")
    parser.add_argument("-o", "--output", help="folder to write; one with results is replaced")
    parser.add_argument("--list", action="store_true", help="list the volumes in CT, and what cannot be used and why")
    parser.add_argument("--series", help="UID or name of the one volume to take")
    text = "of PNG slices: mm between columns, rows and slices (DL_info.csv above them)"
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help=text)
    add_prediction_options(parser)
    add_output_options(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE, changes of the config")
    args = parser.parse_args(argv)
    if not args.list and not (args.output and args.config_file):
        parser.error("expected --output and --config-file, or --list")
    given, output = (os.path.realpath(path or "") for path in (args.input, args.output))
    if args.output and os.path.commonpath([given, output]) == output:
        parser.error(f"expected an --output that does not hold the input {args.input}, got {args.output}")
    check_output_options(parser, args)
    if args.series == "":
        parser.error("expected a UID or name as --series, got none")
    return args


def main(argv: list[str] | None = None) -> None:
    """
    Args:
        argv: the command line without the program's name; None takes that of the process.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    hide_patient_names()
    with exit_on_mistakes():
        with mistakes(kinds=(OSError, ValueError, ImportError)):
            sources = list_volumes(args.input, args.spacing)
        if args.list:
            print(printable(volume_table(sources)) if sources else f"{args.input}: no volume")
            return
        with mistakes(kinds=(UnreadableVolume,)):
            chosen = choose(args.input, sources, args.series)
        predict(args, chosen)


def volume_table(sources: list[Source]) -> str:
    """The volumes that were found as text."""

    def row(number: int, one: Source) -> list[str]:
        size = " x ".join(map(str, one.size)) if one.size[0] else "-"
        spacing = " x ".join(f"{length:.3g}" for length in one.spacing) if one.spacing else "-"
        what = one.problem or "can be predicted"
        return [str(number), one.kind, one.name, str(one.slices), size, spacing, one.orientation, what, one.uid]

    header = ["", "", "name", "slices", "rows x columns", "mm (x, y, z)", "orientation", "", "UID"]
    rows = [row(number, one) for number, one in enumerate(sources, 1)]
    return tabulate(rows, header, disable_numparse=True, maxcolwidths=[None, None, 40, *[None] * 4, 60, None])


def predict(args: argparse.Namespace, sources: list[Source]) -> None:
    """Predict volumes one after the other, each into its own folder where there are several.

    Raises:
        Mistake: if the model cannot work, or a volume cannot be read or its results not be written; the others are
            predicted nevertheless.
    """
    if args.dicom and find_spec("highdicom") is None:
        raise Mistake("--dicom needs highdicom: pip install 'a3d_det2[dicom]'.")
    predictor, how = build_predictor(args)
    dicom = build_dicom(args, how)
    failures = []
    for number, source in enumerate(sources, 1):
        folder = args.output if len(sources) == 1 else os.path.join(args.output, f"volume_{number:02d}")
        print(printable(f"{source.kind} {source.name}, {source.slices} slices -> {folder}"), flush=True)
        try:
            with mistakes(kinds=(OSError, ValueError, MemoryError, RuntimeError)):
                predict_one(args, predictor, source, folder, how, dicom)
        except Mistake as error:
            if len(sources) == 1:
                raise
            failures.append(f"{source.name}: {error}")
            print(printable(f"  {error}"), file=sys.stderr, flush=True)
    if failures:
        raise Mistake("\n  ".join([f"{len(failures)} of {len(sources)} volumes failed.", *failures]))


def predict_one(
    args: argparse.Namespace,
    predictor: LesionPredictor,
    source: Source,
    folder: str,
    how: dict,
    dicom: "DicomResults | None",
) -> None:
    """Read, predict and write one volume.

    Raises:
        UnreadableVolume: if it cannot be read, shows no body, or nothing in DICOM can refer to it.
        OSError: if its results cannot be written.
    """
    with replacing_folder(folder) as part:
        volume = source.read()
        if dicom:
            dicom.check(volume)
        for note in volume.notes:
            print(f"  Note: {note}")
        lesions = predictor.predict(volume)
        write_results(
            part,
            volume,
            lesions,
            box_margin=predictor.margin(volume),
            how=how,
            outputs=[name for name in OUTPUTS if name not in args.without],
            keep_identifiers=args.keep_identifiers,
            dicom=dicom,
        )
    found = f"{len(lesions)} lesions" if len(lesions) != 1 else "1 lesion"
    print(f"  {found}; {os.path.join(folder, 'lesions.json')}", flush=True)
    if dicom and dicom.pseudonymous:
        print("  Note: an archive that has the CT under its patient must not get the DICOM files.", flush=True)
    if dicom and not any(lesion.score >= dicom.min_score for lesion in lesions):
        print("  Note: without a lesion there is neither a Segmentation nor a report.", flush=True)


def build_dicom(args: argparse.Namespace, how: dict) -> "DicomResults | None":
    """What writes the results in DICOM; None if that is not asked for."""
    if not args.dicom:
        return None
    from ..volumes.dicom_results import Algorithm, DicomResults

    parameters = {name: str(how[name]) for name in ("config", "weights_sha256", "engine", "dtype")}
    algorithm = Algorithm("a3d_det2", __version__, parameters)
    return DicomResults(algorithm, args.mint_uids, args.pseudonymous, args.dicom_score or 0.0)


def build_predictor(args: argparse.Namespace) -> tuple[LesionPredictor, dict]:
    """Build the predictor that a command line asks for, and describe it for lesions.json.

    Raises:
        Mistake: if config, weights or options cannot work.
    """
    problem = detectron2_problem()
    engine = args.engine or ("torchvision" if problem else "detectron2")
    if engine == "detectron2" and problem:
        raise Mistake(f"--engine detectron2: {problem}.")
    with mistakes("--config-file: "):
        config_file = find_config_file(args.config_file)
    cfg, rules = load_config(engine, config_file, args.opts)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    without_cuda = args.device is None and not torch.cuda.is_available()
    cfg.MODEL.DEVICE = "cpu" if without_cuda else args.device or cfg.MODEL.DEVICE
    cfg.freeze()
    check_prediction(cfg, Start(False, True, 1, 1, lambda name: [], *rules))
    print(f"Engine: {engine}, device: {cfg.MODEL.DEVICE}{' (there is no CUDA)' if without_cuda else ''}", flush=True)
    with mistakes():
        rule = LinkingRule(
            iou=args.link_iou,
            gap=args.gap,
            min_slices=args.min_slices,
            min_extent=args.min_extent,
            score=args.lesion_score,
            nms_iou=args.nms_iou,
        )
        predictor = LesionPredictor(
            cfg,
            device=cfg.MODEL.DEVICE,
            dtype=args.dtype,
            batch_size=args.batch_size,
            step=args.step,
            refine=args.refine,
            crop_to_body=not args.whole_slices,
            min_score=args.min_score,
            rule=rule,
            box_margin=args.box_margin,
        )
    how = {
        "software": f"a3d_det2 {__version__}",
        "engine": engine,
        "config": os.path.basename(config_file),
        "changes": ["(a path)" if os.sep in text else text for text in args.opts],
        "config_sha256": config_digest(cfg),
        "weights_sha256": predictor.weights_sha256,
        "dtype": args.dtype,
        "step_mm": args.step,
        "refine": args.refine,
        "whole_slices": args.whole_slices,
        "min_score": args.min_score,
        "box_margin_px": args.box_margin,
        "linking": asdict(rule),
    }
    return predictor, how


def config_digest(cfg: CfgNode) -> str:
    """SHA-256 of a config without what has no part in what a detector finds: where its files lie, and the device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = cfg.MODEL.DEVICE = ""
    cfg.TEST.ENSEMBLE = [""] * len(cfg.TEST.ENSEMBLE)
    cfg.DATASETS = cfg.DATALOADER = type(cfg)()
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def load_config(engine: str, config_file: str, opts: list[str]) -> tuple[CfgNode, tuple]:
    """The config of an engine, and the rules and checks that it adds to those of all."""
    if engine == "detectron2":
        from . import launching
        from .detectron2_rules import detectron2_checks, detectron2_rules

        return launching.load_config(config_file, opts), (detectron2_rules(), detectron2_checks)
    from . import torchvision_loop

    return torchvision_loop.load_config(config_file, opts), (
        torchvision_loop.RULES,
        torchvision_loop.torchvision_checks,
    )
