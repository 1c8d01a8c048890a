"""The commands that measure, at tiny widths on the CPU; the stand-ins are what they stand for."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.kernels.pretend import PretendDevice
from tests.methods.images import image, make
from vtc import VTCError
from vtc.eval.common.docs import put
from vtc.eval.common.memory import peak_allocated
from vtc.eval.kernels import aot, floors
from vtc.eval.kernels.bench import __main__ as command
from vtc.eval.kernels.bench import operations, selection, standins, standins_pairs
from vtc.eval.kernels.bench.sizes import LAYOUTS, SMALL
from vtc.eval.kernels.bench.tables import markdown
from vtc.functional.recoverable import text_scores, visual_scores


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
        short = row["batch"] == 1 and row["tokens"] <= 80
        assert 0 < low <= middle <= high and row["ratio"]["rounds"] == (2 if short else 1)
        assert row["tokens"] in (16, 80, 400) and row["batch"] in (1, 8)
        assert row["memory"] > 0 and row["features"] == row["batch"] * row["tokens"] * 32 * 4
    assert {row["layout"] for row in result["selections"]} == {
        "image", "image of 5 tiles", "5 images of 5 tiles", "clip of 25 frames"
    }  # fmt: skip
    names = ["recoverable", "globalcom2", "divprune", "mmr", "prunevid"]
    assert [row["method"] for row in result["official_style"]] == names
    text = docs.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert all(f"`{name}`" in text for name in selection.methods())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so_and_the_cpu_part_runs(capsys):
    code, out = run(capsys, "--parts", "official")
    assert code == 0 and out.startswith("no GPU here")
    assert "stand-in / ours" in out


@pytest.mark.parametrize("tool", ["aot", "bench", "floors"])
def test_the_tools_go_by_the_name_of_the_kernels(tool):
    command = [sys.executable, "-m", f"vtc.kernels.{tool}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m vtc.kernels.{tool} ")


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("merge", lambda out: out * 1.01),
        ("merge", lambda out: out.masked_fill(out == out.max(), torch.nan)),
        ("pixel_surprise", lambda out: out.clamp(max=9)),  # infinite where nothing predicts
        ("pixel_surprise", lambda out: torch.where(out.isfinite(), out + 0.1, out)),
        ("suppress", lambda out: ~out),
    ],
)
def test_a_wrong_operation_fails_the_command(name, spoil, capsys, monkeypatch):
    right = operations.OPERATIONS[name]
    wrong = replace(right, call=lambda *inputs: spoil(right.call(*inputs)))
    monkeypatch.setitem(operations.OPERATIONS, name, wrong)
    code, out = run(capsys, "--device", "cpu", "--parts", "operations", "--operations", name)
    assert code == 1 and out.count("WRONG") == 1 and f"{name} float32" in out


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


class Graph:
    """In place of `Replay`: 2 microseconds each; compiled functions do not go into a graph."""

    def __init__(self, calls) -> None:
        if "compiled" in repr(calls[0]):
            raise RuntimeError("a copy from the host")
        assert 1 <= len(calls) <= 20
        calls[-1]()

    def __call__(self) -> float:
        return 2.0


@pytest.mark.parametrize("compiles", [True, False])
def test_an_operation_is_timed_with_events_behind_a_flushed_cache(compiles, monkeypatch, capsys):
    def compile(twin, dynamic):
        def compiled(*inputs):
            return twin(*inputs) if compiles else 1 / 0

        return compiled

    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(operations, "Replay", Graph)
    cpu, card = torch.device("cpu"), floors.Card(bandwidth=1e9, tensor=1e12, plain=1e12)
    row = operations.operation_times("lof", SMALL, cpu, torch.float32, rounds=2, ceiling=card)
    labels = set(operations.CALLS[: 3 if compiles else 2])
    assert set(row["microseconds"]) == labels and len(waited) == len(labels) * 3
    assert all(times == pytest.approx((3, 3, 3)) for times in row["microseconds"].values())
    assert row["work"]["kernel"] == (2, 2, 2) and row["work"].get("compiled twin") is None
    # 5 tiles of 576 values: 5 bytes in and 4 out, at 1 GB/s
    assert row["bytes"] == 5 * 576 * 9 and row["floor"]["measured"] == pytest.approx(25.92)
    assert row["share"] == {label: pytest.approx(12.96) for label in ("kernel", "twin")}
    said = capsys.readouterr().err
    assert ("torch.compile of the twin failed" in said) is not compiles
    assert ("not in a graph: a copy from the host" in said) is compiles
    about = dict.fromkeys(("machine", "threads", "dtype", "torch", "clock", "layers", "rounds"), 1)
    about |= {"load": 0.0, "retention": 0.25}
    rows = [{"tokens": 2880, "batch": 1, **row}]
    table = markdown({"about": about, "selections": [], "operations": rows, "ceilings": vars(card)})
    assert table.count("3.0 (3.0-3.0)") == len(labels) and table.count("2.0 (2.0-2.0)") == 2
    assert "25.92 (memory) | 1296%" in table


def test_operations_at_every_number_of_tokens_and_batch(monkeypatch, capsys):
    asked = []

    def times(name, sizes, device, dtype, rounds, ceiling, compiling):
        asked.append((sizes.tiles, compiling))
        if sizes.tiles == 200:
            raise torch.OutOfMemoryError
        return {"operation": name}

    monkeypatch.setattr(command, "operation_times", times)
    given = argparse.Namespace(
        tokens=[576, 2880, 14400], batch=None, operations=["lof"], compiled=[2880], rounds=1
    )
    rows = list(command._operations(given, SMALL, torch.device("cpu"), floors.Card(1, 1, 1)))
    counts = [(576, 1), (576, 8), (2880, 1), (2880, 8), (14400, 1)]
    assert rows == [{"tokens": t, "batch": b, "operation": "lof"} for t, b in counts]
    assert asked == [(1, 0), (8, 0), (5, 1), (40, 1), (25, 0), (200, 0)]
    assert "lof at 14400 x 8: out of memory" in capsys.readouterr().err


def test_operations_take_the_tiles_of_all_images():
    cpu = torch.device("cpu")
    for name, operation in operations.OPERATIONS.items():
        sizes = replace(SMALL, tiles=3)
        row = operations.correctness(name, sizes, cpu, torch.float32)
        assert operations.is_right(row), row
        bytes_ = [floors.WORK[name](tiles).read for tiles in (1, 3)]
        assert bytes_[1] == pytest.approx(3 * bytes_[0], rel=1e-2)
        first = operation.inputs(sizes, cpu, torch.float32)[0]
        assert len(first) in (3, 3 * SMALL.side**2)


def test_prefill_is_scaled_to_all_layers(monkeypatch):
    monkeypatch.setattr(selection, "stopwatch", lambda call, device, clock: 2.0)
    cpu = torch.device("cpu")
    model = selection.language_model(SMALL, 2, cpu, torch.float32)
    rows = selection.selections(
        ["uniform"], 576, [1, 6], SMALL, model, cpu, torch.float32, rounds=2, retention=0.25
    )
    # of one prompt, by hand: 2 layers take 2 seconds; of a batch six times as much on the CPU
    assert [row["prefill"][0] for row in rows] == [2.0 * 32 / 2, 6 * 2.0 * 32 / 2]
    assert [row["ratio"]["median"] for row in rows] == [1 / 16, 1 / 96]
    assert [row["ratio"]["rounds"] for row in rows] == [2, 1]  # a long one is timed once
    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 16), (6, 16)]


def test_a_selection_is_a_view_of_the_prompts():
    cpu = torch.device("cpu")
    images, clip = LAYOUTS[14400]
    encoded = selection.Encoded.random(images, 2, SMALL, cpu, torch.float32)
    for layout, batch, tiles in ((images, 2, 5), (clip, 1, 25)):
        own = encoded.first(batch, layout).images(make("fastervlm"))
        assert [len(each.features) for each in own] == [tiles] * (50 // tiles if batch == 2 else 1)
        assert own[0].features.data_ptr() == encoded.projected.data_ptr()
        assert own[0].tile_grid == layout.crops


def test_memory_is_what_was_held_at_once():
    """By hand: 4 MB that stay, 8 and 4 MB for a while; what was there before does not count."""
    before = torch.zeros(1 << 20)

    def call():
        kept = before + 1  # 4 MB
        longer = torch.cat([kept, kept])  # 8 MB
        del longer
        return kept * 2  # 4 MB

    assert 0 <= peak_allocated(call) - (12 << 20) < 256  # and a number or two
    assert peak_allocated(lambda: before.view(-1)) == 0


def test_every_operation_has_a_floor_and_is_compiled_and_measured():
    assert set(floors.WORK) == set(operations.OPERATIONS) == set(aot.OPERATIONS)


def test_floors_are_the_larger_of_moving_and_computing(capsys):
    card = floors.Card(bandwidth=1e9, tensor=1e12, plain=1e10)
    work = floors.Work(read=600, written=400, flops=1_000_000, matrix=True, shape="")
    assert work.seconds(card) == 1e-6 and work.bound(card) == "memory"
    plain = replace(work, matrix=False)
    assert plain.seconds(card) == 1e-4 and plain.bound(card) == "arithmetic"
    keys = floors.WORK["cls_attention"](5)  # by hand: 5 tiles, 16 heads, 577 keys of 64 in 2 bytes
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


def test_stand_ins_of_pairs_stay_on_the_device():
    """On a GPU no tensor of the CPU comes between; `official_style` compares the results."""
    features = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(30, generator=torch.Generator().manual_seed(1))

    def every(put):
        one, both, importance = put(features[0]), put(features), put(weight)
        yield standins_pairs.divprune(one, 5)
        yield standins_pairs.mmr(one, importance, 5)
        yield sorted(standins_pairs.prunevid(both, [4, 5]))

    want = list(every(lambda tensor: tensor))
    with PretendDevice() as device:
        assert list(every(device.put)) == want
