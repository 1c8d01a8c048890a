"""A server that speaks OpenAI's chat completions; every request has its own budget.

    python openai_server.py --model Qwen/Qwen2.5-VL-7B-Instruct --port 8000

    curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": [
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
      {"type": "text", "text": "What is in the picture?"}]}],
      "vtc": {"method": "divprune", "retention": 0.25}}'

Requests run in threads on one model and do not see each other's settings. Pictures come inside of the
request: the server fetches nothing. It is meant to be read and changed; for many users take vLLM.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import json
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.eval.reference import checkpoint_path

LARGEST = 32 * 1024 * 1024  # bytes of a request
DEFAULT = {"method": "divprune", "retention": 0.5}
ALLOWED = {"method", "retention", "tokens"}  # options that name files are the operator's


class BadRequest(ValueError):
    """What the client can mend."""


def picture(url: str) -> Image.Image:
    head, found, data = url.partition(";base64,")
    if not found or not head.startswith("data:image/"):
        raise BadRequest("image_url: allowed are data:image/...;base64,... URLs")
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise BadRequest(f"image_url: {error}") from error


def turns(messages: Any) -> list[dict[str, Any]]:
    """OpenAI's messages as transformers has them."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: a list of one or more is needed")
    out = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in (
            "system",
            "user",
            "assistant",
        ):
            raise BadRequest("messages: each has a role, which is system, user or assistant")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise BadRequest("content: a text, or a list of one or more parts, is needed")
        out.append({"role": message["role"], "content": [_part(part) for part in parts]})
    return out


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url" and isinstance(part.get("image_url"), dict):
        return {"type": "image", "image": picture(str(part["image_url"].get("url")))}
    raise BadRequest(f"content: got {kind!r}, allowed are text and image_url")


class Server(ThreadingHTTPServer):
    """One model for all requests."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], name: str) -> None:
        super().__init__(address, Handler)
        self.name = name
        self.model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").eval()
        self.processor = AutoProcessor.from_pretrained(name)

    @torch.inference_mode()
    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        settings = request.get("vtc", DEFAULT)
        if not isinstance(settings, dict) or not set(settings) <= ALLOWED:
            raise BadRequest(f"vtc: allowed are {', '.join(sorted(ALLOWED))}")
        limit = request.get("max_tokens", 64)
        if type(limit) is not int or not 1 <= limit <= 4096:
            raise BadRequest(f"max_tokens: got {limit!r}, allowed are 1 to 4096")
        inputs = self.processor.apply_chat_template(
            turns(request.get("messages")),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        method = settings.get("method", DEFAULT["method"])
        budget = {key: value for key, value in settings.items() if key != "method"}
        # the block is entered in the thread of the request, so its settings are those of the request
        with vtc.compress(self.model, method, **budget) as run:
            out = self.model.generate(**inputs, max_new_tokens=limit)
        columns = inputs["input_ids"].shape[1]
        text = self.processor.decode(out[0, columns:], skip_special_tokens=True).strip()
        images = run.reports[-1].images if run.reports else []
        dropped = sum(image.patches_before - image.patches_after for image in images)
        read, written = columns - dropped, out.shape[1] - columns
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "length" if written >= limit else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
                "prompt_tokens_details": {"image_tokens_dropped": dropped},
            },
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            return self.say(404, {"error": {"message": "there is /v1/chat/completions alone"}})
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= LARGEST:
                raise BadRequest(f"a request has 1 to {LARGEST} bytes")
            request = json.loads(self.rfile.read(length))
            if not isinstance(request, dict):
                raise BadRequest("the request is a JSON object")
            self.say(200, self.server.complete(request))
        except (BadRequest, vtc.VTCError, UnicodeDecodeError, json.JSONDecodeError) as error:
            self.say(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        except Exception as error:  # one request must not end the others
            self.log_error("%r", error)
            self.say(500, {"error": {"message": type(error).__name__, "type": "server_error"}})

    def say(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Chat completions with compressed pictures.")
    parser.add_argument("--model", default=str(checkpoint_path()))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    settings = parser.parse_args(arguments)
    with Server((settings.host, settings.port), settings.model) as server:
        print(f"listening on http://{settings.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
