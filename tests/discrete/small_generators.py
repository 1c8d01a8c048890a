"""Small generators with lively weights, and codes for them."""

import torch
from torch import nn

from vtc.discrete import CodeSpace, Condition, create_generator
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.generator import Generator, GeneratorConfig

BYTES = CodeSpace(16, (8, 4), (4, 4))
BITS = CodeSpace(16, (2,) * 5, (4, 4))
PLANS = ["raster", "whole", "cell:2", "subsample:2"]


def lively(model: Generator) -> Generator:
    """Weights large enough that nothing is a tie or a zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def draw(space: CodeSpace, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randint(v, (batch, space.tokens), generator=generator) for v in space.vocab]
    return torch.stack(parts, dim=-1)


def text(batch: int = 3, layers: int = 2) -> Condition:
    valid = torch.ones(batch, 4, dtype=torch.bool)
    valid[0, 2:] = False
    return Condition(None, tuple(torch.randn(batch, 4, 6) for _ in range(layers)), valid)


MODELS = {
    "index": lambda plan: (
        create_generator("tiny_elm_ar", space=BYTES, dim=32, depth=2, plan=plan),
        torch.tensor([0, 4, 10]),
    ),
    "bits": lambda plan: (
        Generator(
            GeneratorConfig(
                BITS, TransformerConfig(32, 2, 2, rope=(8, 8)), "bit", plan=plan, classes=10
            )
        ),
        torch.tensor([0, 4, 9]),
    ),
    "text": lambda plan: (
        Generator(
            GeneratorConfig(
                BITS,
                TransformerConfig(16, 2, 2, rope=(4, 4), block_positions=16, context_dim=6),
                "bit",
                plan=plan,
            )
        ),
        text(),
    ),
}
