"""`python -m vtc.eval efficiency` from end to end, and its bad days."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.eval.tiny_shapes import subject
from vtc.commands.eval import main
from vtc.errors import VTCError
from vtc.eval.common.records import read_lines, read_manifest
from vtc.eval.common.settings import plan
from vtc.eval.efficiency import run as runs
from vtc.eval.efficiency.lines import MEASURES, read_measures
from vtc.eval.efficiency.shapes import Depth

METHODS = ["uniform", "globalcom2"]


@pytest.fixture
def small():
    """A narrow LLaVA-1.5 of one layer out of two."""
    return subject("llava-1.5-7b", Depth(1, 2), Depth(2, 2))


def measure(subject, folder, methods=METHODS, rounds=2, **more):
    return runs.measure(subject, plan(methods, [0.1]), ["sdpa"], rounds, 2, folder, **more)


def test_command(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["efficiency", "--methods", "uniform,tokenflex,recoverable", "--retention", "0.25"]
    arguments += ["--rounds", "2", "--new-tokens", "3", "--quiet", "--output", str(folder)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "reference, 4 + 5 layers" in printed and "tokenflex" in printed
    lines = {line.method: line for line in read_measures(folder)}
    assert set(lines) == {"none", "uniform", "tokenflex", "recoverable"}
    full, uniform = lines["none"], lines["uniform"]
    assert full.measures["ttft"].ratio.median == 1
    for line in lines.values():
        assert set(line.measures) == set(MEASURES) and line.rounds == 2 and not line.partial
        assert line.error is None and line.extrapolated == {}
        assert line.prompt_full - line.prompt == line.tokens_full - line.tokens
        cache = line.measures["kv_cache"]
        assert cache.ratio.median == line.prompt / line.prompt_full and cache.ideal.median == 1
        assert line.measures["prefill_flops"].ideal.median == 1
        assert line.measures["ttft"].ideal.rounds == 2
    assert uniform.patches == uniform.patches_full // 4
    # the small CLIP of the checkpoint reads the question
    assert lines["recoverable"].measures["selection_flops"].value > 1e7
    # the trained projector comes with the checkpoint
    assert "ablation" not in " ".join(lines["tokenflex"].notes)

    manifest = read_manifest(folder)
    assert manifest["kind"] == "efficiency" and manifest["finished_rounds"] == 2
    assert manifest["command"].startswith("python -m vtc.eval")
    assert manifest["model"]["sha256"] and manifest["machine"]["device"] == "cpu"
    raw = list(read_lines(folder / "rounds.jsonl"))
    assert {entry["round"] for entry in raw} == {0, 1}
    assert sum(entry["setting"] == "uniform@0.25" for entry in raw) == 2

    assert main(arguments) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shape", "llava"], "shape: got 'llava', available are .*llava-next-7b"),
        (["--shape", "llava-next-7b", "--layers", "40"], "layers: got 40, allowed are 1 to 32"),
        (["--layers", "2"], "layers: got 2, but only shapes"),
        (["--attention", "fast"], "attention: got 'fast', allowed are sdpa"),
        (["--new-tokens", "1"], "new-tokens: got 1, allowed are 2"),
        (["--retention", "2"], "retention: got 2"),
        (["--methods", "best"], "method: got 'best', available are"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, more, message):
    assert main(["efficiency", "--quiet", "--output", str(tmp_path / "run"), *more]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error


def test_a_shape_of_reduced_depth_says_what_is_extrapolated(small, tmp_path):
    found = measure(small, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    assert manifest["layers"] == {"language": 1, "vision": 2}
    assert manifest["published_layers"] == {"language": 2, "vision": 2}
    for line in read_measures(tmp_path / "run"):
        assert set(line.extrapolated) == set(MEASURES)
        cache = line.extrapolated["kv_cache"].value
        assert cache == 2 * line.measures["kv_cache"].value
        assert line.tokens_full == 576 and line.tokens == (576 if line.method == "none" else 57)
    assert found.rounds == 2


def test_a_method_that_does_not_work_here_is_a_row_with_its_reason(tmp_path):
    model = subject("qwen2.5-vl-7b", Depth(1, 8))
    found = measure(model, tmp_path / "run", ["recoverable", "uniform"], rounds=1)
    full, recoverable, uniform = found.lines()
    assert "text_encoder: got None" in recoverable.error and recoverable.measures == {}
    assert full.error is uniform.error is None and uniform.measures["ttft"].ratio is not None


def test_out_of_memory_marks_the_row_and_goes_on(small, tmp_path, monkeypatch):
    def sometimes(subject, inputs, *more, times=[0]):  # noqa: B006
        compressed = hasattr(subject.model, "_vtc")
        if compressed and subject.model._vtc.patches[0].method.name == "uniform":
            times[0] += 1
            if times[0] == 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return runs_timed(subject, inputs, *more)

    runs_timed = runs.timed
    monkeypatch.setattr(runs, "timed", sometimes)
    measure(small, tmp_path / "run", rounds=3)
    full, uniform, globalcom2 = read_measures(tmp_path / "run")
    assert uniform.error == "out of memory" and uniform.rounds == 1
    assert uniform.measures["ttft"].ratio.rounds == 1
    assert full.rounds == globalcom2.rounds == 3 and globalcom2.error is None


def test_without_the_uncompressed_model_there_are_figures_but_no_ratios(
    small, tmp_path, monkeypatch
):
    def never(subject, inputs, *more):
        if not hasattr(subject.model, "_vtc") and "pixel_values" in inputs:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB")
        return runs_counted(subject, inputs, *more)

    runs_counted = runs.counted
    monkeypatch.setattr(runs, "counted", never)
    measure(small, tmp_path / "run", rounds=1)
    full, uniform, _ = read_measures(tmp_path / "run")
    assert full.error == "out of memory" and full.measures == {}
    assert uniform.measures["ttft"].value > 0 and uniform.measures["ttft"].ratio is None


def test_other_errors_are_not_swallowed(small, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(runs, "counted", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        measure(small, tmp_path / "run")


def test_an_interrupted_run_keeps_its_rounds(small, tmp_path, monkeypatch):
    calls = []

    def impatient(*args):
        calls.append(args)
        if len(calls) > 9:  # 3 settings and 2 ideals a round
            raise KeyboardInterrupt
        return runs_timed(*args)

    runs_timed = runs.timed
    monkeypatch.setattr(runs, "timed", impatient)
    with pytest.raises(KeyboardInterrupt):
        measure(small, tmp_path / "run", rounds=5)
    for line in read_measures(tmp_path / "run"):
        assert line.partial and line.rounds == 1 and line.measures["ttft"].ratio is not None
    assert "interrupted after 1 of 5 rounds" in read_manifest(tmp_path / "run")["warnings"]
    # what was timed in the unfinished round is there as well
    assert len(list(read_lines(tmp_path / "run" / "rounds.jsonl"))) == 9
    assert not hasattr(small.model, "_vtc")


def test_a_busy_machine_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    found = measure(small, tmp_path / "run", rounds=1)
    assert any("load average 99.0" in warning for warning in found.warnings)


def test_an_attention_that_is_not_there_is_a_row(small, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("may be there")
    settings = plan(["uniform"], [0.5])
    found = runs.measure(small, settings, ["sdpa", "flash_attention_2"], 1, 2, tmp_path / "run")
    lines = found.lines()
    assert [line.error is None for line in lines] == [True, True, False, False]
    assert "attention: cannot use 'flash_attention_2' here" in lines[2].error


def test_two_attentions_are_compared_with_the_first(small, tmp_path):
    settings = plan(["uniform"], [0.5])
    runs.measure(small, settings, ["sdpa", "eager"], 1, 2, tmp_path / "run")
    lines = read_measures(tmp_path / "run")
    assert [line.attention for line in lines] == ["sdpa", "sdpa", "eager", "eager"]
    assert lines[0].measures["ttft"].ratio.median == 1
    assert lines[2].measures["ttft"].ratio.median != 1
    # eager attention keeps its scores, SDPA does not
    assert lines[2].measures["peak_memory"].ratio.median > 1
    both = [json.loads(line.line())["measures"]["flops"]["value"] for line in lines]
    assert both[0] == both[2] and both[1] == both[3]


def test_a_used_folder_is_refused(small, tmp_path):
    (tmp_path / "something").write_text("here")
    with pytest.raises(VTCError, match="is not empty"):
        measure(small, tmp_path)
