from .meta_arch import LesionRetinaNet  # noqa: F401 - an old path
