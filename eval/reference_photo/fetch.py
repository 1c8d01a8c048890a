"""Fetches the Debian packages with the pictures and fonts, and unpacks them; nothing is installed.

Run: ``python -m vtc.eval.reference_photo.fetch --output DEBIAN`` on Debian or Ubuntu (0.3 GB)
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from vtc.errors import VTCError

from .sources import DEBIAN


def fetch(output: Path) -> None:
    """Download and unpack.

    Raises:
        VTCError: apt or dpkg is not there, or fails.
    """
    packages = output / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *DEBIAN], packages)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg-deb", "-x", package.name, ".."], packages)
        package.unlink()
    packages.rmdir()


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise VTCError(f"fetch: {command[0]} is not there; it comes with Debian") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        raise VTCError(f"fetch: {command[0]} failed: {lines[-1]}") from error


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder for usr/share/...")
    args = parser.parse_args(argv)
    try:
        fetch(args.output)
    except VTCError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
