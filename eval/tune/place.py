"""Where the configuration file of a run is, and its folder beside it."""

from __future__ import annotations

from pathlib import Path

from vtc.errors import VTCError


def check_output(output: Path) -> None:
    """Raise `VTCError` unless it is the name of a YAML file."""
    if output.suffix not in (".yaml", ".yml"):
        raise VTCError(f"output: got {str(output)!r}, allowed are names that end in .yaml or .yml")


def folder_of(output: Path) -> Path:
    """The folder of the run: `vtc.yaml` has `vtc.tune`."""
    return output.with_suffix(".tune")
