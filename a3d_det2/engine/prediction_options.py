"""The options of all commands that predict volumes. It imports no torch, as who only starts others needs none."""

import argparse

from ..data.recist import BOX_MARGIN
from ..volumes.linking import SCORES, LinkingRule
from ..volumes.writing import OUTPUTS
from .command import ENGINES

DTYPES = ("float32", "float16", "bfloat16")


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of model and lesions."""
    model = parser.add_argument_group("model")
    model.add_argument("--config-file", help="file, or name of a config of the package")
    model.add_argument("--weights", help="checkpoint of a trained detector (MODEL.WEIGHTS)")
    model.add_argument("--engine", choices=ENGINES, help="that trained it (Detectron2 where it is installed)")
    model.add_argument("--device", help="cpu, cuda, ... (MODEL.DEVICE, or the CPU where there is no CUDA)")
    model.add_argument("--dtype", choices=DTYPES, default="float32", help="of autocast (%(default)s)")
    model.add_argument("--batch-size", type=int, help="key slices at once (1 on the CPU, else 8)")
    model.add_argument("--step", type=float, default=0.0, help="mm between key slices (0: every slice)")
    model.add_argument("--refine", action="store_true", help="with --step: then every slice around what was found")
    model.add_argument("--whole-slices", action="store_true", help="do not leave out the air around the body")
    defaults = LinkingRule()
    link = parser.add_argument_group("lesions; docs/volumes.md says where the defaults come from")
    link.add_argument("--min-score", type=float, default=0.1, help="of detections that are linked (%(default)s)")
    link.add_argument("--link-iou", type=float, default=defaults.iou, help="of boxes in plane (%(default)s)")
    link.add_argument("--gap", type=float, help="mm without a detection within a lesion (one slice, or 2)")
    link.add_argument("--min-slices", type=int, default=defaults.min_slices, help="of a lesion (%(default)s)")
    link.add_argument("--min-extent", type=float, default=defaults.min_extent, help="mm (%(default)s)")
    link.add_argument(
        "--lesion-score", choices=SCORES, default=defaults.score, help="from those of slices (%(default)s)"
    )
    link.add_argument("--nms-iou", type=float, default=defaults.nms_iou, help="of lesions, in 3D (%(default)s)")
    text = "pixels between a lesion and its box in the training data (%(default)s)"
    link.add_argument("--box-margin", type=float, default=BOX_MARGIN, help=text)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is written of a volume."""
    out = parser.add_argument_group("output")
    text = f"of {','.join(OUTPUTS)}, those to leave out, separated by commas"
    out.add_argument("--without", type=output_names, default=[], metavar="NAMES", help=text)
    out.add_argument("--keep-identifiers", action="store_true", help="write whose CT it is into lesions.json")
    dicom = parser.add_argument_group("DICOM, for archives and their viewers; needs the extra [dicom]")
    text = "write a Segmentation and a structured report, with the patient and study of the CT, into OUTPUT/dicom"
    dicom.add_argument("--dicom", action="store_true", help=text)
    text = "where they cannot refer to the CT (no DICOM, or without UIDs), write it as DICOM with new UIDs beside them"
    dicom.add_argument("--mint-uids", action="store_true", help=text)
    text = "leave out all of patient and study but UIDs"
    dicom.add_argument("--pseudonymous", action="store_true", help=text)
    dicom.add_argument("--dicom-score", type=float, metavar="SCORE", help="of lesions that are written (all)")


def check_output_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the process where options of :func:`add_output_options` do not go together."""
    if not args.dicom and (args.mint_uids or args.pseudonymous or args.dicom_score is not None):
        parser.error("expected --dicom with --mint-uids, --pseudonymous and --dicom-score")
    if args.dicom_score is not None and not 0 <= args.dicom_score <= 1:
        parser.error(f"expected a --dicom-score from 0 to 1, got {args.dicom_score}")


def output_names(text: str) -> list[str]:
    """A type for argparse: names of outputs, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise argparse.ArgumentTypeError(f"expected of {', '.join(OUTPUTS)}, got {', '.join(unknown)}")
    return names
