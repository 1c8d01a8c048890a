"""Load on a vLLM server with images, unpruned and pruned: `python -m vtc.eval.serving MODEL`.

Every round starts `vllm serve` twice on this machine, once without the plug-in, and runs vLLM's own
`vllm bench serve` with images of noise, all distinct, so that no cache helps. Rounds go forwards and
backwards by turns, and a share is compared with "off" of the same round. Prints a Markdown table.
Ratios of one run are worth something; figures of two machines are not to be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.common.arguments import positive
from vtc.eval.common.docs import put, table
from vtc.eval.common.records import write_whole
from vtc.eval.common.timing import ratio, spread, turns
from vtc.plugins.vllm.settings import Settings

HEAD = (
    "share kept",
    "in flight",
    "requests/s",
    "against off",
    "first token, median ms",
    "p99 ms",
    "KV cache in use, most",
    "input tokens",
)


@contextmanager
def server(
    model: str, port: int, more: Sequence[str], env: dict[str, str], wait: int = 900
) -> Iterator[None]:
    """A server on this machine, up inside the block.

    Raises:
        VTCError: it did not start, or something else answers on the port.
    """
    if _read(port, "/health") is not None:
        raise VTCError(f"port: got {port}, where a server answers already")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--trust-request-mm-kwargs", "--no-enable-prefix-caching", *more]
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            for _ in range(wait):
                if running.poll() is not None or _read(port, "/health") is not None:
                    break
                time.sleep(1)
            if running.poll() is not None or _read(port, "/health") is None:
                log.seek(0)
                raise VTCError(f"model: vllm serve did not start:\n{log.read()[-3000:]}")
            yield
        finally:
            ended(running)


def ended(process: subprocess.Popen[Any], wait: float = 120) -> None:
    """End a process; one that does not end in `wait` seconds when it is asked to is killed."""
    process.terminate()
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(port: int, path: str) -> str | None:
    """What the server says under a path, None where there is no server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


@contextmanager
def kv_cache(port: int, seconds: float = 0.25) -> Iterator[list[float]]:
    """Shares of the KV cache that are in use, read again and again inside the block."""
    seen, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            text = _read(port, "/metrics") or ""
            seen.extend(
                float(v) for v in re.findall(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)", text, re.M)
            )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def measured(
    model: str, port: int, flight: int, prompts: int, side: int, seed: int, keywords: dict[str, Any]
) -> dict[str, float]:
    """One setting, as `vllm bench serve` measures it.

    Raises:
        VTCError: requests failed.
    """
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    line = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", model]
    line += ["--host", "127.0.0.1", "--port", str(port), "--seed", str(seed), "--disable-tqdm"]
    line += ["--dataset-name", "random-mm", "--random-mm-base-items-per-request", "1"]
    line += ["--random-mm-bucket-config", f"{{({side},{side},1):1.0}}"]
    line += ["--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}']
    line += ["--random-input-len", "32", "--random-output-len", "16", "--ignore-eos"]
    line += ["--num-prompts", str(prompts), "--max-concurrency", str(flight)]
    if keywords:
        line += ["--extra-body", json.dumps({"mm_processor_kwargs": keywords})]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with redirect_stdout(sys.stderr), kv_cache(port) as used:
        found = bench(parser.parse_args(line))
    if found["completed"] != prompts:
        raise VTCError(f"model: {found['completed']} of {prompts} requests were answered")
    return {
        "requests": found["request_throughput"],
        "first": found["median_ttft_ms"],
        "late": found["p99_ttft_ms"],
        "cache": max(used),
        "tokens": found["total_input_tokens"],
    }


def asked(method: str, shares: Sequence[float]) -> dict[str, dict[str, Any]]:
    """The keywords of a request for every share, by its name.

    Raises:
        VTCError: a server would refuse one of them; said before one is started.
    """
    out = {f"{share:g}": {"vtc_method": method, "vtc_retention": share} for share in shares}
    server_like = Settings({}, {})
    for keywords in out.values():
        server_like.request(keywords)
    return out


def run(args: argparse.Namespace, more: Sequence[str]) -> list[dict[str, Any]]:
    """A line for every measurement, in the order in which they were made."""
    off: list[tuple[str, dict[str, Any]]] = [("off", {})]
    pruned = list(asked(args.method, args.shares).items())
    sides = [("0", off), ("1", pruned)]
    lines = []
    for turn, order in turns(sides, args.rounds):
        for on, cases in order:
            with server(args.model, args.port, more, {"VTC_VLLM": on}):
                for _, keywords in cases:  # what is done once, with images of its own
                    measured(args.model, args.port, 2, 4, args.side, 2**20 + turn, keywords)
                for flight in args.in_flight:
                    for name, keywords in cases if turn % 2 else cases[::-1]:
                        got = measured(
                            args.model,
                            args.port,
                            flight,
                            args.prompts,
                            args.side,
                            1000 * turn + flight,
                            keywords,
                        )
                        load = os.getloadavg()[0]
                        line = {"round": turn, "share": name, "in_flight": flight, **got}
                        lines.append({**line, "load": load})
                        print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    return lines


def tabled(lines: Sequence[dict[str, Any]]) -> str:
    """Medians and quartiles of the rounds as a Markdown table."""
    rows = []
    settings = sorted({(x["in_flight"], x["share"]) for x in lines}, key=_place)
    for flight, share in settings:
        some = sorted(
            (x for x in lines if (x["in_flight"], x["share"]) == (flight, share)),
            key=lambda x: x["round"],
        )
        off = [x for x in lines if (x["in_flight"], x["share"]) == (flight, "off")]
        by_round = {x["round"]: x["requests"] for x in off}
        base = [by_round[x["round"]] for x in some]
        against = "1" if share == "off" else str(ratio([x["requests"] for x in some], base))
        rows.append(
            [
                share,
                str(flight),
                _spread([x["requests"] for x in some], ".2f"),
                against,
                _spread([x["first"] for x in some], ".0f"),
                _spread([x["late"] for x in some], ".0f"),
                f"{100 * spread([x['cache'] for x in some])[0]:.1f} %",
                f"{spread([x['tokens'] for x in some])[0]:.0f}",
            ]
        )
    return table(HEAD, rows)


def _place(setting: tuple[int, str]) -> tuple[int, float]:
    flight, share = setting
    return flight, -2.0 if share == "off" else -float(share)


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = spread(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.serving", description=__doc__)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--method", default="uniform", help="the method that prunes")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--in-flight", type=positive, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=positive, default=64, help="requests of a setting")
    parser.add_argument("--rounds", type=positive, default=3, help="times that all is measured")
    parser.add_argument("--side", type=positive, default=672, help="height and width of the images")
    parser.add_argument("--port", type=positive, default=8199)
    parser.add_argument("--output", type=Path, help="file for every measurement as JSON")
    parser.add_argument("--docs", type=Path, help="page whose load table is replaced")
    parser.epilog = "what stands behind -- goes to `vllm serve`"
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:cut])
    lines = run(args, given[cut + 1 :])
    text = tabled(lines)
    print(text)
    loads = [line["load"] for line in lines]
    print(f"load average of the machine: {min(loads):.1f} to {max(loads):.1f}")
    if args.output:
        write_whole(args.output, "".join(json.dumps(line) + "\n" for line in lines))
    if args.docs:
        put(args.docs, "load", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
