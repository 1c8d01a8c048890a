"""Packaging of `vtc`: the folders plugins/, kernels/ and eval/ install as `vtc.plugins` etc.

`vtc/` holds links to these three, so that type checkers and editors find all of an editable install.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOTS = {"vtc": "vtc", "vtc.plugins": "plugins", "vtc.kernels": "kernels", "vtc.eval": "eval"}

packages, package_dir = [], {}
for name, folder in ROOTS.items():
    packages += [name] + [f"{name}.{sub}" for sub in find_packages(folder)]
    package_dir[name] = folder
if Path("vtc/plugins/__init__.py").is_file():  # a checkout that can hold links
    packages, package_dir = find_packages(include=["vtc", "vtc.*"]), {"": "."}

EXTRAS = {
    "vis": ["matplotlib>=3.8"],
    "demo": ["scikit-image>=0.22"],
    "eval": [
        "matplotlib>=3.8",
        "scikit-image>=0.22",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "jinja2>=3.1",
    ],
    "kernels": ["triton>=3.2; platform_system == 'Linux'"],
    "accelerate": ["accelerate>=1.0"],
    "suites": ["datasets>=3"],
    "discrete": ["vector-quantize-pytorch>=1.32", "timm>=1.0", "lpips>=0.1.4"],
    "generation": ["omegaconf>=2.3"],  # with "eval", "accelerate" and "discrete"
}
EXTRAS["test"] = [
    *EXTRAS["eval"],
    *EXTRAS["accelerate"],
    *EXTRAS["kernels"],
    *EXTRAS["suites"],
    *EXTRAS["generation"],
    "pytest>=8",
    "pytest-xdist>=3.5",
    "peft>=0.13",
    "bitsandbytes>=0.50; platform_system == 'Linux'",
    "hypothesis>=6.100",
    "vector-quantize-pytorch>=1.32",
    "ruff>=0.6",
    "mypy>=1.10",
    "types-PyYAML",
]
EXTRAS["all"] = sorted({need for needs in EXTRAS.values() for need in needs})
EXTRAS["lmms"] = ["lmms-eval>=0.7"]  # not in "all": about 140 packages, many of them pinned

setup(
    name="vtc-vlm",
    version="0.1.0",
    description="Visual-token compression for vision-language models",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "vtc": ["py.typed"],
        "vtc.eval.pages": ["*.html", "*.css", "*.js"],
        "vtc.eval.generation": ["configs/*.yaml"],
        "vtc.eval.reference": [
            "checkpoint/*",
            "checkpoint/clip/*",
            "checkpoint/tokenflex/*",
            "*.md",
        ],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.18,<5.25",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors>=0.4.3",
        "einops>=0.7",
        "pyyaml>=6",
        "rich>=13",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["vtc=vtc.cli:main"],
        "lmms_eval.models": ["vtc=vtc.eval.harnesses.lmms:manifest"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
