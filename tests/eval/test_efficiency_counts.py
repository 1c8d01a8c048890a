"""FLOPs, bytes and tokens that `vtc.eval efficiency` counts, against formulas."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import vtc
from tests.eval.tiny_shapes import HEAD, KV, narrow, subject
from tests.families import mllama
from tests.hf.tiny import snapshot
from vtc.errors import VTCError
from vtc.eval.common.memory import peak_allocated
from vtc.eval.efficiency import passes, run
from vtc.eval.efficiency.flops import counter, encoder_flops, language_flops
from vtc.eval.efficiency.memory import weight_bytes
from vtc.eval.efficiency.shapes import SHAPES, Depth, build, narrowed
from vtc.eval.efficiency.stages import Stages
from vtc.eval.reference import checkpoint_path, load_reference
from vtc.methods.resize import Resize
from vtc.methods.tokenflex import TokenFlex

CPU = torch.device("cpu")
#: name -> depth of the narrow model, visual tokens of a picture of 300 x 200 pixels
CASES = {
    "llava-1.5-7b": (Depth(2, 3), 576),
    # a thumbnail; of 1 x 2 crops 24 rows of 36 patches are no padding, each with a newline
    "llava-next-7b": (Depth(2, 3), 576 + 24 * 37),
    "qwen2.5-vl-7b": (Depth(2, 8), 11 * 7),
    "internvl3-8b": (Depth(2, 2), 7 * 256),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A narrow model."""
    return subject(request.param, CASES[request.param][0])


def _tokens(model, inputs) -> int:
    return int((inputs["input_ids"] == model.config.image_token_id).sum())


def _language_flops(text, prompt) -> tuple[int, int]:
    """What the formula says, and the same with the rotary angles, which older transformers make by a
    product of matrices."""
    axes = 3 if "mrope_section" in (text.rope_parameters or {}) else 1
    flops = language_flops(text, [prompt] * text.num_hidden_layers)
    return flops, flops + axes * prompt * HEAD


def test_a_prompt_has_as_many_placeholders_as_the_model_wants(case):
    inputs = case.inputs(0)
    expected = CASES[case.name][1]
    tokens = _tokens(case.model, inputs)
    features = case.model.get_image_features(
        **{key: value for key, value in inputs.items() if key.startswith(("pixel", "image_"))}
    ).pooler_output
    rows = sum(len(part.flatten(0, -2)) for part in features)
    assert tokens == rows == expected
    assert not torch.equal(case.inputs(0)["input_ids"], case.inputs(1)["input_ids"])
    assert inputs["input_ids"].shape[1] == tokens + 9 + case.name.startswith("qwen")


@pytest.mark.parametrize("method", [None, "uniform", "globalcom2"])
def test_counts_are_what_the_formulas_say(case, method):
    inputs = case.inputs(0)
    prompt = inputs["input_ids"].shape[1]
    if method is None:
        found = passes.counted(case, inputs, case.weights)
    else:
        with vtc.compress(case.model, method, retention=0.25) as handle:
            found = passes.counted(case, inputs, case.weights)
        report = handle.reports[-1]
        prompt -= report.total("tokens_before") - report.total("tokens_after")
    text = case.model.config.text_config
    figures = found.figures
    assert figures["vision_flops"] == encoder_flops(case.model.config, inputs, found.layers)
    assert figures["prefill_flops"] in _language_flops(text, prompt)
    assert figures["kv_cache"] == 2 * text.num_hidden_layers * KV * HEAD * prompt * 4
    parts = [figures[f"{stage}_flops"] for stage in ("vision", "selection", "prefill")]
    assert figures["flops"] == sum(parts)
    assert (parts[1] == 0) == (method in (None, "uniform"))
    # weights, and at least the cache and the logits
    assert figures["peak_memory"] > case.weights + figures["kv_cache"]


