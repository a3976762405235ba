from importlib import import_module

import torch
from fvcore.common.config import CfgNode

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode, device_type: str) -> torch.dtype:
    """Look up SOLVER.AMP.DTYPE, where "" is torch's own dtype on the device.

    Raises:
        ValueError: if it is unknown.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if not name:
        return torch.get_autocast_dtype(device_type)
    if name not in AMP_DTYPES:
        raise ValueError(
            f"Unknown SOLVER.AMP.DTYPE {name!r}. Choose one of {', '.join(AMP_DTYPES)}, or '' for torch's own."
        )
    return AMP_DTYPES[name]


def clips_full_model(cfg: CfgNode) -> bool:
    """Whether the norm of the gradients over all parameters is clipped; CLIP_TYPE "full_model" asks for it as well."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.ENABLED and (clip.CLIP_TYPE == "full_model" or (clip.CLIP_TYPE == "norm" and clip.FULL_MODEL))


def ignored_problem(cfg: CfgNode) -> str:
    """Why the detector of one of Detectron2's configs cannot be trained with DATASETS.MINED; "" if it can."""
    heads = cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.META_ARCHITECTURE == "LesionRetinaNet" or heads == ("LesionRPN", "StandardROIHeads"):
        return ""
    return (
        "DATASETS.MINED: expected MODEL.PROPOSAL_GENERATOR.NAME 'LesionRPN' with MODEL.ROI_HEADS.NAME "
        "'StandardROIHeads', or a LesionRetinaNet, as others know no lesions that are ignored; got "
        f"{heads[0]!r} with {heads[1]!r}."
    )


def loader_timeout(cfg: CfgNode) -> float:
    """The timeout of a data loader in seconds: DATALOADER.TIMEOUT, or 0, the only one that it takes without workers."""
    return cfg.DATALOADER.TIMEOUT if cfg.DATALOADER.NUM_WORKERS > 0 else 0


