"""Detectron2, without which most of the package works: whether it is there, and what is wrong where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def detectron2_problem() -> str | None:
    """Why Detectron2 cannot be imported, as far as this can be told without importing it; None if nothing speaks
    against it."""
    spec = find_spec("detectron2")
    if spec is None:
        return "it is not installed. README.md, section Install, says how to get it"
    if spec.origin is None:  # of a folder that Python takes for a namespace package
        folder = next(iter(spec.submodule_search_locations))
        return f"it is not installed, and the folder {folder} is not it. README.md, section Install, says how to get it"
    return None


@contextmanager
def needs_detectron2(what: str) -> Iterator[None]:
    """Let an import within it that fails say that Detectron2 is needed, and what is wrong with it.

    Args:
        what: is imported.

    Raises:
        ImportError: instead of whatever was raised.
    """
    try:
        yield
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # of a torchvision of another torch, for one
        problem = detectron2_problem() or f"it, or what it needs, cannot be imported ({type(error).__name__}: {error})"
        raise ImportError(f"{what} needs Detectron2: {problem}.") from error