def test_the_tower_of_llava_runs_one_layer_less_when_nobody_reads_it():
    model = subject("llava-1.5-7b", Depth(1, 3))
    inputs = model.inputs(0)
    assert passes.counted(model, inputs, 0).layers == 3
    with vtc.compress(model.model, "uniform", retention=0.5):
        assert passes.counted(model, inputs, 0).layers == 2
    with vtc.compress(model.model, "globalcom2", retention=0.5):
        assert passes.counted(model, inputs, 0).layers == 3


@pytest.mark.parametrize(
    ("name", "method"),
    [("llava-1.5-7b", "none"), ("llava-1.5-7b", "uniform"), ("qwen2.5-vl-7b", "globalcom2")],
)
def test_what_is_extrapolated_is_what_the_deep_model_has(name, method):
    published = Depth(3, 16)
    small = subject(name, Depth(1, 8), published, size=(200, 120))
    deep = subject(name, published, size=(200, 120))
    found = []
    for model in (small, deep):
        inputs = model.inputs(0)
        passes.counted(model, inputs, 0)
        with vtc.compress(model.model, method, retention=0.5):
            found.append(passes.counted(model, inputs, model.weights))
    ahead, there = found[0].extrapolated, found[1].figures
    for figure in ("vision_flops", "selection_flops", "prefill_flops", "flops", "kv_cache"):
        assert ahead[figure] == pytest.approx(there[figure], rel=1e-9), figure
    assert found[1].extrapolated == there
    assert small.true_weights == deep.weights
    # only about: what lives beside the weights at the peak is not followed layer by layer
    assert ahead["peak_memory"] == pytest.approx(there["peak_memory"], rel=0.1)


def test_the_language_model_alone_runs_on_embeddings():
    model = subject("llava-1.5-7b", Depth(2, 2))
    found = passes.counted(model, passes.embeddings(model, 50), 0)
    assert found.figures["vision_flops"] == 0 and found.encoder is None
    assert found.figures["prefill_flops"] == found.figures["flops"]
    assert found.figures["flops"] in _language_flops(model.model.config.text_config, 50)


def test_times_have_every_figure_and_add_up():
    model = subject("llava-1.5-7b", Depth(1, 2), Depth(5, 2))
    with vtc.compress(model.model, "globalcom2", retention=0.5):
        found = passes.timed(model, model.inputs(0), 3)
    figures = found.figures
    assert set(figures) == set(found.extrapolated)
    stages = [figures[f"{stage}_time"] for stage in ("vision", "selection", "prefill")]
    assert all(stage > 0 for stage in stages) and sum(stages) < figures["ttft"]
    assert found.extrapolated["vision_time"] == figures["vision_time"]
    assert found.extrapolated["selection_time"] == figures["selection_time"]
    more = found.extrapolated["prefill_time"] - figures["prefill_time"]
    assert 0 < more < 4 * figures["prefill_time"]
    assert found.extrapolated["ttft"] == pytest.approx(figures["ttft"] + more)
    assert found.extrapolated["decode_speed"] < figures["decode_speed"]


def test_attention_is_counted_on_a_cpu():
    query = torch.randn(1, 2, 30, 8)
    with torch.no_grad(), counter() as flops:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert flops.get_total_flops() == 4 * 2 * 30 * 30 * 8


def test_peak_is_what_lives_at_the_same_time():
    def call() -> None:
        first = torch.ones(1000, 250)  # 1 MB
        second = torch.ones(1000, 500)  # 2 MB
        del first
        third = torch.ones(1000, 125)  # 0.5 MB
        del second, third

    assert peak_allocated(call, CPU) == 3_000_000


def test_peak_sees_what_an_operator_needs_inside():
    values = torch.randn(1000, 250)
    # the scores of the softmax live only inside the function
    assert peak_allocated(lambda: values.softmax(1).sum(), CPU) >= values.nbytes


def test_weights_count_shared_storage_once():
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10))
    model[1].weight = model[0].weight
    assert weight_bytes([model, model[0].weight, "no weights", None]) == 4 * (100 + 10)
    with torch.device("meta"):
        twins = [torch.nn.Linear(10, 10, bias=False) for _ in range(2)]
    assert weight_bytes(twins) == 800


