"""Load on a vLLM server with images, unpruned and pruned: `python -m vtc.eval.serving MODEL`.

Starts `vllm serve` twice on this machine, once without the plug-in, and runs `vllm bench serve` with
images of noise, all distinct, so that no cache helps. Prints a Markdown table. Ratios of one run are
worth something; figures of two machines are not to be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
HEAD = "| share kept | in flight | requests/s | first token, median ms | p99 ms | input tokens |"


@contextmanager
def server(
    model: str, port: int, more: Sequence[str], env: dict[str, str], wait: int = 900
) -> Iterator[None]:
    """A server on this machine, up inside the block.

    Raises:
        RuntimeError: it did not start.
    """
    command = [*VLLM, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--trust-request-mm-kwargs", "--no-enable-prefix-caching", *more]
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            for _ in range(wait):
                if running.poll() is not None or _up(port):
                    break
                time.sleep(1)
            if not _up(port):
                log.seek(0)
                raise RuntimeError(f"vllm serve did not start:\n{log.read()[-3000:]}")
            yield
        finally:
            running.terminate()
            running.wait(60)


def _up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def measured(
    model: str, port: int, flight: int, prompts: int, side: int, keywords: dict[str, Any]
) -> dict[str, Any]:
    """What `vllm bench serve` says of one setting."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*VLLM, "bench", "serve", "--backend", "openai-chat", "--model", model]
        command += ["--endpoint", "/v1/chat/completions", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--dataset-name", "random-mm", "--seed", str(flight)]
        command += ["--random-mm-bucket-config", f"{{({side},{side},1):1.0}}"]
        command += ["--random-mm-base-items-per-request", "1", "--random-input-len", "32"]
        command += ["--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}']
        command += ["--random-output-len", "16", "--ignore-eos", "--num-prompts", str(prompts)]
        command += ["--max-concurrency", str(flight), "--save-result", "--result-dir", folder]
        if keywords:
            command += ["--extra-body", json.dumps({"mm_processor_kwargs": keywords})]
        done = subprocess.run(command, capture_output=True, text=True)
        files = list(Path(folder).glob("*.json"))
        if done.returncode or not files:
            raise RuntimeError((done.stdout + done.stderr)[-3000:])
        return json.loads(files[0].read_text())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.serving", description=__doc__)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--method", default="uniform", help="the method that prunes")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, default=64, help="requests of a setting")
    parser.add_argument("--side", type=int, default=672, help="height and width of the images")
    parser.add_argument("--port", type=int, default=8199)
    parser.epilog = "what stands behind -- goes to `vllm serve`"
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    args, more = parser.parse_args(given[:cut]), given[cut + 1 :]
    print(HEAD + "\n|" + " --- |" * 6, flush=True)
    settings: list[tuple[str, str, dict[str, Any]]] = [("0", "off", {})]
    for share in args.shares:
        keywords = {"vtc_method": args.method, "vtc_retention": share}
        settings.append(("1", f"{share:g}", keywords))
    for on in ("0", "1"):
        with server(args.model, args.port, more, {"VTC_VLLM": on}):
            measured(args.model, args.port, 1, 2, args.side, {})  # what is done once
            for _, name, keywords in (each for each in settings if each[0] == on):
                for flight in args.in_flight:
                    got = measured(args.model, args.port, flight, args.prompts, args.side, keywords)
                    print(
                        f"| {name} | {flight} | {got['request_throughput']:.2f} | "
                        f"{got['median_ttft_ms']:.0f} | {got['p99_ttft_ms']:.0f} | "
                        f"{got['total_input_tokens']} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
