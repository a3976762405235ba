"""The configs of this package by name, as ``detectron2.model_zoo`` has Detectron2's.

from a3d_det2 import model_zoo
cfg = model_zoo.get_config("a3d_7slice.yaml")
"""

from pathlib import Path

from .optional import needs_detectron2

_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")  # installed; in a checkout


def get_config_file(name: str) -> str:
    """
    Args:
        name: of a config below ``configs/``, such as "a3d_7slice.yaml" or "quick/a3d_7slice.yaml".

    Returns:
        its path.

    Raises:
        ValueError: if there is none of that name; the message lists the choices.
    """
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    choices = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    if name not in choices:
        raise ValueError(f"Unknown config {name!r}. Choose one of {', '.join(choices)}.")
    return str(folder / name)


def find_config_file(path_or_name: str) -> str:
    """Find a config: a file as it is, and otherwise the one of that name, see :func:`get_config_file`.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if Path(path_or_name).is_file():
        return path_or_name
    try:
        return get_config_file(path_or_name)
    except ValueError as error:
        raise FileNotFoundError(f"There is no file {path_or_name!r}. {error}") from None


def get_config(name: str, trained: bool = False):
    """
    Args:
        name: see :func:`get_config_file`.
        trained: must be False.

    Returns:
        Detectron2's config, with MODEL.WEIGHTS as the config file has them: what a training starts from.

    Raises:
        ValueError: if there is no such config, or trained weights are asked for, which nobody has published for this
            package.
        ImportError: without Detectron2.
    """
    if trained:
        raise ValueError(
            f"There are no trained weights for {name} yet: expected trained=False, for the weights that a training "
            "starts from. docs/published_checkpoints.md says how the models of the paper's authors are loaded."
        )
    with needs_detectron2("a3d_det2.model_zoo.get_config"):
        from detectron2.config import get_cfg

        from .config import add_a3d_config
    cfg = get_cfg()
    add_a3d_config(cfg)
    cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    return cfg


def get(name: str, trained: bool = False, device: str | None = None):
    """Build the model of a config and load what its training starts from, MODEL.WEIGHTS, which may download a file.

    Args:
        name, trained: see :func:`get_config`.
        device: None is the config's, or the CPU where there is no CUDA.

    Returns:
        the model, in training mode.

    Raises:
        ValueError, ImportError: see :func:`get_config`.
    """
    cfg = get_config(name, trained)
    import torch
    from detectron2.modeling import build_model

    from .checkpoint.detectron2 import LesionCheckpointer

    if device or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = device or "cpu"
    model = build_model(cfg)
    LesionCheckpointer(model, stem_weights=cfg.MODEL.A3D.STEM_WEIGHTS).load(cfg.MODEL.WEIGHTS)
    return model
