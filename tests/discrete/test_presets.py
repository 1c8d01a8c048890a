"""Presets at the sizes of the papers, without memory; imports stay lazy."""

import subprocess
import sys

import pytest
import torch

from vtc import VTCError
from vtc.discrete import create_generator, create_tokenizer, list_generators, list_tokenizers


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("instella_1d", 8192),
        ("seed_causal", 416),
        ("titok", 384),
        ("vqgan", 3584),
        ("elm_bae", 5120),
        ("ett", 256 * 17),
    ],
)
def test_information_of_published_tokenizers(name: str, bits: int) -> None:
    with torch.device("meta"):
        assert create_tokenizer(name).space.bits_per_image == bits


@pytest.mark.parametrize("decomposition", ["1-16", "2-8", "2-10", "2-12", "3-8", "4-8"])
def test_published_decompositions(decomposition: str) -> None:
    parts, width = map(int, decomposition.split("-"))
    with torch.device("meta"):
        space = create_tokenizer("elm_bae", decomposition=decomposition).space
    assert space.vocab == (2**width,) * parts and space.grid == (16, 16)


@pytest.mark.parametrize(
    ("name", "options", "published", "slack"),
    [
        ("xar_cell", {"size": "B"}, 172, 0.01),
        ("xar_cell", {"size": "L"}, 608, 0.01),
        ("instella_ar", {}, 800, 0.10),
        ("instella_diffusion", {}, 1200, 0.10),
        ("elm_ar", {"size": "2B", "decomposition": "2-12"}, 2000, 0.10),
    ],
)
def test_parameters_against_the_papers(
    name: str, options: dict, published: float, slack: float
) -> None:
    with torch.device("meta"):
        assert millions(create_generator(name, **options)) == pytest.approx(published, rel=slack)


def test_every_preset_has_a_tiny_twin() -> None:
    for listing in (list_tokenizers(), list_generators()):
        large = [name for name in listing if not name.startswith("tiny_")]
        assert [f"tiny_{name}" for name in large] == [n for n in listing if n not in large]
    with torch.device("meta"):
        for name in list_generators():
            if not name.startswith("tiny_"):
                create_generator(name)


@pytest.mark.parametrize("name", ["tiny_instella_1d", "tiny_titok", "tiny_seed_causal"])
def test_the_smallest_tokenizers_know_where_a_patch_is(name: str) -> None:
    torch.manual_seed(0)
    decoder = create_tokenizer(name, dim=24).eval().decoder
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = decoder(torch.randn(1, 8, 24), (8, 8))
    assert not torch.allclose(image[..., :4, :4], image[..., :4, 4:])
    assert not torch.allclose(image[..., :4, :4], image[..., 4:, :4])
    with pytest.raises(VTCError, match="dim: got 16, allowed are multiples of 8 from 24 on"):
        create_tokenizer(name, dim=16)


def test_a_generator_is_wide_enough_for_rows_and_columns() -> None:
    space = create_tokenizer("tiny_ett").space
    create_generator("tiny_elm_ar", space=space, dim=16)
    with pytest.raises(VTCError, match="dim: got 8, allowed are multiples of 8 from 16 on"):
        create_generator("tiny_elm_ar", space=space, dim=8)


def test_imports_are_lazy() -> None:
    code = """
import sys
import vtc
assert not any(name.startswith(("vtc.discrete", "einops")) for name in sys.modules)
sys.modules["timm"] = sys.modules["vector_quantize_pytorch"] = None
import vtc.discrete
from vtc.discrete import create_tokenizer
create_tokenizer("tiny_instella_1d")
for name in ("transformers", "matplotlib", "triton", "torchmetrics", "sklearn"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
