"""Write the checkpoint folder from the states of the two training stages.

Run: ``python -m vtc.eval.reference.export --vision runs/vision --language runs/language``
Either folder may belong to a run in progress; its last saved state is used then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .model import build_clip, build_llava, checkpoint_path, save_checkpoint

# float16 rounds these weights eight times finer than bfloat16 at the same size.
DTYPE = torch.float16


def vision_state(folder: Path) -> dict:
    """CLIP weights of a finished or running stage 1."""
    if (folder / "clip.pt").is_file():
        return torch.load(folder / "clip.pt", weights_only=True)
    state = torch.load(folder / "state0.pt", weights_only=True)["model"]
    start = "clip."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


def language_state(folder: Path) -> dict:
    """LLaVA weights of a finished or running stage 2."""
    if (folder / "llava.pt").is_file():
        return torch.load(folder / "llava.pt", weights_only=True)
    return torch.load(folder / "state0.pt", weights_only=True)["model"]


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vision", type=Path, default=Path("runs/vision"))
    parser.add_argument("--language", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=checkpoint_path())
    args = parser.parse_args(argv)
    for folder in filter(None, (args.vision, args.language)):
        if not folder.is_dir():
            raise ValueError(f"vision and language must be training folders, no {folder}")
    clip = build_clip()
    clip.load_state_dict(vision_state(args.vision))
    model = build_llava(clip)
    if args.language is not None:
        model.load_state_dict(language_state(args.language))
    save_checkpoint(model, clip, args.out, DTYPE)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
