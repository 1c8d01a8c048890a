"""`vtc.eval efficiency` of methods inside the language model: figures follow the cuts."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.eval.tiny_shapes import HEAD, KV, subject
from vtc.commands.eval import main
from vtc.errors import VTCError
from vtc.eval.common.records import read_manifest
from vtc.eval.common.settings import FULL, Setting, create, plan
from vtc.eval.efficiency import bare, passes
from vtc.eval.efficiency import run as runs
from vtc.eval.efficiency.flops import language_flops
from vtc.eval.efficiency.lines import read_measures
from vtc.eval.efficiency.shapes import Depth
from vtc.eval.efficiency.stages import parts
from vtc.eval.efficiency.stretches import Stretches, at_depth, published_cuts, stretches
from vtc.registry import create_method

TEXT, IMAGE = 9, 576  # tokens of the prompt of a narrow LLaVA-1.5
#: setting -> cuts of 8 layers, tokens of the image from there on
CUTS = {
    "fastv@own": ((1,), (288,)),
    "pyramiddrop@own": ((2, 4, 6), (288, 144, 72)),
    "vtw@own": ((4,), (0,)),
    "v2drop@own": ((1, 4, 6), (288, 144, 1)),
}


@pytest.fixture(scope="module")
def eight():
    """Eight layers of a narrow LLaVA-1.5 that has no more."""
    return subject("llava-1.5-7b", Depth(8, 2))


@pytest.fixture(scope="module")
def reduced():
    """Eight layers of one that has 32."""
    return subject("llava-1.5-7b", Depth(8, 2), Depth(32, 2))


def _lengths(cuts, counts, depth=8, tokens=IMAGE) -> list[int]:
    """By hand, one layer after the other."""
    out = []
    for layer in range(depth):
        if layer in cuts:
            tokens = counts[cuts.index(layer)]
        out.append(TEXT + tokens)
    return out


@pytest.mark.parametrize("name", CUTS)
def test_counts_follow_the_cuts(reduced, name, tmp_path):
    method = name.partition("@")[0]
    run = runs.measure(reduced, plan([method], [None]), ["sdpa"], 1, 2, tmp_path / "run")
    full, line = run.lines()
    want = _lengths(*CUTS[name])
    assert list(line.lengths) == want and set(full.lengths) == {TEXT + IMAGE}
    assert line.error is None and not [note for note in line.notes if "formula" in note]
    figures = {key: value.value for key, value in line.measures.items()}
    assert figures["kv_cache"] == sum(2 * KV * HEAD * 4 * length for length in want)
    text = reduced.model.config.text_config
    formula = language_flops(text, want)
    own = figures["prefill_flops"] - figures["inside_flops"]
    assert own in (formula, formula + want[0] * HEAD)
    # attention has to be read, differences and nothing need not be
    assert (figures["inside_flops"] > 0) == (method in ("fastv", "pyramiddrop"))
    assert figures["inside_time"] > 0 and full.measures["inside_time"].value == 0
    assert line.tokens == IMAGE and line.prompt == line.prompt_full == TEXT + IMAGE
    # the ideal has the same lengths, and nothing else
    assert line.measures["kv_cache"].ideal.median == 1
    prefill = line.measures["prefill_flops"]
    assert prefill.ideal.median == pytest.approx(prefill.value / own)
    assert line.measures["prefill_time"].ideal.rounds == 1


def test_the_published_depth_has_the_published_cuts(reduced, tmp_path):
    """FastV cuts 32 layers behind 2, which are 1/16; of 8 layers the first is 1/8."""
    settings = [FULL, Setting("fastv", None), Setting("pyramiddrop", 0.6)]
    run = runs.measure(reduced, settings, ["sdpa"], 1, 2, tmp_path / "run")
    full, fastv, pyramid = run.lines()
    wide = 2 * KV * HEAD * 4
    cache = 2 * (TEXT + IMAGE) + 30 * (TEXT + IMAGE // 2)
    assert fastv.extrapolated["kv_cache"].value == wide * cache
    assert fastv.average_tokens == pytest.approx((2 * IMAGE + 30 * IMAGE // 2) / 32, abs=1e-3)
    counts = create_method("pyramiddrop", retention=0.6).counts(IMAGE, 32)
    assert list(pyramid.lengths) == _lengths((2, 4, 6), counts)
    average = 8 * (IMAGE + sum(counts)) / 32
    assert pyramid.average_tokens == pytest.approx(average, abs=1e-3)
    assert 0.59 < average / IMAGE <= 0.6
    text = reduced.model.config.text_config
    deep = [TEXT + IMAGE] * 2 + [TEXT + IMAGE // 2] * 30
    found = fastv.extrapolated["prefill_flops"].value - fastv.extrapolated["inside_flops"].value
    flops = language_flops(text, deep)
    assert found in (flops, flops + (TEXT + IMAGE) * HEAD)
    assert fastv.extrapolated["prefill_time"].ideal is not None
    assert full.average_tokens == IMAGE


def test_what_is_extrapolated_is_what_the_deep_model_has():
    found = []
    for depth in (Depth(4, 2), Depth(16, 2)):
        model = subject("llava-1.5-7b", depth, Depth(16, 2))
        (method,) = runs._methods(model, Setting("pyramiddrop", None))
        cuts = stretches(method, depth.language, 16)
        with vtc.compress(model.model, method):
            found.append(passes.counted(model, model.inputs(0), model.weights, cuts))
    ahead, there = found[0].extrapolated, found[1].figures
    for figure in ("prefill_flops", "inside_flops", "flops", "kv_cache"):
        assert ahead[figure] == pytest.approx(there[figure], rel=1e-9), figure
    assert found[1].extrapolated == there


def test_behind_a_method_in_front_the_product_is_reported(eight, tmp_path):
    settings = plan(["random+fastv"], [0.5])
    assert [setting.key for setting in settings] == ["none@1", "random+fastv@0.5"]
    run = runs.measure(eight, settings, ["sdpa"], 1, 2, tmp_path / "run")
    _, line = run.lines()
    assert line.error is None, line.error
    assert list(line.lengths) == _lengths((1,), (144,), tokens=288)
    assert (line.tokens, line.patches, line.patches_full) == (288, 288, IMAGE)
    assert line.average_tokens == (288 + 7 * 144) / 8
    assert line.measures["kv_cache"].ideal.median == 1
    assert read_measures(tmp_path / "run")[1] == line


def test_a_budget_that_cannot_be_had_is_a_row_with_its_reason(reduced, tmp_path):
    run = runs.measure(reduced, plan(["fastv"], [0.05]), ["sdpa"], 1, 2, tmp_path / "run")
    full, fastv = run.lines()
    assert "2 of 32 layers come before the first cut of 'fastv'" in fastv.error
    assert full.error is None and fastv.measures == {}


def test_cuts_that_do_not_fit_into_few_layers_are_a_row_with_its_reason(tmp_path):
    """One language layer is what a shape has on a CPU unless it is asked for more."""
    one = subject("llava-1.5-7b", Depth(1, 2), Depth(32, 2))
    settings = plan(["random", "pyramiddrop"], [0.5])
    full, front, behind = runs.measure(one, settings, ["sdpa"], 1, 2, tmp_path / "run").lines()
    assert full.error is None and front.error is None and front.measures
    assert "3 cut(s) do not fit into a language model of 1 layer(s)" in behind.error


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_stand_in_is_the_language_model_on_short_sequences(eight, attention):
    """Its logits are those of layers that are called by hand."""
    model, lengths = eight.model, [40, 40, 25, 25, 10, 10, 10, 10]
    model.set_attn_implementation(attention)
    layers = parts(model)[3]
    prompt = passes.embeddings(eight, 40)
    with torch.no_grad():
        with bare.fed(layers, lengths):
            out = model.generate(
                **prompt,
                max_new_tokens=2,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        hidden, lm = prompt["inputs_embeds"], model.model.language_model
        places = torch.arange(40)[None]
        for layer, length in zip(lm.layers, lengths, strict=True):
            hidden, places = hidden[:, -length:], places[:, -length:]
            mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
            out_of = layer(
                hidden,
                position_embeddings=lm.rotary_emb(hidden, places),
                attention_mask=mask[None, None],
            )
            hidden = out_of[0] if isinstance(out_of, tuple) else out_of
        logits = model.lm_head(lm.norm(hidden[:, -1]))
    model.set_attn_implementation("sdpa")
    assert torch.allclose(out.logits[0], logits, atol=1e-5)
    held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert held == [length + 1 for length in lengths]
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_stretches():
    two = Stretches((1, 3), (2, 14))
    assert two.whole([5.0, 1.0, 2.0, 3.0]) == 2 * 5 + 14 * 2
    assert two.missing([5.0, 1.0, 2.0, 3.0]) == 38 - 11
    assert two.mean([5.0, 1.0, 2.0, 3.0]) == 38 / 16
    assert Stretches((2,), (2,)).missing([1.0, 0.1]) == 0
    method = at_depth(create_method("fastv", layer=3), 32)
    assert method.cuts(8) == (1,) and published_cuts(method, 32) == (3,)
    assert stretches(method, 8, 32) == Stretches((1, 7), (3, 29))
    # a share that is an average over layers is one over the published layers
    half = create_method("fastv", retention=0.5)
    assert at_depth(half, 32).counts(IMAGE, 8) == half.counts(IMAGE, 32) != half.counts(IMAGE, 8)
    assert type(at_depth(half, 32)).__name__ == "FastV"


def test_settings_of_several_methods():
    options = {"fastv": {"layer": 3}, "random": {"seed": 4}}
    full, setting = plan(["random+fastv"], [0.25], seeds=3, options=options)
    front, behind = create(setting)
    assert (front.retention, front.seed, behind.retention, behind.layer) == (0.25, 4, None, 3)
    drawn = plan(["random+fastv"], [0.25], seeds=2)[1:]
    assert [create(setting)[0].seed for setting in drawn] == [0, 1]
    # retention 1 of the first is not the uncompressed model
    assert len(plan(["random+fastv"], [1.0])) == 2 and len(plan(["random"], [1.0])) == 1
    for methods, retention, more, message in (
        (["random+grid"], 0.5, {}, "method: got 'grid'"),
        (["random+uniform"], 0.5, {}, "both work at the same place"),
        (["random+fastv"], None, {}, "none of random.fastv has its own count"),
        (["random+fastv"], 0.5, {"vtw": {"layer": 3}}, "options of 'vtw'"),
        (["random+fastv"], 0.5, {"random": {"retention": 0.1}}, "random.retention is given"),
    ):
        with pytest.raises(VTCError, match=message):
            plan(methods, [retention], options=more)


def test_command(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = "efficiency --shape llava-1.5-7b --width 0.03125 --layers 8 --vision-layers 2"
    arguments += " --methods fastv,random+fastv --retention own,0.5 --rounds 1 --new-tokens 2"
    assert main([*arguments.split(), "--quiet", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "llava-1.5-7b, 0.03125 of its width, 8 + 2 layers" in printed
    settings = {line.setting: line for line in read_measures(folder)}
    assert list(settings) == ["none@1", "fastv@own", "fastv@0.5", "random+fastv@0.5"]
    assert all(line.error is None for line in settings.values())
    assert settings["random+fastv@0.5"].average_tokens == 288 / 32 * 2 + 144 / 32 * 30
    half = settings["fastv@0.5"].average_tokens / IMAGE
    assert 0.49 < half <= 0.5
    assert read_manifest(folder)["width"] == 0.03125
    assert main(["efficiency", "--width", "0.5", "--output", str(tmp_path / "other")]) == 1
    assert "width: got 0.5, but only shapes" in capsys.readouterr().err
