"""The load table from measurements written by hand; the measuring needs vLLM and is not run here."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from vtc import VTCError
from vtc.eval import serving, serving_cost


def lines() -> list[dict[str, float | str]]:
    """Three rounds, the second on a machine that is half as fast."""
    out: list[dict[str, float | str]] = []
    for turn, speed in enumerate((1.0, 0.5, 1.0)):
        for share, gain in (("off", 1.0), ("1", 0.9), ("0.1", 2.0)):
            for flight in (8, 1):
                requests = 10 * speed * gain * flight
                found = {"requests": requests, "first": 5 / speed, "late": 9.0, "cache": 0.25}
                line = {"round": turn, "share": share, "in_flight": flight, **found}
                out.append({**line, "tokens": 600, "load": 1.0})
    return out


def test_shares_are_compared_round_by_round() -> None:
    text = serving.tabled(lines())
    head, _, *rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()
    ]
    assert len(head) == 8
    assert [row[:2] for row in rows] == [
        [share, flight] for flight in "18" for share in ("off", "1", "0.1")
    ]
    assert [row[3] for row in rows[:3]] == ["1", "0.90 (0.90-0.90)", "2.00 (2.00-2.00)"]
    assert rows[2][2] == "20.00 (15.00-20.00)" and rows[0][4] == "5 (5-8)"
    assert rows[0][6:] == ["25.0 %", "600"]


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this machine that tells how much of its cache is in use."""

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                b"# HELP vllm:kv_cache_usage_perc x\n"
                b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.125\n'
                b'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5\n'
            )

        def log_message(self, *args: object) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served.server_port
    served.shutdown()


def test_the_cache_is_watched_while_requests_run(port: int) -> None:
    with serving.kv_cache(port, seconds=0.01) as seen:
        end = time.monotonic() + 10
        while len(seen) < 5 and time.monotonic() < end:
            time.sleep(0.01)
    assert max(seen) == 0.5 and 0.125 in seen


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with (
        pytest.raises(VTCError, match=f"port: got {port}, where a server answers"),
        serving.server("model", port, [], {}),
    ):
        pass


def test_a_server_that_does_not_end_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); input()"
    stubborn = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with stubborn:
        assert stubborn.stdout is not None and stubborn.stdout.readline() == "1\n"
        serving.ended(stubborn, wait=0.2)
        assert stubborn.poll() is not None


@pytest.mark.parametrize("command", [serving, serving_cost])
@pytest.mark.parametrize(
    "wrong,message",
    [
        (["--method", "unifrom"], "did you mean 'uniform'"),
        (["--shares", "0.5", "2"], "vtc_retention: got 2"),
    ],
)
def test_what_a_server_would_refuse_is_said_before_one_starts(
    command: ModuleType, wrong: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(VTCError, match=message):
        command.main(["model", *wrong])


def test_the_cost_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine is in it, and the base is unpruned, whatever the environment says."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    costs = {"none": 2.0, 0.5: 1.0}

    def asking(args: object) -> object:
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        return lambda keywords: costs[keywords.get("vtc_retention", keywords["vtc_method"])]

    monkeypatch.setattr(serving_cost, "_asking", asking)
    serving_cost.main(["model", "--shares", "0.5", "--rounds", "2", "--prompts", "1"])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()[2:]
    ]
    assert [row[:2] for row in rows] == [["all, unpruned", ""], ["0.5", "uniform"]]
    assert rows[0][3] == "1" and rows[1][3].startswith("0.50")
