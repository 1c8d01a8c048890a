"""Caption a folder of pictures in batches, a line of JSON for each.

    python batch_captioning.py photos --model llava-hf/llava-1.5-7b-hf --tokens 64 --output c.jsonl

Pictures of any size go through the model together. A file that cannot be read gets a line with the
reason. The same command goes on where it was stopped, also in the middle of a line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.eval.reference import checkpoint_path

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def opened(path: Path) -> Image.Image | str:
    """The picture, or why it cannot be read."""
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)


def captioned(output: Path) -> set[str]:
    """Names of the files that have a line. One that was torn when the run was killed is cut off."""
    if not output.exists():
        return set()
    whole, _, torn = output.read_bytes().rpartition(b"\n")
    if torn:
        with output.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    return {json.loads(line)["file"] for line in whole.splitlines()}


@torch.inference_mode()
def captions(model: Any, processor: Any, images: list[Any], prompt: str, tokens: int) -> list[str]:
    words = {"type": "text", "text": prompt}
    turn = [{"role": "user", "content": [{"type": "image"}, words]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(
        images=[[image] for image in images],
        text=[text] * len(images),
        padding=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    out = model.generate(**inputs, max_new_tokens=tokens)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [said.strip() for said in processor.batch_decode(new, skip_special_tokens=True)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Caption a folder of pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("captions.jsonl"))
    parser.add_argument("--model", default=str(checkpoint_path()))
    parser.add_argument("--prompt", default="what is in the image?")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--tokens", type=int, default=64, help="image tokens that stay")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    settings = parser.parse_args(arguments)

    model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(settings.model)
    processor.tokenizer.padding_side = "left"  # rows go on at their end
    handle = vtc.apply(model, settings.method, tokens=settings.tokens)

    done = captioned(settings.output)
    files = sorted(p for p in settings.folder.iterdir() if p.suffix.lower() in SUFFIXES)
    left = [path for path in files if path.name not in done]
    with settings.output.open("a", encoding="utf-8") as output:
        for start in range(0, len(left), settings.batch_size):
            read = [(path, opened(path)) for path in left[start : start + settings.batch_size]]
            images = [image for _, image in read if not isinstance(image, str)]
            said = iter(())
            if images:
                with handle.call() as call:
                    told = captions(
                        model, processor, images, settings.prompt, settings.max_new_tokens
                    )
                said = zip(told, call.report.images, strict=True)
            for path, image in read:
                if isinstance(image, str):
                    line = {"file": path.name, "error": image}
                else:
                    caption, counts = next(said)
                    before, after = counts.patches_before, counts.patches_after
                    line = {"file": path.name, "caption": caption, "tokens": [before, after]}
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
            output.flush()
            print(f"{min(start + settings.batch_size, len(left))} of {len(left)}", flush=True)
    handle.remove()


if __name__ == "__main__":
    main()
