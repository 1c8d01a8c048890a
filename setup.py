"""Packaging of `vtc`: the folders plugins/, kernels/ and eval/ install as `vtc.plugins` etc.

`vtc/` holds links to these three, so that type checkers and editors find all of an editable install.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
#: where the repository lies, such as https://github.com/NAME/vtc; the one place that says so. It has no
#: public address yet. It is put in before the first release: `make release-check` refuses without
URL = ""
PAGES = {
    "Documentation": "/tree/main/docs",
    "Issues": "/issues",
    "Changes": "/blob/main/CHANGELOG.md",
}
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vtc/__init__.py").read_text("utf-8"), re.M)


def description() -> str:
    """The README with links that work on a package page, where no file lies beside it.

    Without an address, links to files become plain text, and pictures go.
    """
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if not URL:
        text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
        return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{URL}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{URL}/blob/main/", text)


ROOTS = {"vtc": "vtc", "vtc.plugins": "plugins", "vtc.kernels": "kernels", "vtc.eval": "eval"}

packages, package_dir = [], {}
for name, folder in ROOTS.items():
    packages += [name] + [f"{name}.{sub}" for sub in find_packages(folder)]
    package_dir[name] = folder
if Path("vtc/plugins/__init__.py").is_file():  # a checkout that can hold links
    packages, package_dir = find_packages(include=["vtc", "vtc.*"]), {"": "."}

EXTRAS = {
    "vis": ["matplotlib>=3.8"],
    "demo": ["scikit-image>=0.22", "matplotlib>=3.8"],  # photographs; fonts of the drawn scenes
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
    "photo": ["onnx>=1.16", "gguf>=0.10", "accelerate>=1.0"],  # read the parts of that model
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
    "nbclient>=0.10",  # with the two below: the notebooks of the documentation run from top to bottom
    "nbformat>=5.10",
    "ipykernel>=6.29",
]
EXTRAS["all"] = sorted({need for needs in EXTRAS.values() for need in needs})
EXTRAS["docs"] = [  # what `make docs` needs, which runs none of this package
    line.partition("#")[0].strip()
    for line in (HERE / "docs/requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.partition("#")[0].strip()
]
EXTRAS["lmms"] = ["lmms-eval>=0.7"]  # not in "all": about 140 packages, many of them pinned

setup(
    name="vtc-vlm",
    version=VERSION[1],
    description="Visual-token compression for vision-language models",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The vtc authors",
    url=URL or None,
    project_urls={name: URL + path for name, path in PAGES.items()} if URL else {},
    keywords="vision-language models, visual tokens, token pruning, token merging, KV cache",
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
        "vtc.eval.reference_photo": ["checkpoint/*", "*.md"],
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
        "vllm.general_plugins": ["vtc=vtc.plugins.vllm:register"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
