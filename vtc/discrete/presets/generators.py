"""Generators of published systems, and their `tiny_` twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.discrete.backbone import TransformerConfig, swiglu_hidden
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.objectives import Objective
from vtc.discrete.plans import Plan, create_plan
from vtc.discrete.presets.shared import Options, preset, split_decomposition, two_axes
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError

GENERATORS: dict[str, Callable[..., Generator]] = {}


_generator = preset(GENERATORS)


#: Width, layers, heads of ELM's language models.
ELM_SIZES = {"L": (1024, 24, 16), "XL": (1280, 36, 20), "XXL": (1536, 48, 24), "2B": (1792, 48, 28)}
#: Width, layers of each half, heads of xAR.
XAR_SIZES = {"B": (768, 8, 12), "L": (1024, 16, 16), "H": (1280, 20, 16)}


def _size(table: dict[str, tuple[int, int, int]], name: str) -> tuple[int, int, int]:
    if name not in table:
        raise VTCError(f"size: got {name!r}, available are {', '.join(table)}")
    return table[name]


def _llama(dim: int, depth: int, heads: int, hidden: int, dropout: float) -> TransformerConfig:
    rope = two_axes(dim, heads)
    return TransformerConfig(
        dim, depth, heads, hidden=hidden, norm_eps=1e-5, rope=rope, dropout=dropout
    )


def _elm(size: str, decomposition: str, grid: int, classes: int, **how: str) -> Generator:
    dim, depth, heads = _size(ELM_SIZES, size)
    parts, width = split_decomposition(decomposition)
    space = CodeSpace(grid * grid, (2**width,) * parts, (grid, grid))
    config = _llama(dim, depth, heads, swiglu_hidden(dim), 0.1)
    return Generator(GeneratorConfig(space, config, classes=classes, **how))  # type: ignore[arg-type]


@_generator
def elm_ar(
    size: str = "L", decomposition: str = "2-10", grid: int = 16, classes: int = 1000
) -> Generator:
    """ELM's autoregressive model: a class in front, sub-codes of a token predicted in parallel."""
    return _elm(size, decomposition, grid, classes)


@_generator
def elm_mlm(
    size: str = "L", decomposition: str = "2-10", grid: int = 16, classes: int = 1000
) -> Generator:
    """ELM's masked model: sub-codes one after the other, one table in and out."""
    how = {"head": "tied", "objective": "masked_token", "sampler": "maskgit"}
    return _elm(size, decomposition, grid, classes, **how)


@_generator
def token_unify(
    size: str = "L", decomposition: str = "1-10", grid: int = 16, classes: int = 1000
) -> Generator:
    """TokenUnify's mixture (arXiv 2405.16847) of masked, next and next-all tokens, on codes."""
    return _elm(size, decomposition, grid, classes, objective="mixture")


def _instella(tokens: int, bits: int, text: int, **how: Any) -> Generator:
    diffusion = bool(how)
    config = TransformerConfig(
        2048,
        16,
        16,
        ffn="gelu_tanh",
        norm="layer" if diffusion else "rms",
        qk_norm=True,
        ffn_bias=True,
        block_positions=tokens,
        context_dim=text,
        adaptive=diffusion,
        final_norm="adaptive" if diffusion else "plain",
    )
    return Generator(GeneratorConfig(CodeSpace(tokens, (2,) * bits), config, "bit", **how))


@_generator
def instella_ar(tokens: int = 128, bits: int = 64, text: int = 2048) -> Generator:
    """Instella-T2I's autoregressive model: all bits of a token at once, text features a layer."""
    return _instella(tokens, bits, text)


@_generator
def instella_diffusion(tokens: int = 128, bits: int = 64, text: int = 2048) -> Generator:
    """Instella-T2I's bit diffusion, text features a layer, adaLN on the time."""
    how = {"time": "scalar", "objective": "bit_diffusion", "sampler": "bit_diffusion"}
    return _instella(tokens, bits, text, **how)


