"""What pyproject.toml cannot say: the compiled kernel, where the configs lie, and which OpenCV serves."""

import platform
from importlib.metadata import PackageNotFoundError, version

from setuptools import Extension, find_packages, setup

# The CPU kernel of the mixing step, once per instruction set that torch.backends.cpu.get_cpu_capability() may name. It
# is a plain library for ctypes, in need of neither torch's nor Python's headers, and of the OpenMP that torch loads.
# Where it cannot be compiled the installation goes on: plain PyTorch does the same, slower.
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS = {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
else:
    INSTRUCTIONS = {"default": []}

# The four distributions of OpenCV have one module and overwrite each other's files.
OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless", "opencv-python-headless")


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


packages = find_packages(include=["a3d_det2", "a3d_det2.*"])
setup(
    packages=[
        *packages,
        "a3d_det2.configs",
        "a3d_det2.configs.quick",
        "a3d_det2.configs.published",
        "a3d_det2.configs.lazy",
        "a3d_det2.configs.lazy.common",
    ],
    package_dir={"a3d_det2.configs": "configs"},
    package_data={
        "a3d_det2": ["py.typed"],
        "a3d_det2.configs": ["*.yaml"],
        "a3d_det2.configs.quick": ["*.yaml"],
        "a3d_det2.configs.published": ["*.yaml"],
        "a3d_det2.evaluation.report": ["base.html", "page.html", "volumes.html", "style.css"],
        "a3d_det2.volumes": ["viewer.html"],
    },
    ext_modules=[
        Extension(
            f"a3d_det2.kernels._mixing_{name}",
            ["a3d_det2/kernels/csrc/mixing.cpp"],
            extra_compile_args=[*"-std=c++17 -O3 -g0 -fopenmp -Wno-psabi -Wno-ignored-attributes".split(), *flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, flags in INSTRUCTIONS.items()
    ],
    # Detectron2 is on no package index; README.md says how to install it.
    install_requires=[
        "fvcore",
        "jinja2",
        "matplotlib",
        "numpy",
        next(filter(is_installed, OPENCV), "opencv-python-headless"),
        "pillow",
        "pycocotools",
        "scipy",
        "tabulate",
        "torch>=2.6",
        "tqdm",
    ],
)
