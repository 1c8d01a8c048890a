"""Published systems as presets: a name, the sizes of the paper, and a `tiny_` twin for a CPU.

A preset is a function of a few options; nothing that it builds knows the system's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.discrete.autoencoders import (
    EmbeddingDecoder,
    GridConfig,
    GridDecoder,
    GridEncoder,
    LatentConfig,
    LatentDecoder,
    LatentEncoder,
    PatchEncoder,
    QueryEncoder,
    TimmEncoder,
)
from vtc.discrete.backbone import TransformerConfig, swiglu_hidden
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.objectives import Objective
from vtc.discrete.plans import Plan, Pyramid, create_plan
from vtc.discrete.quantizers import create_quantizer
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError
from vtc.registry import create, names

Options = dict[str, Any]
TOKENIZERS: dict[str, Callable[..., ImageTokenizer]] = {}
GENERATORS: dict[str, Callable[..., Generator]] = {}


def _tokenizer(build: Callable[..., ImageTokenizer]) -> Callable[..., ImageTokenizer]:
    """Decorator: a tokenizer preset under the name of its function."""
    TOKENIZERS[build.__name__] = build
    return build


def _generator(build: Callable[..., Generator]) -> Callable[..., Generator]:
    """Decorator: a generator preset under the name of its function."""
    GENERATORS[build.__name__] = build
    return build


# -- building blocks --------------------------------------------------------------------------------


def _grid(
    config: GridConfig, size: int, quantizer: str, options: Options, parts: int = 0
) -> ImageTokenizer:
    return ImageTokenizer(
        GridEncoder(config),
        create_quantizer(quantizer, config.dim, **options),
        GridDecoder(config),
        (size, size),
        parts,
    )


def _latent(config: LatentConfig, size: int, quantizer: str, options: Options) -> ImageTokenizer:
    return ImageTokenizer(
        LatentEncoder(config),
        create_quantizer(quantizer, config.encoder.dim, **options),
        LatentDecoder(config),
        (size, size),
    )


#: The layers of BERT and of vision transformers.
PLAIN: Options = {
    "ffn": "gelu",
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
}


def _bert(dim: int, depth: int, heads: int, cross: int = 0) -> TransformerConfig:
    """Post-norm layers with biases; every other one reads a source of width `cross`."""
    return TransformerConfig(
        dim,
        depth,
        heads,
        norm_eps=1e-12,
        post_norm=True,
        final_norm="none",
        cross_dim=cross,
        cross_every=2,
        dropout=0.1,
        **PLAIN,
    )


def _decomposition(name: str) -> tuple[int, int]:
    """`"K-d"`: K sub-codes of d bits."""
    parts, _, width = name.partition("-")
    if not (parts.isdigit() and width.isdigit() and int(parts) and int(width)):
        raise VTCError(f"decomposition: got {name!r}, write sub-codes and bits, for example '2-10'")
    return int(parts), int(width)


def _head_dim(dim: int, heads: int, axes: int) -> int:
    """Width of a head, with at least one rotary pair for every axis."""
    step = 2 * heads
    if dim % step or dim < axes * step:
        raise VTCError(f"dim: got {dim}, allowed are multiples of {step} from {axes * step} on")
    return dim // heads


def _two_axes(dim: int, heads: int) -> tuple[int, int]:
    """Row and column share the rotary pairs of a head."""
    head = _head_dim(dim, heads, 2)
    return head - head // 4 * 2, head // 4 * 2


def _three_axes(dim: int, heads: int) -> tuple[int, int, int]:
    """Index, row and column: Instella's (8, 28, 28) of 64, in proportion."""
    head = _head_dim(dim, heads, 3)
    side = head * 7 // 32 * 2
    return head - 2 * side, side, side


# -- tokenizers -------------------------------------------------------------------------------------


@_tokenizer
def instella_1d(size: int = 1024, tokens: int = 128, bits: int = 64) -> ImageTokenizer:
    """Instella-T2I (arXiv 2506.21022): 128 tokens of 64 bits, decoded at any resolution."""
    shared: Options = {"qk_norm": True, "rope": _three_axes(768, 12)}
    config = LatentConfig(
        tokens,
        16,
        TransformerConfig(768, (8, 4), 12, **shared),
        TransformerConfig(1024, (8, 8), 16, **shared),
        extent=64,
    )
    return _latent(config, size, "bernoulli", {"bits": bits})