def _xar(
    config: TransformerConfig, grid: int, channels: int, plan: str | Plan, classes: int
) -> Generator:
    return Generator(
        GeneratorConfig(
            CodeSpace(grid * grid, (2,), (grid, grid)),
            config,
            plan=plan,
            classes=classes,
            class_as="adaptive",
            time="sinusoid",
            channels=channels,
            objective="next_x",
            sampler="next_x",
        )
    )


@_generator
def xar_cell(
    size: str = "B",
    grid: int = 16,
    channels: int = 16,
    plan: str | Plan = "cell:8",
    classes: int = 1000,
) -> Generator:
    """xAR (arXiv 2502.20388): flow matching of one cell after another on continuous latents."""
    dim, depth, heads = _size(XAR_SIZES, size)
    config = TransformerConfig(
        dim,
        (depth, depth),
        heads,
        ffn="geglu",
        hidden=int(dim * 8 / 3),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        rope=two_axes(dim, heads),
        positions=grid * grid,
        input_norm=True,
        adaptive=True,
        dropout=0.1,
    )
    return _xar(config, grid, channels, plan, classes)


def _tiny(dim: int, depth: int, **how: Any) -> TransformerConfig:
    return TransformerConfig(dim, depth, 4, rope=two_axes(dim, 4), **how)


@_generator
def tiny_elm_ar(
    space: CodeSpace, classes: int = 10, dim: int = 64, depth: int = 3, plan: str | Plan = "raster"
) -> Generator:
    """`elm_ar` for the codes of a tiny tokenizer."""
    return Generator(GeneratorConfig(space, _tiny(dim, depth), plan=plan, classes=classes))


@_generator
def tiny_elm_mlm(
    space: CodeSpace, classes: int = 10, dim: int = 64, depth: int = 3, head: str = "tied"
) -> Generator:
    """`elm_mlm` for the codes of a tiny tokenizer; head "index" predicts sub-codes in parallel."""
    how: Options = {"objective": "masked_token", "sampler": "maskgit"}
    return Generator(GeneratorConfig(space, _tiny(dim, depth), head, classes=classes, **how))


@_generator
def tiny_token_unify(
    space: CodeSpace,
    classes: int = 10,
    dim: int = 64,
    depth: int = 3,
    objective: str | Objective = "mixture",
) -> Generator:
    """`token_unify` for the codes of a tiny tokenizer."""
    config = GeneratorConfig(space, _tiny(dim, depth), classes=classes, objective=objective)
    return Generator(config)


@_generator
def tiny_instella_ar(
    space: CodeSpace, classes: int = 10, dim: int = 64, depth: int = 3, words: int = 0
) -> Generator:
    """`instella_ar` told the class by a token, or a text of `words` different words."""
    config = _tiny(dim, depth, qk_norm=True, context_dim=dim if words else 0)
    told = {"words": words} if words else {"classes": classes}
    return Generator(GeneratorConfig(space, config, "bit", **told))  # type: ignore[arg-type]


@_generator
def tiny_instella_diffusion(
    space: CodeSpace, classes: int = 10, dim: int = 64, depth: int = 3, words: int = 0
) -> Generator:
    """`instella_diffusion` told the class by adaLN, or a text of `words` different words."""
    context = dim if words else 0
    config = _tiny(
        dim, depth, qk_norm=True, adaptive=True, final_norm="adaptive", context_dim=context
    )
    return Generator(
        GeneratorConfig(
            space,
            config,
            "bit",
            classes=0 if words else classes,
            words=words,
            class_as="adaptive",
            time="scalar",
            objective="bit_diffusion",
            sampler="bit_diffusion",
        )
    )


@_generator
def tiny_xar_cell(
    grid: int = 8,
    channels: int = 1,
    plan: str | Plan = "cell:4",
    classes: int = 10,
    dim: int = 64,
    depth: int = 3,
) -> Generator:
    """`xar_cell` for small images: on pixels, or on the features of a tiny tokenizer."""
    rows = 0 if create_plan(plan, (grid, grid)).averages else grid * grid  # of one scale
    config = _tiny(dim, depth, positions=rows, adaptive=True, ffn="geglu")
    return _xar(config, grid, channels, plan, classes)
