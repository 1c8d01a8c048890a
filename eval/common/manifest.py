"""What exactly made a run: code, model and machine, as plain values, and how two of them differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vtc

#: packages whose version can change an answer or a time
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "accelerate", "triton")
#: files that hold weights; the others that count are small
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SMALL = (".json", ".jinja", ".txt", ".model")
#: weights up to this many bytes are hashed whole, larger files at evenly spread places
WHOLE = 64 * 2**20
PLACES, PIECE = 64, 64 * 2**10


def code() -> dict[str, Any]:
    """Version, commit (when in a checkout) and fingerprint of the sources, and of the packages."""
    return {
        "vtc": vtc.__version__,
        **_commit(),
        "sources": _sources(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def machine(device: Any, instance: Any) -> dict[str, Any]:
    """Where it ran.

    Args:
        device: the torch device of the model.
        instance: the model, which may run on a number of threads of its own.
    """
    import torch

    place = torch.device(device)
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "device": place.type,
        "device_name": device_name(place),
        "cpus": os.cpu_count(),
        "threads": getattr(instance, "threads", torch.get_num_threads)(),
    }


def device_name(device: Any) -> str:
    """What the maker calls a GPU, or the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def model(name: str, instance: Any) -> dict[str, Any]:
    """What the model is.

    Args:
        name: hub id, folder, "reference" or "photo"; of a folder only its name is told.
        instance: the loaded model.
    """
    folder = _folder(name)
    config = instance.config
    return {
        "name": Path(name).name if Path(name).expanduser().is_dir() else name,
        "class": type(instance).__name__,
        "sha256": None if folder is None else fingerprint(folder),
        "revision": getattr(config, "_commit_hash", None),
        "parameters": sum(parameter.numel() for parameter in instance.parameters()),
        "dtype": str(instance.dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
    }


def fingerprint(path: Path) -> str:
    """SHA-256 over a file, or over the configuration and weight files directly in a folder.

    Files above 64 MiB are read at 64 evenly spread places, their start (the header of a safetensors
    file) and their size: quick, and any training changes it.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        if not file.is_file() or (file != path and file.suffix not in (*WEIGHTS, *SMALL)):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for place in range(PLACES):
                stream.seek(size * place // PLACES)
                digest.update(stream.read(PIECE))
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """`value` for a manifest: a path of this machine becomes the file's name and fingerprint."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        if os.sep in str(value) and path.exists():
            return {"name": path.name, "sha256": fingerprint(path)}
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else repr(value)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """`(name, value before, value now)` of every entry that differs, nested names with dots."""
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", old, new


def short(value: Any) -> str:
    """An entry for a message; of a hash the start."""
    text = repr(value)
    if re.fullmatch(r"'[0-9a-f]{32,}'", text):
        return f"{text[1:13]}..."
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- parts -------------------------------------------------------------------------------------


def _roots() -> list[Path]:
    """The folders of the package: `vtc` and those that install beside its modules."""
    import vtc.eval
    import vtc.kernels
    import vtc.plugins

    return [Path(next(iter(m.__path__))) for m in (vtc, vtc.eval, vtc.kernels, vtc.plugins)]


def _sources() -> str:
    digest = hashlib.sha256()
    for root in _roots():
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()


def _commit() -> dict[str, Any]:
    """`commit` and `dirty` of the checkout that the package runs from; nothing when installed."""
    root = _roots()[0].parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "vtc/__init__.py")
        changed = git("status", "--porcelain", "--", *(str(folder) for folder in _roots()))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder(name: str) -> Path | None:
    """Where the files of a model are; None when nothing is found on disk."""
    if name in ("reference", "photo"):
        from vtc.eval import reference, reference_photo

        return (reference if name == "reference" else reference_photo).checkpoint_path()
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _processor() -> str:
    """Model name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
