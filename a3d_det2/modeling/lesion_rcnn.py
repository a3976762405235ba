from .meta_arch import LesionRCNN  # noqa: F401 - an old path
