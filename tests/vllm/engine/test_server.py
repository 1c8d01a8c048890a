"""The server that people run: bad requests are a 400 each, good ones pruned and counted."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.vllm.engine.conftest import ENV
from tests.vllm.test_settings import BAD


def test_a_server_answers_bad_requests_and_goes_on(
    folder: Callable[[str], Path], pictures: dict[str, Path], tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    default = json.dumps({"vtc_method": "uniform", "vtc_retention": 0.5})
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder("llava"))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "4", "--served-model-name", "m"]
    command += ["--trust-request-mm-kwargs", "--mm-processor-kwargs", default]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        command,
        env={**os.environ, **ENV, "VTC_IMPORT": "tests.vllm.engine.broken"},
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(900):
            if server.poll() is not None or _get(f"{url}/health") is not None:
                break
            time.sleep(1)
        assert _get(f"{url}/health") is not None, (tmp_path / "log").read_text()[-4000:]
        picture = base64.b64encode(pictures["wide"].read_bytes()).decode()

        def ask(keywords: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            content = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": "what is it?"},
            ]
            body = {"model": "m", "max_tokens": 4, "temperature": 0}
            body["messages"] = [{"role": "user", "content": content}]
            body["mm_processor_kwargs"] = keywords
            return _post(f"{url}/v1/chat/completions", body)

        whole = ask({"vtc_method": "none"})[1]["usage"]["prompt_tokens"]
        half = ask({})[1]["usage"]["prompt_tokens"]
        tenth = ask({"vtc_tokens": 6})[1]["usage"]["prompt_tokens"]
        assert (whole - half, whole - tenth) == (32, 58)
        assert len(BAD) >= 30
        for keywords, message in BAD:
            if any(value != value for value in keywords.values()):
                continue  # not a number is no JSON
            status, said = ask(keywords)
            assert status == 400, (keywords, status, said)
            assert re.search(message, said["error"]["message"]), (keywords, said)
        assert ask({})[1]["usage"]["prompt_tokens"] == half
        failing = ask({"vtc_method": "broken_raises", "vtc_tokens": 6})
        assert failing[1]["usage"]["prompt_tokens"] == whole - 58
        metrics = _get(f"{url}/metrics") or ""
        kept, dropped = (
            float(re.findall(rf'vtc_visual_tokens_total{{state="{state}"}} (\S+)', metrics)[0])
            for state in ("kept", "dropped")
        )
        assert (kept, dropped) == (64 + 32 + 6 + 32 + 6, 32 + 58 + 32 + 58)
        assert "vtc_fallbacks_total 1.0" in metrics  # counted in another process
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()
        log.close()


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def _post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
