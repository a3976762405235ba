"""Whether a config can work, before any data is read: the same for every engine."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain

import torch
import yaml
from fvcore.common.config import CfgNode

from ..files import is_url
from ..modeling.build import window_channels
from .config_rules import RULES, Allowed
from .ensemble import fusion_problem
from .mistakes import Mistake, mistakes

ANCHOR_GENERATORS = ("DefaultAnchorGenerator", "PublishedAnchorGenerator")  # made of SIZES and ASPECT_RATIOS


@dataclass(frozen=True)
class Start:
    """How an engine was started.

    Attributes:
        resume, eval_only: options of the command line.
        processes, processes_here: of the training, on all machines and on this one.
        dataset_files: name of a dataset -> the files and folders that it cannot do without.
        rules: of the engine, beside ``RULES``.
        checks: of the engine: config -> problems of several keys together, each a sentence.
    """

    resume: bool
    eval_only: bool
    processes: int
    processes_here: int
    dataset_files: Callable[[str], list[str]]
    rules: Mapping[str, Allowed] = field(default_factory=dict)
    checks: Callable[[CfgNode], Iterable[str]] = lambda cfg: ()


def merge_config(cfg: CfgNode, config_file: str, opts: list[str]) -> None:
    """Read a config file into a config, and then the changes of a command line. No Python object is made of what the
    file says, as ``!!python`` tags ask for, and a number stays one, where yacs takes None for anything.

    Args:
        cfg: changed in place, and frozen.
        config_file: a path.
        opts: KEY VALUE ...

    Raises:
        Mistake: if the file is no config, or there is no such key, or its value is of another type.
    """
    defaults = dict(leaves(cfg))
    kinds = AssertionError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError
    with mistakes(f"{config_file}: ", kinds):
        _check_bases(config_file)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except yaml.constructor.ConstructorError as error:  # of Detectron2's own RetinaNet configs as well
            raise ValueError(
                f"{error.problem}; no Python is run here, so write the value out {error.problem_mark}"
            ) from error
    keys = dict(leaves(cfg))
    for key in opts[::2]:
        if key not in keys:
            close = get_close_matches(key, keys, n=3)
            raise Mistake(f"There is no key {key!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""))
    with mistakes("", kinds):
        cfg.merge_from_list(opts)
    for key, value in leaves(cfg):
        default = defaults.get(key)
        if value is None and isinstance(default, (int, float, list, tuple)) and key != "SOLVER.WEIGHT_DECAY_NORM":
            raise Mistake(f"{key}: expected a value such as {default!r}, got None.")
    cfg.freeze()


def _check_bases(config_file: str) -> None:
    """
    Raises:
        ValueError: if the config, or one that it is based on, is based on a URL. Such a file could be written anywhere,
            as the cache that it goes to does not look at '..' in its path.
    """
    with open(config_file, encoding="utf-8") as f:
        content = yaml.load(f, yaml.BaseLoader)  # text alone, whatever the tags say
    bases = content.get("_BASE_", []) if isinstance(content, dict) else []
    for base in [bases] if isinstance(bases, str) else bases:
        if is_url(base):
            raise ValueError(f"expected a file as _BASE_, got {base!r}; download it first")
        _check_bases(os.path.join(os.path.dirname(config_file), os.path.expanduser(base)))


def check_config(cfg: CfgNode, start: Start) -> None:
    """
    Args:
        cfg: of either engine.

    Raises:
        Mistake: if a value cannot work; the message names the key, what is allowed and what came, a line for each.
    """
    together = chain(*(check(cfg, start) for check in CHECKS), start.checks(cfg))
    # Generators: each relies on those before it, and the last makes a folder.
    _raise_first(start, _values(cfg, start), together, _output(cfg))


def check_prediction(cfg: CfgNode, start: Start) -> None:
    """:func:`check_config` for a prediction, which needs neither datasets nor OUTPUT_DIR."""
    checks = _shapes, _anchors, _device, _weights, _ensemble
    together = chain(*(check(cfg, start) for check in checks), start.checks(cfg))
    _raise_first(start, _values(cfg, start), together)


def _values(cfg: CfgNode, start: Start) -> Iterator[str]:
    rules = {**RULES, **start.rules}
    for key, value in leaves(cfg):
        if key in rules and not rules[key].holds(value):
            yield f"{key}: expected {rules[key].words}, got {value!r}."


def _raise_first(start: Start, *stages: Iterable[str]) -> None:
    """Raise a :class:`Mistake` of the problems of the first stage that has some."""
    for problems in stages:
        # No evaluation looks at how a training would be done.
        found = [problem for problem in problems if not (start.eval_only and problem.startswith("SOLVER."))]
        if found:
            raise Mistake("\n  ".join(["The config cannot work.", *found]))


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Pairs such as ("SOLVER.MAX_ITER", 56200)."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shapes(cfg: CfgNode, start: Start) -> Iterator[str]:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        yield f"MODEL.PIXEL_STD: expected as many entries as MODEL.PIXEL_MEAN has, {len(mean)}, got {std!r}."
    if cfg.MODEL.BACKBONE.NAME.startswith("build_a3d") and not cfg.MODEL.FPN.IN_FEATURES:
        yield f"MODEL.FPN.IN_FEATURES: expected one output of the trunk or more, got {cfg.MODEL.FPN.IN_FEATURES!r}."
    try:
        window_channels(cfg)
    except ValueError as error:
        yield str(error)
    if cfg.INPUT.HU_WINDOWS and not cfg.MODEL.BACKBONE.NAME.startswith("build_a3d"):
        yield (
            "INPUT.HU_WINDOWS: expected none with a backbone that is not of the kind build_a3d_..., got them with "
            f"{cfg.MODEL.BACKBONE.NAME!r}."
        )
    box = cfg.MODEL.ROI_BOX_HEAD
    if box.NAME == "FastRCNNConvFCHead" and box.NUM_FC + box.get("NUM_CONV", 0) == 0:
        yield f"MODEL.ROI_BOX_HEAD.NUM_FC: expected a head of one layer or more, got {box.NUM_FC}."


def _anchors(cfg: CfgNode, start: Start) -> Iterator[str]:
    generator = cfg.MODEL.ANCHOR_GENERATOR.get("NAME", "DefaultAnchorGenerator")
    if not cfg.MODEL.META_ARCHITECTURE.endswith("RCNN") or generator not in ANCHOR_GENERATORS:
        return
    levels = len(cfg.MODEL.RPN.IN_FEATURES)
    counts = [1] * levels
    for key in ("SIZES", "ASPECT_RATIOS"):
        entries = cfg.MODEL.ANCHOR_GENERATOR[key]
        if len(entries) not in (1, levels):
            yield (
                f"MODEL.ANCHOR_GENERATOR.{key}: expected one entry, or one for each of the {levels} levels of "
                f"MODEL.RPN.IN_FEATURES, got {entries!r}."
            )
            return
        entries = entries * levels if len(entries) == 1 else entries
        counts = [count * len(entry) for count, entry in zip(counts, entries, strict=True)]
    if len(set(counts)) > 1:
        yield (
            "MODEL.ANCHOR_GENERATOR: expected SIZES and ASPECT_RATIOS that give all levels the same number of anchors, "
            f"got {counts}."
        )


def _augmentation(cfg: CfgNode, start: Start) -> Iterator[str]:
    if cfg.INPUT.AFFINE.ORDER == "first" and cfg.INPUT.HU_JITTER.PROB > 0:
        yield (
            "INPUT.HU_JITTER.PROB: expected 0 with INPUT.AFFINE.ORDER 'first', which windows the slices before all "
            f"else, got {cfg.INPUT.HU_JITTER.PROB!r}."
        )


def _batch(cfg: CfgNode, start: Start) -> Iterator[str]:
    count, share = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.get("REFERENCE_WORLD_SIZE") or max(start.processes, 1)
    if count % share:
        yield f"SOLVER.IMS_PER_BATCH: expected a multiple of the number of processes, {share}, got {count}."
    elif (count // share) % cfg.SOLVER.ACCUMULATION:
        yield (
            f"SOLVER.ACCUMULATION: expected a divisor of the images of a process, {count // share}, got "
            f"{cfg.SOLVER.ACCUMULATION}."
        )


def _device(cfg: CfgNode, start: Start) -> Iterator[str]:
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.zeros(1, device=device).cpu()  # which also fails on "meta", that has no values
        elif not torch.cuda.is_available():
            yield f"MODEL.DEVICE: expected 'cpu', as torch finds no CUDA here, got {name!r}."
        elif device.index is not None and start.processes > 1:
            yield f"MODEL.DEVICE: expected 'cuda' with {start.processes} processes, each on its own GPU, got {name!r}."
        elif (device.index or 0) >= torch.cuda.device_count():
            yield f"MODEL.DEVICE: expected one of the {torch.cuda.device_count()} GPUs, counted from 0, got {name!r}."
        elif start.processes_here > torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            yield f"Expected at most {gpus} processes on this machine, one for each GPU, got {start.processes_here}."
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        yield f"MODEL.DEVICE: expected a device of torch such as 'cuda' or 'cpu', got {name!r} ({why})."


def _datasets(cfg: CfgNode, start: Start) -> Iterator[str]:
    if not start.eval_only and not cfg.DATASETS.TRAIN:
        yield f"DATASETS.TRAIN: expected one dataset or more to train on, got {cfg.DATASETS.TRAIN!r}."
    if start.eval_only and not cfg.DATASETS.TEST:
        yield f"DATASETS.TEST: expected one dataset or more to evaluate, got {cfg.DATASETS.TEST!r}."
    for key in ("TEST",) if start.eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            try:
                missing = [path for path in start.dataset_files(name) if not os.path.exists(path)]
            except (KeyError, ValueError) as error:
                yield f"DATASETS.{key}: {error.args[0]}"
                continue
            if missing:
                yield (
                    f"DATASETS.{key}: expected {name!r} in $DETECTRON2_DATASETS, or else ./datasets; there is no "
                    f"{missing[0]}."
                )


def _mined(cfg: CfgNode, start: Start) -> Iterator[str]:
    path = cfg.DATASETS.MINED
    if path and not start.eval_only and not os.path.isfile(path):
        yield f"DATASETS.MINED: expected a file of tools/mine_lesions.py, or '' for none; there is no file {path!r}."


def _weights(cfg: CfgNode, start: Start) -> Iterator[str]:
    path = cfg.MODEL.WEIGHTS.partition("?")[0]
    goes_on = start.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if path and not is_url(path) and not goes_on and not os.path.isfile(path):
        yield f"MODEL.WEIGHTS: expected a URL or the path of a file, or '' for none; there is no file {path!r}."


def _ensemble(cfg: CfgNode, start: Start) -> Iterator[str]:
    if (cfg.TEST.VIEWS or cfg.TEST.ENSEMBLE) and (problem := fusion_problem()):
        yield problem
    for path in cfg.TEST.ENSEMBLE:
        if not is_url(path) and not os.path.isfile(path):
            yield f"TEST.ENSEMBLE: expected paths of checkpoints, or URLs; there is no file {path!r}."
    if cfg.TEST.ENSEMBLE and not start.eval_only:
        yield "TEST.ENSEMBLE: expected none in a training, as they would be of other ones; it is for --eval-only."


def _output(cfg: CfgNode) -> Iterator[str]:
    why = ""
    try:
        if is_url(cfg.OUTPUT_DIR):
            raise ValueError("results are written to files of this machine")
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        if os.access(cfg.OUTPUT_DIR, os.W_OK | os.X_OK):
            return
    except (OSError, ValueError) as error:
        why = f" ({error})"
    yield f"OUTPUT_DIR: expected a folder that can be written to, got {cfg.OUTPUT_DIR!r}{why}."


CHECKS = (_shapes, _anchors, _augmentation, _batch, _device, _datasets, _mined, _weights, _ensemble)
