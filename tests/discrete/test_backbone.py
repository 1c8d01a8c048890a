"""The transformer: causality, caches, positions, conditions."""

import pytest
import torch

from vtc import VTCError
from vtc.discrete import masks
from vtc.discrete.backbone import (
    KVCache,
    TimeEmbedding,
    Transformer,
    TransformerConfig,
    apply_rope,
    grid_coordinates,
    rope_table,
    sinusoid,
    swiglu_hidden,
)

VARIANTS: dict[str, dict] = {
    "llama": {"rope": (4, 4)},
    "normed": {"qk_norm": True, "rope": (4, 4), "ffn": "gelu"},
    "tables": {"block_positions": 12, "context_dim": 6, "norm": "layer"},
    "adaptive": {"adaptive": True, "final_norm": "adaptive", "rope": (8,), "ffn": "geglu"},
    "stages": {"depth": (1, 2), "positions": 12, "input_norm": True, "qkv_bias": True},
    "bert": {"post_norm": True, "norm": "layer", "ffn": "gelu_tanh", "cross_dim": 5},
}


def build(name: str) -> tuple[Transformer, dict]:
    """A tiny transformer with weights that matter, and what it reads besides x."""
    torch.manual_seed(0)
    options = {"depth": 2, **VARIANTS[name]}
    model = Transformer(TransformerConfig(16, options.pop("depth"), 2, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    given: dict = {}
    if model.config.adaptive:
        given["condition"] = torch.randn(2, 1, 16)
    if model.config.context_dim:
        given["context"] = [torch.randn(2, 3, 6), torch.randn(2, 3, 6)]
        given["context_valid"] = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    if model.config.cross_dim:
        given["source"] = torch.randn(2, 4, 5)
    return model, given


def table(model: Transformer, rows: slice = slice(None)):
    rope = model.rope(torch.randn(10, len(model.config.rope) or 1, generator=torch.manual_seed(1)))
    return None if rope is None else (rope[0][rows], rope[1][rows])


@pytest.mark.parametrize("name", VARIANTS)
def test_causal(name: str) -> None:
    model, given = build(name)
    x = torch.randn(2, 10, 16)
    changed = x.clone()
    changed[:, 6:] = torch.randn(2, 4, 16)
    before, after = (model(v, masks.causal(10), table(model), **given) for v in (x, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sizes", [(1,) * 10, (4, 1, 5), (10,)])
def test_cached_equals_uncached(name: str, sizes: tuple[int, ...]) -> None:
    model, given = build(name)
    x = torch.randn(2, 10, 16)
    full = model(x, masks.block_causal(sizes), table(model), **given)
    cache, parts, start = KVCache(), [], 0
    for size in sizes:
        rows = slice(start, start + size)
        rope = table(model, rows)
        model(x[:, rows] * 3, None, rope, cache=cache, commit=False, **given)  # leaves no trace
        parts.append(model(x[:, rows], None, rope, cache=cache, **given))
        start += size
    assert torch.allclose(torch.cat(parts, dim=1), full, atol=2e-5)


def test_padded_context_is_not_seen() -> None:
    model, given = build("tables")
    x = torch.randn(2, 5, 16)
    before = model(x, None, None, **given)
    given["context"][0][0, 2] += 5
    given["context"][1][0, 2] += 5
    assert torch.equal(model(x, None, None, **given), before)
    given["context"][0][0, 1] += 5
    assert not torch.allclose(model(x, None, None, **given), before)


def test_rope_depends_on_differences_and_keeps_norms() -> None:
    x = torch.randn(1, 1, 2, 12)
    near = apply_rope(x, rope_table(torch.tensor([[1.0, 2.0], [4.0, 7.0]]), (4, 8)))
    far = apply_rope(x, rope_table(torch.tensor([[11.0, 32.0], [14.0, 37.0]]), (4, 8)))
    assert torch.allclose(near.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    dot = [(v[..., 0, :] * v[..., 1, :]).sum() for v in (near, far)]
    assert torch.allclose(dot[0], dot[1], atol=1e-4)


def test_stretched_grids_span_the_same_range() -> None:
    small, large = grid_coordinates((2, 4), 8.0), grid_coordinates((4, 8), 8.0)
    for grid in (small, large):
        assert grid.min(0).values.tolist() == [0, 0] and grid.max(0).values.tolist() == [7, 7]
    assert grid_coordinates((2, 3)).tolist()[-1] == [1, 2]
    assert grid_coordinates((1, 1), 8.0).tolist() == [[0, 0]]


def test_adaptive_blocks_start_as_the_identity() -> None:
    model = Transformer(TransformerConfig(8, 2, 2, adaptive=True, final_norm="none"))
    x = torch.randn(1, 3, 8)
    assert torch.equal(model(x, condition=torch.randn(1, 1, 8)), x)


def test_time_embeddings() -> None:
    t = torch.tensor([0.0, 0.4321])
    assert TimeEmbedding(6, 0)(t).shape == (2, 6)
    assert TimeEmbedding(6, 8)(t[:, None]).shape == (2, 1, 6)
    assert sinusoid(t, 5).shape == (2, 5) and (sinusoid(t, 5)[:, -1] == 0).all()
    assert swiglu_hidden(1024) == 2816


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 3},
        {"rope": (4, 2)},
        {"rope": (5, 3)},
        {"ffn": "relu"},
        {"norm": "batch"},
        {"final_norm": "x"},
    ],
)
def test_bad_config(options: dict) -> None:
    with pytest.raises(VTCError):
        TransformerConfig(**{"dim": 16, "depth": 1, "heads": 2, **options})


def test_bad_calls() -> None:
    adaptive, _ = build("adaptive")
    with pytest.raises(VTCError, match="condition"):
        adaptive(torch.zeros(1, 2, 16))
    with pytest.raises(VTCError, match="coordinates"):
        adaptive.rope(torch.zeros(2, 2))
    tables, _ = build("tables")
    with pytest.raises(VTCError, match="position table has 12"):
        tables(torch.zeros(1, 13, 16))
    with pytest.raises(VTCError, match="context"):
        tables(torch.zeros(1, 2, 16), context=[torch.zeros(1, 1, 6)])
