"""Config -> trunk, for every engine: torch only."""

import logging
from collections.abc import Sequence

from torch import distributed

from .densenet import DenseNet3D
from .squeeze import SqueezedTrunk, StackedTrunk
from .windows import WindowChannels


def build_squeezed_densenet(
    cfg, out_features: Sequence[str] | None = None, squeezed: type[SqueezedTrunk] = SqueezedTrunk
) -> SqueezedTrunk:
    """
    Args:
        cfg: a config.
        out_features: see :class:`.SqueezedTrunk`, whose subclass ``squeezed`` may be; a :class:`.StackedTrunk` has a
            DenseNet that is 2D.

    Returns:
        DenseNet trunk and squeeze; the outputs are "dense1", "dense2", ..., or those of ``out_features``.

    Raises:
        ValueError: if NUM_SLICES is even, PIXEL_MEAN has not one entry, OPERATOR, NORM or CHECKPOINTING is unknown,
            THICKNESS_AWARE is set for another operator than a3d, both COMPILE and CHECKPOINTING are set, or HU_WINDOWS
            with a :class:`.StackedTrunk` or not within HU_WINDOW.
    """
    num_slices, windows = checked_num_slices(cfg), window_channels(cfg)
    is_2d = issubclass(squeezed, StackedTrunk)
    if cfg.MODEL.A3D.COMPILE and cfg.MODEL.A3D.CHECKPOINTING:
        raise ValueError(
            "Expected MODEL.A3D.COMPILE or MODEL.A3D.CHECKPOINTING, not both: torch.compile itself decides what to "
            f"keep for the backward. Got CHECKPOINTING {cfg.MODEL.A3D.CHECKPOINTING!r} with COMPILE True!"
        )
    if is_2d and windows:
        raise ValueError(
            "INPUT.HU_WINDOWS are channels of each slice; a network that has the slices as its channels takes none. "
            f"Got {cfg.INPUT.HU_WINDOWS!r}!"
        )
    trunk = DenseNet3D(
        "none" if is_2d else cfg.MODEL.A3D.OPERATOR,
        1 if is_2d else num_slices,
        block_config=cfg.MODEL.A3D.BLOCK_CONFIG,
        growth_rate=cfg.MODEL.A3D.GROWTH_RATE,
        num_init_features=cfg.MODEL.A3D.NUM_INIT_FEATURES,
        bn_size=cfg.MODEL.A3D.BN_SIZE,
        norm=_usable_norm(cfg),
        checkpointing=cfg.MODEL.A3D.CHECKPOINTING,
        in_channels=num_slices if is_2d else input_channels(cfg),
        **({} if is_2d else operator_options(cfg)),
    )
    if cfg.MODEL.A3D.COMPILE:
        trunk.compile()
    return squeezed(
        trunk,
        num_slices,
        trunk.out_channels,
        trunk.out_strides,
        out_features,
        squeeze_init=cfg.MODEL.A3D.SQUEEZE_INIT,
        windows=windows,
    )


def input_channels(cfg) -> int:
    """How many channels a slice has."""
    return len(cfg.INPUT.HU_WINDOWS) or 1


def window_channels(cfg) -> WindowChannels | None:
    """What makes these channels; None for the one that there is without HU_WINDOWS.

    Raises:
        ValueError: if a window is not within HU_WINDOW, or PIXEL_MEAN and PIXEL_STD change what the mapper gives.
    """
    if not cfg.INPUT.HU_WINDOWS:
        return None
    if (list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)) != ([0], [1]):
        raise ValueError(
            "Expected MODEL.PIXEL_MEAN [0.0] and PIXEL_STD [1.0] with INPUT.HU_WINDOWS, got "
            f"{cfg.MODEL.PIXEL_MEAN!r} and {cfg.MODEL.PIXEL_STD!r}."
        )
    return WindowChannels(cfg.INPUT.HU_WINDOWS, cfg.INPUT.HU_WINDOW)


def checked_num_slices(cfg) -> int:
    """
    Raises:
        ValueError: if NUM_SLICES is even, or PIXEL_MEAN has not one entry.
    """
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if channels != 1:
        raise ValueError(
            "MODEL.PIXEL_MEAN must have one entry, for the one grey channel; it is broadcast over the slices and "
            f"MODEL.A3D.NUM_SLICES says how many these are. Got {channels} entries instead!"
        )
    num_slices = cfg.MODEL.A3D.NUM_SLICES
    if num_slices < 1 or num_slices % 2 == 0:
        raise ValueError(
            f"MODEL.A3D.NUM_SLICES must be odd, so that the key slice is the middle one. Got {num_slices} instead!"
        )
    return num_slices


def operator_options(cfg) -> dict:
    """What the operator takes beyond the arguments of all.

    Raises:
        ValueError: if THICKNESS_AWARE is set for another operator than a3d.
    """
    op, thickness_aware = cfg.MODEL.A3D.OPERATOR, cfg.MODEL.A3D.THICKNESS_AWARE
    if thickness_aware and op != "a3d":
        raise ValueError(
            f"MODEL.A3D.THICKNESS_AWARE is an option of the operator a3d (alignshift always is). Got {op!r} instead!"
        )
    uses_thickness = thickness_aware or op == "alignshift"
    if uses_thickness != (cfg.INPUT.RESAMPLING in ("thin", "none")) and op != "a3d":
        logging.getLogger(__name__).warning(
            f"MODEL.A3D.OPERATOR is {op!r} and INPUT.RESAMPLING {cfg.INPUT.RESAMPLING!r}. The published setup has "
            '"thin" for alignshift, which interpolates between thick slices itself, and "linear" for all others.'
        )
    # Slices closer than SLICE_INTERVAL are resampled to it: up to there nothing has to adapt.
    reference = {"reference_thickness": cfg.MODEL.A3D.REFERENCE_THICKNESS or cfg.INPUT.SLICE_INTERVAL}
    shift = {"n_fold": cfg.MODEL.A3D.N_FOLD} | ({"ends": cfg.MODEL.A3D.ENDS} if cfg.MODEL.A3D.ENDS else {})
    return {
        "tsm": shift,
        "alignshift": reference | shift,
        "a3d": {"thickness_aware": True, **reference} if thickness_aware else {},
    }.get(op, {})


def _usable_norm(cfg) -> str:
    norm = cfg.MODEL.A3D.NORM
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    if norm == "SyncBN" and (not cfg.MODEL.DEVICE.startswith("cuda") or processes == 1):
        logging.getLogger(__name__).warning(
            f"MODEL.A3D.NORM is SyncBN, which needs CUDA and several processes; using BN on {cfg.MODEL.DEVICE} with "
            f"{processes} process(es)."
        )
        return "BN"
    return norm
