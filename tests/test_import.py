"""Importing `vtc` costs little and changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vtc

HEAVY = (
    "transformers",
    "triton",
    "timm",
    "matplotlib",
    "sklearn",
    "skimage",
    "PIL",
    "rich",
    "yaml",
)


def run(code: str) -> str:
    """Output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_brings_in_no_heavy_library() -> None:
    """Not by importing the package, nor by listing and making methods."""
    code = (
        "import sys, vtc; vtc.list_methods(); vtc.create_method('globalcom2', retention=0.25);"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_names_are_known_without_torch() -> None:
    """Those of methods and of suites, which commands check their arguments with."""
    code = (
        "import sys, vtc; from vtc.eval.suites import list_suites;"
        "print(len(vtc.list_methods()) > 7, len(list_suites()) > 14, 'torch' in sys.modules)"
    )
    assert run(code) == "True True False"


def test_import_leaves_transformers_alone() -> None:
    """The attention functions of transformers are the same before and after `import vtc`."""
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f; before = dict(f);"
        "import vtc, vtc.api, vtc.config, vtc.report; vtc.list_methods(); print(dict(f) == before)"
    )
    assert run(code) == "True"


def test_every_public_name_resolves() -> None:
    for name in vtc.__all__:
        assert getattr(vtc, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vtc.no_such_name


def test_folders_install_as_subpackages() -> None:
    """plugins/, kernels/ and eval/ of the top level are vtc.plugins, vtc.kernels, vtc.eval."""
    code = "import vtc.plugins.hf, vtc.kernels.lof, vtc.eval.reference; print('ok')"
    assert run(code) == "ok"