@_tokenizer
def titok(size: int = 256, tokens: int = 32, codes: int = 4096) -> ImageTokenizer:
    """After TiTok-L-32 (arXiv 2406.07550): ViT-L both ways, rotary positions, straight to pixels."""
    vit = TransformerConfig(1024, 24, 16, rope=_three_axes(1024, 16), **PLAIN)
    return _latent(LatentConfig(tokens, 16, vit, vit), size, "vq", {"size": codes, "code_dim": 12})


@_tokenizer
def seed_causal(
    size: int = 224, tokens: int = 32, backbone: str = "", pretrained: bool = True
) -> ImageTokenizer:
    """SEED (arXiv 2310.01218): a causal Q-Former over a frozen ViT-g; decodes to an embedding.

    Args:
        size: pixels.
        tokens: queries.
        backbone: name of a timm model for the frozen encoder; empty for a fresh ViT-g.
        pretrained: with timm's weights.
    """
    features: Any
    if backbone:
        features = TimmEncoder(backbone, pretrained, frozen=True)
    else:
        features = PatchEncoder(TransformerConfig(1408, 39, 16, hidden=6144, **PLAIN), 14, size)
        features.requires_grad_(False)
    encoder = QueryEncoder(tokens, _bert(768, 12, 12, features.dim), features=features)
    reader = QueryEncoder(1, _bert(768, 4, 12, 768), causal=False)
    blocks = TransformerConfig(768, 4, 12, positions=tokens, **PLAIN)
    decoder = EmbeddingDecoder(blocks, reader, 1024, separate=True)
    options: Options = {"size": 8192, "code_dim": 32, "legacy": True, "weight": 5.0, "head": "tanh"}
    return ImageTokenizer(encoder, create_quantizer("vq", 768, **options), decoder, (size, size))


@_tokenizer
def elm_bae(size: int = 256, decomposition: str = "2-10") -> ImageTokenizer:
    """ELM's binary autoencoder (arXiv 2410.16257): 16 x 16 tokens of K sub-codes with d bits."""
    parts, width = _decomposition(decomposition)
    options: Options = {"bits": parts * width, "temperature": 1.0}
    return _grid(GridConfig(norm_first=True), size, "bernoulli", options, parts)


@_tokenizer
def vqgan(size: int = 256, codes: int = 16384) -> ImageTokenizer:
    """ELM's baseline: the same convolutions and a codebook with the legacy loss."""
    return _grid(GridConfig(), size, "vq", {"size": codes, "legacy": True})


@_tokenizer
def ett(size: int = 256, codes: int = 131072) -> ImageTokenizer:
    """The tokenizer of end-to-end tuning (arXiv 2505.10562): index back-propagation, 2**17 codes."""
    return _grid(GridConfig(), size, "ibq", {"size": codes})


