"""Discrete image tokenizers and the generators of their codes.

    tokenizer = create_tokenizer("tiny_instella_1d")
    codes = tokenizer.encode(images)                      # Quantized: z, ids, loss
    images = tokenizer.decode(codes.ids, size=(16, 16))   # the same tokens at another resolution
    generator = create_generator("tiny_instella_ar", space=tokenizer.space)
    loss = generator.loss(codes.ids, labels)["loss"]
    ids = generator.sample(labels, guidance=2.0, seed=0)

A plan, an objective or a sampler of your own goes where a name goes, in a `GeneratorConfig` and in
`generator.loss(..., objective=...)` or `generator.sample(..., sampler=...)`; `vtc.registry.register`
gives it a name.

Tokenizers and generators meet in `CodeSpace` alone: ids in, ids out. Needs torch and einops; the
quantisers of vector-quantize-pytorch and the encoders of timm are loaded when asked for.
"""

from vtc.discrete.autoencoders import TimmEncoder
from vtc.discrete.captioner import Captioner, CodeProjector
from vtc.discrete.checkpoint import load, save
from vtc.discrete.condition import Condition
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.metrics import frechet_distance, reconstruction_report
from vtc.discrete.noise import Noise
from vtc.discrete.objectives import Objective, create_objective
from vtc.discrete.plans import Plan, create_plan
from vtc.discrete.presets import (
    create_generator,
    create_tokenizer,
    list_generators,
    list_tokenizers,
)
from vtc.discrete.quantizers import create_quantizer, list_quantizers
from vtc.discrete.samplers import Sampler, create_sampler, list_samplers
from vtc.discrete.schedules import Guidance
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.discrete.types import CodeSpace, Quantized

__all__ = [
    "Captioner",
    "CodeProjector",
    "CodeSpace",
    "Condition",
    "Generator",
    "GeneratorConfig",
    "Guidance",
    "ImageTokenizer",
    "Noise",
    "Objective",
    "Plan",
    "Quantized",
    "Sampler",
    "TimmEncoder",
    "create_generator",
    "create_objective",
    "create_plan",
    "create_quantizer",
    "create_sampler",
    "create_tokenizer",
    "frechet_distance",
    "list_generators",
    "list_quantizers",
    "list_samplers",
    "list_tokenizers",
    "load",
    "reconstruction_report",
    "save",
]
