"""Tiny random checkpoints, whole folders as vLLM reads them: model, tokenizer, processor.

Weights are made larger than at the start of training, so that every token of a picture matters for what
is said. Special tokens have a row of zeros in the head, so that no placeholder is ever generated.

`python -m tests.vllm.checkpoints llava_next FOLDER --text hidden_size=512 head_dim=64` writes one for
measurements, with a larger language model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.vllm.families import FAMILIES, Made


def scaled(model: Any, factor: float = 3.0) -> Any:
    """The model with larger weights, and nothing said that is not a byte."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(factor)
            elif "newline" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
        head = model.get_output_embeddings().weight
        head[: len(head) - 256] = 0
    return model.eval()


def template(made: Made) -> str:
    """A chat template: what users say, with their pictures where they stand."""
    return (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
        f"{made.image}\n"
        "{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )


def save(family: str, folder: Path, text: Mapping[str, int] | None = None) -> Made:
    """Write a family's checkpoint into a folder.

    Args:
        text: fields of the language model's configuration that are to be others.
    """
    torch.manual_seed(0)
    made = FAMILIES[family]()
    if text:
        config = made.model.config
        for name, value in text.items():
            setattr(config.text_config, name, value)
        made = replace(made, model=type(made.model)(config))
    made.processor.chat_template = template(made)
    scaled(made.model)
    made.model.generation_config.eos_token_id = None
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tower = getattr(made.model.model, "vision_tower", None)
    if type(tower).__name__ in ("CLIPVisionModel", "SiglipVisionModel"):
        # as in all published checkpoints; transformers 5 no longer writes this level, vLLM needs it
        weights = load_file(folder / "model.safetensors")
        level = {k: k.replace("vision_tower.", "vision_tower.vision_model.") for k in weights}
        weights = {level[name]: weight for name, weight in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return made


def load(family: str, folder: Path) -> Made:
    """A checkpoint as it was written, the model with the weights that vLLM reads."""
    made = FAMILIES[family]()
    model = type(made.model).from_pretrained(folder).eval()
    return replace(made, model=model)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.checkpoints", description=__doc__)
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", nargs="*", default=[], help="field=number of the language model")
    args = parser.parse_args()
    pairs = (pair.partition("=") for pair in args.text)
    made = save(args.family, args.folder, {name: int(value) for name, _, value in pairs})
    size = sum(weight.numel() for weight in made.model.model.language_model.parameters())
    print(f"{args.folder}: {args.family}, language model of {size / 1e6:.1f} million weights")


if __name__ == "__main__":
    main()
