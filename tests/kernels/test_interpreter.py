"""Run the files of `interpreted/`, each in a process in which Triton is its interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted(Path(__file__).with_name("interpreted").glob("check_*.py"))
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("path", CHECKS, ids=lambda path: path.stem)
def test_kernels_equal_their_twins(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    env = {**os.environ, "VTC_KERNELS": "interpret", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
