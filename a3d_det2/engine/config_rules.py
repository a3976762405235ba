"""What the values of a config's keys may be, each by itself, in every engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..config import AMP_DTYPES
from ..data.sample import BOXES
from ..data.slices import RESAMPLING
from ..data.transforms import BORDERS, INTERPOLATIONS
from ..layers import FUSION_CONVS
from ..layers.convert import STEM_WEIGHTS
from ..layers.shift import ENDS
from ..modeling.densenet import CHECKPOINTS, NORMS
from ..modeling.squeeze import SQUEEZE_INITS
from .views import View


@dataclass(frozen=True)
class Allowed:
    """Values of a key.

    Attributes:
        words: that follow "expected".
        holds: whether a value is one of them.
    """

    words: str
    holds: Callable[[object], bool]


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Allowed:
    """A finite number from ``low`` to ``high``; with ``above`` and ``below`` neither of them."""

    def holds(value) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    words = f"a number {'above' if above else 'from'} {low:g}"
    if high < math.inf:
        return Allowed(f"{words} to {'below ' if below else ''}{high:g}", holds)
    return Allowed(words if above else f"{words} on", holds)


def whole(low: int, high: float = math.inf) -> Allowed:
    words = f"a whole number from {low} " + ("on" if high == math.inf else f"to {high}")
    return Allowed(words, lambda value: type(value) is int and low <= value <= high)


def one_of(*choices: str) -> Allowed:
    return Allowed(f"one of {', '.join(map(repr, choices))}", lambda value: type(value) is str and value in choices)


def several(entry: Allowed, *, least: int = 1) -> Allowed:
    """A list or tuple."""

    def holds(value) -> bool:
        return isinstance(value, (list, tuple)) and len(value) >= least and all(map(entry.holds, value))

    return Allowed(f"{'one entry or more, each' if least else 'a list whose entries are each'} {entry.words}", holds)


ANY_NUMBER = Allowed("a number", number(-math.inf).holds)
COUNT = whole(1)
FRACTION = number(0, 1, below=True)
NAME = Allowed("a name", lambda value: isinstance(value, str) and value != "")


def _is_view(value) -> bool:
    try:
        return isinstance(value, str) and bool(View.named(value))
    except ValueError:
        return False


VIEW = Allowed("a view such as 'hflip', 'vflip', 'x1.25' (0.1 to 10) or 'hflip+x0.8'", _is_view)
POOLER = one_of("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated")
POSITIVE = number(0, above=True)
PROBABILITY = number(0, 1)
WINDOW = Allowed(
    "two numbers, the lower one first",
    lambda value: several(ANY_NUMBER).holds(value) and len(value) == 2 and value[0] < value[1],
)
SIDE = whole(0, 32767)  # px; 0 keeps the size, and OpenCV warps nothing larger

RULES = {
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.TIMEOUT": number(0),
    "SOLVER.PROCESS_TIMEOUT": number(0, 1e6, above=True),
    "DATASETS.MINED_WEIGHT": PROBABILITY,
    "DATASETS.TEST": several(NAME, least=0),
    "DATASETS.TRAIN": several(NAME, least=0),
    "INPUT.AFFINE.BORDER": one_of(*BORDERS),
    "INPUT.AFFINE.BOXES": one_of(*BOXES),
    "INPUT.AFFINE.INTERPOLATION": one_of(*INTERPOLATIONS),
    "INPUT.AFFINE.ORDER": one_of("first", "last"),
    "INPUT.AFFINE.PROB": PROBABILITY,
    "INPUT.AFFINE.ROTATION": number(0, 180),
    "INPUT.AFFINE.SCALE": FRACTION,
    "INPUT.AFFINE.SHIFT": PROBABILITY,
    "INPUT.HU_JITTER.GAIN": FRACTION,
    "INPUT.HU_JITTER.OFFSET": number(0),
    "INPUT.HU_JITTER.PROB": PROBABILITY,
    "INPUT.HU_WINDOW": WINDOW,
    "INPUT.HU_WINDOWS": several(WINDOW, least=0),
    "INPUT.MASK_FORMAT": one_of("bitmask", "polygon"),
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": SIDE,
    "INPUT.MIN_SIZE_TRAIN": several(SIDE),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.RESAMPLING": one_of(*RESAMPLING),
    "INPUT.SLICE_INTERVAL": POSITIVE,
    "INPUT.UNREADABLE_KEY_SLICE": one_of("error", "skip"),
    "MODEL.A3D.BLOCK_CONFIG": several(COUNT),
    "MODEL.A3D.BN_SIZE": COUNT,
    "MODEL.A3D.CHECKPOINTING": one_of(*CHECKPOINTS),
    "MODEL.A3D.ENDS": one_of(*ENDS, ""),
    "MODEL.A3D.GROWTH_RATE": COUNT,
    "MODEL.A3D.N_FOLD": whole(2),
    "MODEL.A3D.NORM": one_of(*NORMS),
    "MODEL.A3D.NUM_INIT_FEATURES": COUNT,
    "MODEL.A3D.NUM_SLICES": Allowed(
        "an odd number, so that the key slice is the middle one", lambda value: COUNT.holds(value) and value % 2 == 1
    ),
    "MODEL.A3D.OPERATOR": one_of(*FUSION_CONVS),
    "MODEL.A3D.REFERENCE_THICKNESS": number(0),
    "MODEL.A3D.SQUEEZE_INIT": one_of(*SQUEEZE_INITS),
    "MODEL.A3D.STEM_WEIGHTS": one_of(*STEM_WEIGHTS),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": several(several(POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": FRACTION,
    "MODEL.ANCHOR_GENERATOR.SIZES": several(several(POSITIVE)),
    "MODEL.FPN.IN_FEATURES": several(NAME, least=0),
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.BACKBONE.NAME": NAME,
    "MODEL.META_ARCHITECTURE": NAME,
    "MODEL.LOAD_PROPOSALS": Allowed("False, as samples of slices have no proposals", lambda value: value is False),
    "MODEL.PIXEL_MEAN": several(ANY_NUMBER),
    "MODEL.PIXEL_STD": several(POSITIVE),
    "MODEL.DEVICE": NAME,
    "MODEL.RETINANET.NUM_CLASSES": COUNT,
    "MODEL.ROI_BOX_HEAD.FC_DIM": COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_FC": whole(0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": whole(0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": POOLER,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": number(0),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.ROI_HEADS.IN_FEATURES": several(NAME),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_HEADS.NUM_CLASSES": COUNT,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": COUNT,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": whole(0),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": whole(0),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": POOLER,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.RPN.IN_FEATURES": several(NAME),
    "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.SMOOTH_L1_BETA": number(0),
    "MODEL.WEIGHTS": Allowed("a URL, the path of a file, or '' for none", lambda value: isinstance(value, str)),
    "OUTPUT_DIR": NAME,
    "SEED": Allowed(
        "a whole number from 0 to 2147483647, or -1 for another seed each time", whole(-1, 2**31 - 1).holds
    ),
    "SOLVER.ACCUMULATION": COUNT,
    "SOLVER.AMP.DTYPE": one_of(*AMP_DTYPES, ""),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("norm", "value", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.EMA_DECAY": FRACTION,
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.MOMENTUM": FRACTION,
    "SOLVER.STEPS": Allowed(
        "whole numbers above 0, each larger than the one before",
        lambda value: several(COUNT, least=0).holds(value) and list(value) == sorted(set(value)),
    ),
    "SOLVER.WARMUP_FACTOR": PROBABILITY,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WEIGHT_DECAY": number(0),
    "SOLVER.WEIGHT_DECAY_NORM": Allowed(
        "a number from 0 on, or None", lambda value: value is None or number(0).holds(value)
    ),
    "TEST.DETECTIONS_PER_IMAGE": COUNT,
    "TEST.ENSEMBLE": several(NAME, least=0),
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.VIEWS": several(VIEW, least=0),
}
