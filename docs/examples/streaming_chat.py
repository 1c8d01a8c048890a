"""Chat about a picture; words appear as they are written.

    python streaming_chat.py --model Qwen/Qwen2.5-VL-7B-Instruct --image photo.jpg --retention 0.25

Without `--model` and `--image` it is the small model that ships with vtc, and a drawn scene. Questions
are read line by line, and an empty line ends the chat.
"""

from __future__ import annotations

import argparse
import sys
from threading import Thread
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

import vtc
from vtc.eval.reference import checkpoint_path, scenes


def answer(model: Any, processor: Any, turns: list[dict[str, Any]], tokens: int) -> str:
    """Print the answer to the last turn piece by piece, and return it."""
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600
    )
    failed: list[BaseException] = []

    def write() -> None:
        try:
            model.generate(**inputs, streamer=streamer, max_new_tokens=tokens)
        except BaseException as error:  # the reader below must not wait for words that never come
            failed.append(error)
            streamer.end()

    # started inside of the block of `main`, so it has the settings of that block
    writer = Thread(target=write)
    writer.start()
    said = ""
    for piece in streamer:
        said += piece
        print(piece, end="", flush=True)
    print()
    writer.join()
    if failed:
        raise failed[0]
    return said.strip()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Chat about a picture.")
    parser.add_argument("--model", default=str(checkpoint_path()))
    parser.add_argument("--image", help="a file; by default a drawn scene")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--retention", type=float, default=0.25)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    settings = parser.parse_args(arguments)

    model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(settings.model)
    if settings.image:
        image = Image.open(settings.image).convert("RGB")
    else:
        scene = next(scenes("test", 1, seed=20))
        image = scene.image
        print("try:", "; ".join(question.text for question in scene.questions[:3]))

    turns: list[dict[str, Any]] = []
    with vtc.compress(model, settings.method, retention=settings.retention) as run:
        for line in sys.stdin:
            if not line.strip():
                break
            content: list[dict[str, Any]] = [{"type": "text", "text": line.strip()}]
            if not turns:  # the picture belongs to the first turn, and stays in the conversation
                content.insert(0, {"type": "image", "image": image})
            turns.append({"role": "user", "content": content})
            said = answer(model, processor, turns, settings.max_new_tokens)
            turns.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
            print(f"  [{run.reports[-1].summary()}]", file=sys.stderr)


if __name__ == "__main__":
    main()
