"""Image encoders and decoders.

An encoder maps images `[B, 3, H, W]` to features `[B, N, C]`; a decoder maps features and a size
back. `GridEncoder` gives a 2-D grid of tokens, `LatentEncoder` and `QueryEncoder` a 1-D sequence.
"""

from vtc.discrete.autoencoders.grid import GridConfig, GridDecoder, GridEncoder
from vtc.discrete.autoencoders.latents import (
    LatentConfig,
    LatentDecoder,
    LatentEncoder,
    ResampleDown,
    ResampleUp,
    latent_coordinates,
)
from vtc.discrete.autoencoders.queries import EmbeddingDecoder, PatchEncoder, QueryEncoder
from vtc.discrete.autoencoders.timm_encoder import TimmEncoder

__all__ = [
    "EmbeddingDecoder",
    "GridConfig",
    "GridDecoder",
    "GridEncoder",
    "LatentConfig",
    "LatentDecoder",
    "LatentEncoder",
    "PatchEncoder",
    "QueryEncoder",
    "ResampleDown",
    "ResampleUp",
    "TimmEncoder",
    "latent_coordinates",
]
