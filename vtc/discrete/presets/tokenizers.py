"""Tokenizers of published systems, and their `tiny_` twins."""

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
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.presets.shared import PLAIN, Options, preset, split_decomposition, three_axes
from vtc.discrete.quantizers import create_quantizer
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.errors import VTCError

TOKENIZERS: dict[str, Callable[..., ImageTokenizer]] = {}


_tokenizer = preset(TOKENIZERS)


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


@_tokenizer
def instella_1d(size: int = 1024, tokens: int = 128, bits: int = 64) -> ImageTokenizer:
    """Instella-T2I (arXiv 2506.21022): 128 tokens of 64 bits, decoded at any resolution."""
    shared: Options = {"qk_norm": True, "rope": three_axes(768, 12)}
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
    vit = TransformerConfig(1024, 24, 16, rope=three_axes(1024, 16), **PLAIN)
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
    parts, width = split_decomposition(decomposition)
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
    config = TransformerConfig(dim, depth, 4, qk_norm=True, rope=three_axes(dim, 4))
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
    parts, bits = split_decomposition(decomposition)
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