def _tiny_latent(
    size: int,
    patch: int,
    tokens: int,
    dim: int,
    depth: tuple[int, ...],
    quantizer: str,
    options: Options,
    causal: bool = False,
) -> ImageTokenizer:
    config = TransformerConfig(dim, depth, 4, qk_norm=True, rope=_three_axes(dim, 4))
    extent = float(size // patch)
    latent = LatentConfig(tokens, patch, config, config, extent=extent, causal=causal)
    return _latent(latent, size, quantizer, options)


@_tokenizer
def tiny_instella_1d(
    size: int = 8,
    patch: int = 2,
    tokens: int = 8,
    dim: int = 48,
    quantizer: str = "bernoulli",
    options: Options = {"bits": 8},  # noqa: B006
) -> ImageTokenizer:
    """`instella_1d` for small images: one change of resolution each way."""
    return _tiny_latent(size, patch, tokens, dim, (1, 1), quantizer, options)


@_tokenizer
def tiny_titok(
    size: int = 8,
    patch: int = 2,
    tokens: int = 8,
    dim: int = 48,
    quantizer: str = "vq",
    options: Options = {"size": 256, "code_dim": 12},  # noqa: B006
) -> ImageTokenizer:
    """`titok` for small images."""
    return _tiny_latent(size, patch, tokens, dim, (2,), quantizer, options)


@_tokenizer
def tiny_seed_causal(
    size: int = 8,
    patch: int = 2,
    tokens: int = 8,
    dim: int = 48,
    quantizer: str = "vq",
    options: Options = {"size": 256, "code_dim": 12, "legacy": True, "head": "tanh"},  # noqa: B006
    causal: bool = True,
) -> ImageTokenizer:
    """SEED's mechanism for small images: causal latents, but decoded to pixels."""
    return _tiny_latent(size, patch, tokens, dim, (2,), quantizer, options, causal)


def _tiny_grid(size: int, width: int, stride: int) -> GridConfig:
    levels = max(stride.bit_length(), 1)
    if 2 ** (levels - 1) != stride or size % stride:
        raise VTCError(f"stride: got {stride} for {size} pixels, take a power of two that divides")
    return GridConfig(width, (1,) + (2,) * (levels - 1), 1, dim=2 * width, norm_first=True)


@_tokenizer
def tiny_elm_bae(
    size: int = 8, decomposition: str = "2-4", width: int = 24, stride: int = 2
) -> ImageTokenizer:
    """`elm_bae` for small images."""
    parts, bits = _decomposition(decomposition)
    config = _tiny_grid(size, width, stride)
    return _grid(config, size, "bernoulli", {"bits": parts * bits}, parts)


@_tokenizer
def tiny_vqgan(
    size: int = 8,
    width: int = 24,
    stride: int = 2,
    quantizer: str = "vq",
    options: Options = {"size": 256, "code_dim": 12, "legacy": True},  # noqa: B006
) -> ImageTokenizer:
    """`vqgan` for small images."""
    return _grid(_tiny_grid(size, width, stride), size, quantizer, options)


@_tokenizer
def tiny_ett(size: int = 8, width: int = 24, stride: int = 2, codes: int = 256) -> ImageTokenizer:
    """`ett` for small images, with cosine logits, which train better at this size."""
    options: Options = {"size": codes, "code_dim": 12, "scale": 10.0, "entropy": 0.01}
    return _grid(_tiny_grid(size, width, stride), size, "ibq", options)


# -- generators -------------------------------------------------------------------------------------

#: Width, layers, heads of ELM's language models.
ELM_SIZES = {"L": (1024, 24, 16), "XL": (1280, 36, 20), "XXL": (1536, 48, 24), "2B": (1792, 48, 28)}
#: Width, layers of each half, heads of xAR.
XAR_SIZES = {"B": (768, 8, 12), "L": (1024, 16, 16), "H": (1280, 20, 16)}


def _size(table: dict[str, tuple[int, int, int]], name: str) -> tuple[int, int, int]:
    if name not in table:
        raise VTCError(f"size: got {name!r}, available are {', '.join(table)}")
    return table[name]


def _llama(dim: int, depth: int, heads: int, hidden: int, dropout: float) -> TransformerConfig:
    rope = _two_axes(dim, heads)
    return TransformerConfig(
        dim, depth, heads, hidden=hidden, norm_eps=1e-5, rope=rope, dropout=dropout
    )


def _elm(size: str, decomposition: str, grid: int, classes: int, **how: str) -> Generator:
    dim, depth, heads = _size(ELM_SIZES, size)
    parts, width = _decomposition(decomposition)
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
        rope=_two_axes(dim, heads),
        positions=grid * grid,
        input_norm=True,
        adaptive=True,
        dropout=0.1,
    )
    return _xar(config, grid, channels, plan, classes)


def _tiny(dim: int, depth: int, **how: Any) -> TransformerConfig:
    return TransformerConfig(dim, depth, 4, rope=_two_axes(dim, 4), **how)


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
    config = _tiny(dim, depth, positions=grid * grid, adaptive=True, ffn="geglu")
    if isinstance(create_plan(plan, (grid, grid)), Pyramid):
        config = _tiny(dim, depth, adaptive=True, ffn="geglu")
    return _xar(config, grid, channels, plan, classes)


# -- by name ----------------------------------------------------------------------------------------


def list_tokenizers(pattern: str = "*") -> list[str]:
    """Names of tokenizer presets that match a glob, sorted."""
    return names(TOKENIZERS, pattern)


def list_generators(pattern: str = "*") -> list[str]:
    """Names of generator presets that match a glob, sorted."""
    return names(GENERATORS, pattern)


def create_tokenizer(name: str, **options: Any) -> ImageTokenizer:
    """The tokenizer preset `name`; `options` are the arguments of its function.

    Raises:
        VTCError: unknown name or option, or a value that does not fit.
    """
    model = create(TOKENIZERS, "tokenizer", name, **options)
    model.recipe = {"kind": "tokenizer", "name": name, "options": options}
    return model


def create_generator(name: str, **options: Any) -> Generator:
    """The generator preset `name`; `options` are the arguments of its function.

    Raises:
        VTCError: unknown name or option, or a value that does not fit.
    """
    model = create(GENERATORS, "generator", name, **options)
    model.recipe = {"kind": "generator", "name": name, "options": options}
    return model
