from ..checkpoint.formats import convert_published, load_torchvision_densenet  # noqa: F401 - an old path
