"""Packaging. The full test suite was run with all lower bounds together. Tool settings are in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "mae_transfer" / "__init__.py").read_text(encoding="utf-8"))[1]
SHIPPED = ("configs", "tools")  # beside the package in a checkout, inside it in a wheel (disk.package_folder)

REFERENCE = "transformers>=5.12"  # parity tests and benchmarks compare with its ViTMAE, under the names of 5.x
SKLEARN = "scikit-learn>=1.5"  # reference of k-NN, ridge and logistic regression
FASTER_COCO = "faster-coco-eval>=1.8"  # same numbers as pycocotools, several times faster; used if installed
SEGMENT = [  # the maintained distributions of `mmseg`, `mmcv` and `mmengine`; they do not require one another
    "onedl-mmsegmentation~=1.4.2",
    "onedl-mmcv~=2.3.6",
    "opencv-python>=4.10",  # mmcv resizes with it
    "onedl-mmengine~=0.10.12",
]
JPEG = "torchcodec>=0.17"  # JPEG decoder for versions of torchvision without one
# Decodes only the crop; used if installed. 0.9.0 crashes on GPUs (data/regions.py), and is right on CPUs.
REGIONS = "nvidia-nvimgcodec-cu12>=0.8; sys_platform != 'darwin'"
DEV = [
    "DALL-E>=0.1",  # reference of the autoencoder's tests
    "attrs>=23.2",  # DALL-E imports it but does not require it
    FASTER_COCO,
    "hypothesis>=6.170",
    "mypy>=2.4",
    "pytest>=9.2",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    SKLEARN,
    JPEG,
    REGIONS,
    "ruff~=0.17.5",  # other minor versions have another format and other rules
    REFERENCE,
    *SEGMENT,
]


class BuildWithConfigs(build_py):
    """Copies configs/ and tools/ into the wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                target = Path(self.build_lib) / "mae_transfer" / name
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="mae_transfer",
    version=VERSION,
    description="Downstream transfer benchmark suite for masked autoencoders",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"MAE (He et al., 2021)": "https://arxiv.org/abs/2111.06377"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["mae-transfer=mae_transfer.cli.main:main"]},
    python_requires=">=3.11",
    packages=find_packages(
        include=["mae_transfer", "mae_transfer.*"], exclude=["mae_transfer.bench", "mae_transfer.bench.*"]
    ),
    package_data={"mae_transfer": ["py.typed", "zoo/*"], "mae_transfer.suite.report": ["*.j2"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0.24",
        "numpy>=2.1",
        "pydantic>=2.7",
        "onedl-mmengine~=0.10.12",  # the maintained distribution of `mmengine`; later series may change Config
        "safetensors>=0.4.3",
        "rich>=13.7",
        "tensorboard>=2.21",  # the first version whose command works with setuptools >= 82 (no pkg_resources)
        "pillow>=10.4",
        "matplotlib>=3.9",
        "pycocotools>=2.0.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "dev": DEV,
        "fast": [FASTER_COCO],
        "bench": [REFERENCE, SKLEARN, "lightly>=1.6"],
        "segment": SEGMENT,
        "jpeg": [JPEG],
        "regions": [REGIONS],
        "slurm": [],  # earlier versions needed submitit
        "wandb": ["wandb>=0.17"],
    },
)
