from ..checkpoint.formats import convert_published, fit_kernels, is_published, load_torchvision_densenet  # noqa: F401 - an old path
