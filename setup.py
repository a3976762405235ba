from setuptools import find_packages, setup

setup(
    name="a3d_det2",
    version="0.1.0",
    description="3D context for 2D detectors: context-fusion convolutions in Detectron2, for lesion detection in CT",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["a3d_det2", "a3d_det2.*"]),
    package_data={"a3d_det2.evaluation": ["report.html"]},
    # Detectron2 is on no package index; README.md says how to install it.
    install_requires=[
        "fvcore",
        "jinja2",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "tabulate",
        "torch",
        "tqdm",
    ],
    extras_require={
        "packed": ["blosc2"],  # to read and write Images_packed
        "torchvision": ["tensorboard", "torchvision"],  # to train without Detectron2
        "dev": ["blosc2", "hypothesis", "playwright", "pytest", "ruff", "tensorboard", "torchvision"],
    },
)
