"""What Detectron2's own keys may be, beside :mod:`.config_rules`, and what it cannot do on this machine."""

from collections.abc import Iterator

from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry

from ..config import ignored_problem
from .config_rules import ANY_NUMBER, POSITIVE, PROBABILITY, Allowed, number, one_of, several, whole


def registered(registry: Registry, *others: str) -> Allowed:
    """A name of a registry, or one of ``others``."""
    names = ", ".join(repr(name) for name, _ in registry)
    return Allowed(f"a name that is registered, one of {names}", lambda value: value in registry or value in others)


BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
BOX_WEIGHTS = Allowed(  # of boxes, and of boxes with an angle
    "four or five numbers above 0", lambda value: several(POSITIVE).holds(value) and len(value) in (4, 5)
)
LABELS = Allowed(
    "a list of -1, 0 and 1, one more than there are IOU_THRESHOLDS",
    lambda value: isinstance(value, (list, tuple)) and all(type(label) is int and -1 <= label <= 1 for label in value),
)
THRESHOLDS = Allowed(
    "numbers above 0, in order", lambda value: several(POSITIVE).holds(value) and list(value) == sorted(value)
)
WIDTHS = Allowed(
    "one entry or more, each -1 or a whole number from 1 on",
    lambda value: several(whole(-1)).holds(value) and 0 not in value,
)


def _is_norm(value) -> bool:
    try:
        get_norm(value, 32)
    except KeyError:
        return False
    return True


def _is_expected_result(entry) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        return False
    return all(isinstance(name, str) for name in entry[:2]) and all(map(ANY_NUMBER.holds, entry[2:]))


def detectron2_rules() -> dict[str, Allowed]:
    """Key -> its values. Made when it is asked for, so that what a project has registered is known."""
    return {
        "DATALOADER.SAMPLER_TRAIN": one_of(
            "TrainingSampler",
            "RepeatFactorTrainingSampler",
            "RandomSubsetTrainingSampler",
            "WeightedTrainingSampler",
            "WeightedCategoryTrainingSampler",
        ),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
        "MODEL.ANCHOR_GENERATOR.NAME": registered(ANCHOR_GENERATOR_REGISTRY),
        "MODEL.BACKBONE.NAME": registered(BACKBONE_REGISTRY),
        "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
        "MODEL.FPN.NORM": Allowed("a norm of Detectron2 such as 'BN' or 'GN', or ''", _is_norm),
        "MODEL.META_ARCHITECTURE": registered(META_ARCH_REGISTRY),
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": number(0),
        "MODEL.PROPOSAL_GENERATOR.NAME": registered(PROPOSAL_GENERATOR_REGISTRY),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": BOX_LOSS,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": BOX_WEIGHTS,
        "MODEL.ROI_BOX_HEAD.NAME": registered(ROI_BOX_HEAD_REGISTRY, ""),  # without one, as Res5ROIHeads
        "MODEL.ROI_BOX_HEAD.NUM_CONV": whole(0),
        "MODEL.ROI_HEADS.IOU_LABELS": LABELS,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": THRESHOLDS,
        "MODEL.ROI_HEADS.NAME": registered(ROI_HEADS_REGISTRY),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": PROBABILITY,
        "MODEL.ROI_MASK_HEAD.NAME": registered(ROI_MASK_HEAD_REGISTRY),
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": BOX_LOSS,
        "MODEL.RPN.BBOX_REG_WEIGHTS": BOX_WEIGHTS,
        "MODEL.RPN.CONV_DIMS": WIDTHS,
        "MODEL.RPN.HEAD_NAME": registered(RPN_HEAD_REGISTRY),
        "MODEL.RPN.IOU_LABELS": LABELS,
        "MODEL.RPN.IOU_THRESHOLDS": THRESHOLDS,
        "MODEL.RPN.POSITIVE_FRACTION": PROBABILITY,
        "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
        "SOLVER.REFERENCE_WORLD_SIZE": whole(0),
        "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
        "TEST.DETECTIONS_PER_IMAGE": Allowed(
            "a whole number from 1 on, or -1 for all", lambda value: whole(-1).holds(value) and value != 0
        ),
        "TEST.EXPECTED_RESULTS": Allowed(
            "a list of [task, metric, value, tolerance]", lambda value: all(map(_is_expected_result, value))
        ),
    }


def detectron2_checks(cfg: CfgNode) -> Iterator[str]:
    """Problems of several keys together, each a sentence."""
    for part in ("ROI_HEADS", "RPN"):
        labels, thresholds = cfg.MODEL[part].IOU_LABELS, cfg.MODEL[part].IOU_THRESHOLDS
        if len(labels) != len(thresholds) + 1:
            wanted = len(thresholds) + 1
            yield f"MODEL.{part}.IOU_LABELS: expected {wanted}, for IOU_THRESHOLDS {thresholds!r}, got {labels!r}."
    if cfg.DATASETS.MINED and (problem := ignored_problem(cfg)):
        yield problem
    means, slices = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.A3D.NUM_SLICES
    is_2d = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME).__module__.startswith("detectron2.")
    if is_2d and len(means) != slices:
        yield (
            f"MODEL.PIXEL_MEAN: expected {slices} entries, as {cfg.MODEL.BACKBONE.NAME} is 2D and has the slices "
            f"(MODEL.A3D.NUM_SLICES) as its channels, got {means!r}."
        )
    sizes, steps = cfg.INPUT.MIN_SIZE_TRAIN, [step for step in cfg.SOLVER.STEPS if step <= cfg.SOLVER.MAX_ITER]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        yield f"INPUT.MIN_SIZE_TRAIN: expected two sizes, for INPUT.MIN_SIZE_TRAIN_SAMPLING 'range', got {sizes!r}."
    if len(steps) >= cfg.SOLVER.MAX_ITER:
        yield f"SOLVER.STEPS: expected fewer steps than the {cfg.SOLVER.MAX_ITER} iterations, got {cfg.SOLVER.STEPS!r}."
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        yield f"SOLVER.AMP.ENABLED: expected False on {cfg.MODEL.DEVICE!r}, as Detectron2 has AMP for CUDA, got True."
