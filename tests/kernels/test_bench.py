"""The commands that measure, at tiny widths on the CPU; the stand-ins are what they stand for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.methods.images import image, make
from vtc import VTCError
from vtc._docs import put
from vtc.functional.recoverable import text_scores, visual_scores
from vtc.kernels import aot, floors
from vtc.kernels.bench import __main__ as command
from vtc.kernels.bench import operations, selection, standins
from vtc.kernels.bench.sizes import SMALL
from vtc.kernels.bench.tables import markdown


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = command.main(["--small", "--rounds", "2", *arguments])
    return code, capsys.readouterr().out


def test_the_whole_command_runs_on_the_cpu(tmp_path, capsys):
    docs, figures = tmp_path / "docs.md", tmp_path / "new" / "cpu.json"
    docs.write_text("above\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nbelow\n")
    code, out = run(capsys, "--device", "cpu", "--json", str(figures), "--markdown", str(docs))
    assert code == 0 and "WRONG" not in out and "no GPU" not in out
    result = json.loads(figures.read_text())
    assert {row["operation"] for row in result["correctness"]} == set(operations.OPERATIONS)
    assert {row["method"] for row in result["selections"]} == set(selection.methods())
    for row in result["selections"]:
        middle, low, high = row["selection"]
        assert 0 < low <= middle <= high and row["ratio"]["rounds"] == 2
        assert row["tokens"] in (16, 80)
    assert [row["method"] for row in result["official_style"]] == ["recoverable", "globalcom2"]
    assert all(ours == theirs for ours, theirs in (r["left"] for r in result["official_style"]))
    text = docs.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert all(f"`{name}`" in text for name in selection.methods())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so_and_the_cpu_part_runs(capsys):
    code, out = run(capsys, "--parts", "official")
    assert code == 0 and out.startswith("no GPU here")
    assert "stand-in / ours" in out


def test_a_wrong_operation_fails_the_command(capsys, monkeypatch):
    right = operations.OPERATIONS["merge"]
    wrong = replace(right, call=lambda *inputs: right.call(*inputs) * 1.01)
    monkeypatch.setitem(operations.OPERATIONS, "merge", wrong)
    code, out = run(capsys, "--device", "cpu", "--parts", "operations")
    assert code == 1 and out.count("WRONG") == 1 and "merge float32" in out


class Event:
    """A CUDA event that tells microseconds 3, 6, 9, ..."""

    ticks = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.ticks += 3
        self.at = Event.ticks

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) / 1e3


@pytest.mark.parametrize("compiles", [True, False])
def test_an_operation_is_timed_with_events_behind_a_flushed_cache(compiles, monkeypatch, capsys):
    def compile(twin):
        return twin if compiles else lambda *inputs: 1 / 0

    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch, "compile", compile)
    cpu = torch.device("cpu")
    row = operations.operation_times("lof", SMALL, cpu, torch.float32, rounds=2)
    labels = set(operations.CALLS[: 3 if compiles else 2])
    assert set(row["microseconds"]) == labels and len(waited) == len(labels) * 3
    assert all(times == pytest.approx((3, 3, 3)) for times in row["microseconds"].values())
    assert ("torch.compile of the twin failed" in capsys.readouterr().err) is not compiles
    about = dict.fromkeys(("machine", "threads", "dtype", "torch", "layers", "rounds"), 1)
    about |= {"load": 0.0, "retention": 0.25}
    table = markdown({"about": about, "selections": [], "operations": [row]})
    assert table.count("3.0 (3.0-3.0)") == len(labels)


def test_prefill_is_scaled_to_all_layers(monkeypatch):
    monkeypatch.setattr(selection, "stopwatch", lambda call, device: 2.0)
    cpu = torch.device("cpu")
    model = selection.language_model(SMALL, 2, cpu, torch.float32)
    rows = selection.selections(
        ["uniform"], 576, 3, SMALL, model, cpu, torch.float32, rounds=1, retention=0.25
    )
    assert rows[0]["prefill"][0] == 2.0 * 32 / 2 and rows[0]["ratio"]["median"] == 1 / 16
    assert rows[0]["batch"] == 3 and rows[0]["tokens"] == 16


def test_every_operation_has_a_floor_and_is_compiled_and_measured():
    assert set(floors.WORK) == set(operations.OPERATIONS) == set(aot.OPERATIONS)


def test_floors_are_the_larger_of_moving_and_computing(capsys):
    card = floors.Card(bandwidth=1e9, tensor=1e12, plain=1e10)
    work = floors.Work(read=600, written=400, flops=1_000_000, matrix=True, shape="")
    assert work.seconds(card) == 1e-6 and work.bound(card) == "memory"
    plain = replace(work, matrix=False)
    assert plain.seconds(card) == 1e-4 and plain.bound(card) == "arithmetic"
    keys = floors.WORK["cls_attention"]()  # by hand: 5 tiles, 16 heads, 577 keys of 64 in 2 bytes
    assert keys.read == 5 * 16 * 577 * 64 * 2 and keys.flops == 2 * 5 * 16 * 577 * 64
    assert floors.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"| `{name}` |" in out for name in floors.WORK)


def test_tables_go_between_their_lines_alone(tmp_path):
    path = tmp_path / "page.md"
    with pytest.raises(VTCError, match="floors: begin"):
        put(path, "floors", "x\n")
    path.write_text("a\n<!-- floors: begin -->\n<!-- floors: end -->\nb\n")
    for text in ("x\n", "y\n"):
        put(path, "floors", text)
    assert path.read_text() == "a\n<!-- floors: begin -->\ny\n<!-- floors: end -->\nb\n"


@pytest.mark.parametrize("grid", [(8, 8), (12, 12)])
def test_the_stand_in_of_recoverable_gives_the_same_tokens(grid):
    tokens = image(grid, newline=False)
    keys = tokens.signals["keys"]
    got = standins.recoverable(
        tokens.features[0],
        visual_scores(tokens.signals["cls_query"], keys)[0],
        text_scores(tokens.signals["patch_embedding"], tokens.signals["text_embedding"])[0],
        keys[0, 1:],
    )
    want = make("recoverable").compress(tokens).features
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crops", [(2, 2), (1, 3), (3, 1)])
def test_the_stand_in_of_globalcom2_gives_the_same_tokens(crops):
    tokens = image((6, 6), crops, (100 * crops[0], 100 * crops[1]))
    got = standins.globalcom2(
        tokens.features, tokens.signals["cls_logits"], tokens.newline, crops, 0.25
    )
    want = make("globalcom2", retention=0.25).compress(tokens).features
    assert torch.equal(got, want)