def add_a3d_config(cfg: CfgNode) -> None:
    """Add the keys of a3d_det2, with their defaults, to a config: fvcore's or Detectron2's.

    With one of Detectron2's, backbones, architectures, mask head and datasets are registered as well.
    """
    _C = cfg
    CN = type(cfg)  # Detectron2's, which does not merge with its base class
    if CN.__module__.startswith("detectron2."):
        import_module(f"{__package__}.registration").register_all_deeplesion()

    for name in ("DATASETS", "TEST"):  # which a config of fvcore may lack
        if name not in _C:
            _C[name] = CN()

    _C.MODEL.A3D = CN()
    # Fusion operator in the trunk's dense layers: a key of a3d_det2.layers.FUSION_CONVS.
    _C.MODEL.A3D.OPERATOR = "a3d"
    # For the operator a3d: thick slices mix less; alignshift always adapts to the slice thickness, the others never do.
    _C.MODEL.A3D.THICKNESS_AWARE = False
    # For tsm and alignshift: of the input channels 1 / N_FOLD take the slice after, and as many the slice before.
    _C.MODEL.A3D.N_FOLD = 8
    # For tsm and alignshift, what comes from beyond the end slices: "zero", "keep" for the end slice itself, or "" for
    # what is published: "zero" with tsm, "keep" with alignshift.
    _C.MODEL.A3D.ENDS = ""
    # For operators that adapt to the slice thickness: the thickness in mm up to which they fuse as if they did not; 0
    # is INPUT.SLICE_INTERVAL.
    _C.MODEL.A3D.REFERENCE_THICKNESS = 0.0
    # How the D x 1 x 1 squeeze starts: "default" as torch's convolutions do, or "kaiming_normal", 2.4 times as wide, as
    # in the published a3d and alignshift.
    _C.MODEL.A3D.SQUEEZE_INIT = "default"
    # D, the number of slices a sample has; odd, the key slice is the middle one. No other key says D.
    _C.MODEL.A3D.NUM_SLICES = 3
    # Shape of the DenseNet trunk; the default is DenseNet-121 without its last block.
    _C.MODEL.A3D.BLOCK_CONFIG = [6, 12, 24]
    _C.MODEL.A3D.GROWTH_RATE = 32
    _C.MODEL.A3D.NUM_INIT_FEATURES = 64
    _C.MODEL.A3D.BN_SIZE = 4
    # Norm of the DenseNet trunk (a ResNet has MODEL.RESNETS.NORM): "BN" or "SyncBN". SyncBN needs CUDA and several
    # processes; elsewhere BN is used instead, and the log says so.
    _C.MODEL.A3D.NORM = "SyncBN"
    # How the three input channels of ImageNet's first conv become the grey one: "middle" (published) or "sum" (exact).
    _C.MODEL.A3D.STEM_WEIGHTS = "middle"

    # What the DenseNet blocks keep for the backward: "" everything; "layer" what each layer adds and "block" their
    # inputs only, which spares memory and computes the rest once more.
    _C.MODEL.A3D.CHECKPOINTING = ""
    # Let torch.compile compile the DenseNet trunk, which takes minutes at the first images and, for new sizes, again.
    _C.MODEL.A3D.COMPILE = False

    # With SOLVER.CLIP_GRADIENTS.ENABLED and CLIP_TYPE "norm": clip the norm over all parameters at CLIP_VALUE, as
    # published, instead of that of each parameter by itself, which is what Detectron2's own trainers do.
    _C.SOLVER.CLIP_GRADIENTS.FULL_MODEL = False
    # With SOLVER.AMP.ENABLED: "float16", "bfloat16", which needs no scaling of the loss, or "" for torch's default,
    # float16 on CUDA and bfloat16 on the CPU.
    _C.SOLVER.AMP.DTYPE = ""

    # Do the batch of a process in so many parts, one after the other: with the memory of one part and the gradients of
    # all of it. Batch norm sees a part as its batch.
    _C.SOLVER.ACCUMULATION = 1
    # Above 0: the weights are also averaged, in each iteration EMA_DECAY of the average and the rest of the new ones.
    # The average is tested and saved beside the weights, in OUTPUT_DIR/ema.
    _C.SOLVER.EMA_DECAY = 0.0

    # Distance in mm between the slices the model sees; series are resampled to it.
    _C.INPUT.SLICE_INTERVAL = 2.0
    # "linear" resamples every series; "thin" only those with slices closer than SLICE_INTERVAL, and leaves the rest to
    # an operator that adapts to the slice thickness; "none" takes the neighbours as they are; "published" repeats the
    # uneven spacing of the code published with the paper, for comparisons.
    _C.INPUT.RESAMPLING = "linear"
    # What training does where a key slice is unreadable: "error" stops with the name of the file, "skip" takes another
    # sample and logs how many were skipped. A test always stops; a damaged neighbour never does, it is replaced.
    _C.INPUT.UNREADABLE_KEY_SLICE = "error"
    # HU range mapped linearly to [-50, 205]; values outside are clipped.
    _C.INPUT.HU_WINDOW = (-1024.0, 2050.0)
    # Windows, [low, high] in HU, within HU_WINDOW, that the network gets of each slice as channels, mapped alike. Three
    # take the place of the colours, so that all of ImageNet's first layer is used. Empty: one channel, HU_WINDOW.
    _C.INPUT.HU_WINDOWS = []
    # Joint random shift, scale and rotation about the image centre, in training.
    _C.INPUT.AFFINE = CN()
    # Probability that a sample is transformed at all.
    _C.INPUT.AFFINE.PROB = 0.8
    # Largest shift along x and y, as a fraction of width and height.
    _C.INPUT.AFFINE.SHIFT = 0.04
    # Largest deviation of the scale from 1.
    _C.INPUT.AFFINE.SCALE = 0.2
    # Largest rotation, in degrees.
    _C.INPUT.AFFINE.ROTATION = 15.0
    # How pixels between pixels are made: "bilinear" (of masks the nearest one is taken), or "bicubic", masks as well.
    _C.INPUT.AFFINE.INTERPOLATION = "bilinear"
    # What comes from outside of the image: "constant", air, or "reflect" for its mirror image, in which lesions are not
    # marked.
    _C.INPUT.AFFINE.BORDER = "constant"
    # The box of a lesion that was turned: "recist" is made anew of its RECIST points, as DeepLesion made it; "corners"
    # encloses the turned corners of the old one, which makes it larger.
    _C.INPUT.AFFINE.BOXES = "recist"
    # "last": of slices in HU that are resized and flipped; "first": of slices that are windowed, and then resized and
    # flipped.
    _C.INPUT.AFFINE.ORDER = "last"

    # Random gain and offset of the HU values, in training.
    _C.INPUT.HU_JITTER = CN()
    # Probability that a sample is transformed at all.
    _C.INPUT.HU_JITTER.PROB = 0.0
    # Largest offset, in HU.
    _C.INPUT.HU_JITTER.OFFSET = 20.0
    # Largest deviation of the gain from 1.
    _C.INPUT.HU_JITTER.GAIN = 0.05

    # In a test: views that are looked at beside the slices as they are, such as "hflip", "x1.25", "hflip+x0.8";
    # and checkpoints beside MODEL.WEIGHTS. What is found in all of them is merged by weighted box fusion.
    _C.TEST.VIEWS = []
    _C.TEST.ENSEMBLE = []

    # Lesions that nobody has annotated, found by a model: a file that tools/mine_lesions.py has written for the key
    # slices of DATASETS.TRAIN, or "" for none. With MINED_WEIGHT 0 a detector learns neither to find them nor not to;
    # above 0 they are lesions with this weight, on average: in so many of the samples, and ignored in the others.
    _C.DATASETS.MINED = ""
    _C.DATASETS.MINED_WEIGHT = 0.0

    # Seconds after which a data loader that has got nothing from its workers stops with an error, rather than waiting
    # for a disk for ever; 0 waits for ever. Only with NUM_WORKERS above 0.
    _C.DATALOADER.TIMEOUT = 600
    # Seconds that a process of a training waits for the others, such as on a network that is gone; then all end.
    _C.SOLVER.PROCESS_TIMEOUT = 1800
