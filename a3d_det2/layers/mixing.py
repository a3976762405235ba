from ..kernels.mixing import mix_slices, plain_mixing  # noqa: F401 - an old path