def test_weights_that_a_later_method_brings_count():
    model, processor = load_reference()
    folder = str(checkpoint_path() / "tokenflex")
    stored = load_file(checkpoint_path() / "tokenflex" / "projector.safetensors")
    methods = [Resize(tokens=160), TokenFlex(projector=folder)]
    with vtc.compress(model, methods, processor=processor) as handle:
        assert weight_bytes(run._brought(handle)) == sum(each.nbytes for each in stored.values())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llava-1.5-7b", 7.063), ("qwen2.5-vl-7b", 8.292), ("internvl3-8b", 7.944)],
)
def test_shapes_have_the_published_size(name, billions):
    shape = SHAPES[name]
    model = build(shape.config(shape.depth), "meta", torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(billions * 1e9, rel=1e-4)


def test_depth_is_checked():
    assert SHAPES["llava-next-7b"].reduced(None, None) == Depth(32, 24)
    assert SHAPES["qwen2.5-vl-7b"].reduced(2, 16) == Depth(2, 16)
    for name, layers, vision in (
        ("llava-next-7b", 33, 4),
        ("llava-next-7b", 1, 1),
        ("llava-next-7b", 1, 25),
        ("qwen2.5-vl-7b", 1, 12),
    ):
        with pytest.raises(VTCError, match="layers: got .* allowed are"):
            SHAPES[name].reduced(layers, vision)


def test_a_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr("vtc.eval.efficiency.subject._free_bytes", lambda device: 10**6)
    with pytest.raises(VTCError, match="needs .* GB, 0.0 GB are free"):
        subject("llava-1.5-7b", Depth(1, 2))


def test_marks_leave_nothing_behind():
    model = subject("llava-1.5-7b", Depth(1, 2))
    passes.counted(model, model.inputs(0), 0)  # transformers hangs its own recorder on, for good
    before, stages = snapshot(model.model), Stages(lambda: 0)
    with pytest.raises(RuntimeError, match="stop"):
        with stages.on(model.model):
            raise RuntimeError("stop")
    with vtc.compress(model.model, "uniform", retention=0.5), torch.no_grad():
        model.model(**model.inputs(0))
    assert snapshot(model.model) == before and not any(stages.marks.values())


def test_families_that_cannot_be_measured_say_so():
    with pytest.raises(VTCError, match="Mllama.* cannot be measured stage by stage"):
        with Stages(lambda: 0).on(mllama.build()):
            pass
    assert language_flops(narrow("internvl3-8b").config(Depth(1, 1)).vision_config, [3]) is None


def test_a_share_of_the_width():
    shape = narrowed(SHAPES["qwen2.5-vl-7b"], 0.25)
    text = shape.config(Depth(1, 8)).text_config
    assert (text.hidden_size, text.intermediate_size) == (896, 4736)
    assert (text.num_attention_heads, text.num_key_value_heads) == (7, 1)
    model = build(shape.config(Depth(1, 8)), "meta", torch.bfloat16)
    head = model.model.language_model.layers[0].self_attn.q_proj.out_features // 7
    assert head == 128 and model.model.visual.merger.mlp[-1].out_features == 896
    assert narrowed(shape, 1.0) is shape
    for width in (0.0, 0.3, 1.5, float("nan")):
        with pytest.raises(VTCError, match="width: got .*allowed are multiples of 1/4 up to 1"):
            narrowed(SHAPES["qwen2.5-vl-7b"], width)


def test_the_tower_may_be_a_dinov2():
    """Its configuration names the width of an MLP by its ratio, and it has a CLS token."""
    import transformers as tf

    from tests.families.models import llava

    vision = tf.Dinov2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        mlp_ratio=3,
    )
    model = llava(vision, vision_feature_layer=-1).eval()
    inputs = {"pixel_values": torch.randn(1, 3, 28, 28)}
    with torch.no_grad(), counter() as found:
        model.get_image_features(**inputs)
    assert found.get_total_flops() == encoder_flops(model.config, inputs, layers=2)
    model.config.vision_config.use_swiglu_ffn = True  # an MLP of another shape: no formula
    assert encoder_flops(model.config, inputs, layers=2) is None
