"""Whole tokenizers: codes and back, tuning through the codes, files."""

from pathlib import Path

import pytest
import torch

from vtc import VTCError
from vtc.discrete import (
    Captioner,
    CodeProjector,
    create_generator,
    create_tokenizer,
    list_tokenizers,
    load,
    reconstruction_report,
    save,
)
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.losses import joint_caption_loss

TINY = list_tokenizers("tiny_*")


@pytest.mark.parametrize("name", TINY)
def test_codes_and_back(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = create_tokenizer(name).eval()
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    codes = tokenizer.encode(image)
    assert tokenizer.space.check(codes.ids) is codes.ids
    assert torch.allclose(tokenizer.embed(codes.ids), codes.z, atol=1e-5)
    from_ids, from_z = tokenizer.decode(codes.ids), tokenizer.decode(codes.z)
    assert from_ids.shape == image.shape and torch.allclose(from_ids, from_z, atol=1e-5)
    report = tokenizer.train().loss(image)
    report["loss"].backward()
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())
    total = report["reconstruction"] + report["quantizer"]
    assert torch.isclose(report["loss"], total)


def test_codes_of_its_own_are_not_checked() -> None:
    tokenizer = create_tokenizer("tiny_elm_bae").to("meta")  # where nothing can be read
    assert tokenizer.encode(torch.empty(2, 3, 8, 8, device="meta")).ids.shape == (2, 16, 2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_codes_of_any_whole_numbers(dtype: torch.dtype) -> None:
    tokenizer = create_tokenizer("tiny_vqgan").eval()  # 256 codes: 256 itself is no uint8
    ids = torch.randint(256, (2, 16, 1))
    assert torch.equal(tokenizer.decode(ids.to(dtype)), tokenizer.decode(ids))


@pytest.mark.parametrize("decomposition", ["1-4", "2-4", "3-2"])
def test_decompositions_show_the_same_code(decomposition: str) -> None:
    tokenizer = create_tokenizer("tiny_elm_bae", decomposition=decomposition).eval()
    parts, width = map(int, decomposition.split("-"))
    assert tokenizer.space.vocab == (2**width,) * parts
    image = torch.rand(2, 3, 8, 8)
    codes = tokenizer.encode(image)
    tokenizer.parts = 0
    assert tokenizer.encode(image).ids.shape[-1] == parts * width
    assert torch.equal(tokenizer.encode(image).z, codes.z)


def test_same_tokens_at_two_resolutions_and_prefixes() -> None:
    tokenizer = create_tokenizer("tiny_instella_1d").eval()
    codes = tokenizer.encode(torch.rand(1, 3, 8, 8))
    assert tokenizer.decode(codes.ids, (16, 16)).shape == (1, 3, 16, 16)
    assert tokenizer.decode(codes.ids[:, :3]).shape == (1, 3, 8, 8)
    assert tokenizer.encode(torch.rand(1, 3, 16, 16)).ids.shape == codes.ids.shape
    kept, _ = tokenizer(torch.rand(1, 3, 8, 8), keep=2)
    assert kept.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(torch.rand(1, 1, 8, 8)), "image: got shape"),
        (lambda t: t.encode(torch.rand(3, 8, 8)), "image: got shape"),
        (lambda t: t.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "floating point"),
        (lambda t: t.encode(torch.rand(1, 3, 9, 8)), "size: got 9 x 8"),
        (lambda t: t.decode(torch.full((1, 16, 2), 16)), "codes in"),
        (lambda t: t.decode(torch.zeros(1, 16, 3, dtype=torch.long)), "sub-codes"),
        (lambda t: t.decode(torch.zeros(1, 16, 2, dtype=torch.long), (16, 16)), "tokens"),
        (lambda t: t.decode(torch.zeros(16, 2, dtype=torch.long)), "ids: got shape"),
        (lambda t: t.decode(torch.zeros(16, 48)), "code: got shape .* z .* or ids"),
        (lambda t: t.decode(torch.zeros(1, 16, 2)), "of torch.float32, expected z"),
        (lambda t: t(torch.rand(1, 3, 8, 8), keep=99), "keep: got 99, allowed are 0 to 16"),
        (lambda t: t(torch.rand(1, 3, 8, 8), keep=-1), "keep: got -1"),
    ],
)
def test_bad_input(call, message: str) -> None:
    tokenizer = create_tokenizer("tiny_elm_bae")
    with pytest.raises(VTCError, match=message):
        call(tokenizer)


def test_more_tokens_than_an_image_has() -> None:
    tokenizer = create_tokenizer("tiny_instella_1d")
    codes = tokenizer.encode(torch.rand(1, 3, 8, 8))
    for code in (codes.ids, codes.z):
        with pytest.raises(VTCError, match="code: got 16 tokens, an image has 8"):
            tokenizer.decode(torch.cat([code, code], dim=1))


@pytest.mark.parametrize("name", TINY)
def test_images_that_are_not_square(name: str) -> None:
    tokenizer, image = create_tokenizer(name).eval(), torch.rand(2, 3, 8, 12)
    output, codes = tokenizer(image)
    assert output.shape == image.shape
    assert torch.equal(tokenizer.space_of((8, 12)).check(codes.ids), codes.ids)
    assert torch.allclose(tokenizer.decode(codes.ids, (8, 12)), output, atol=1e-5)
    assert tokenizer.loss(image)["loss"].isfinite()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_elm_bae", {"decomposition": "2x4"}),
        ("tiny_elm_bae", {"decomposition": "0-4"}),
        ("tiny_elm_bae", {"size": 9}),
        ("tiny_elm_bae", {"stride": 3}),
        ("tiny_instella_1d", {"size": 10}),
        ("instella", {}),
        ("tiny_ett", {"code": 3}),
    ],
)
def test_bad_presets(name: str, options: dict) -> None:
    with pytest.raises(VTCError):
        create_tokenizer(name, **options)


def captioner(tokenizer, source: str) -> Captioner:
    space, dim = tokenizer.space, tokenizer.quantizer.dim
    config = TransformerConfig(16, 1, 2, rope=(8,))
    return Captioner(config, 11, CodeProjector(space, dim, 16, source))


def test_a_caption_tunes_the_tokenizer_through_embeddings_only() -> None:
    image, text = torch.rand(2, 3, 8, 8), torch.tensor([[1, 2, 3], [4, 5, -100]])
    for source, reaches in (("embedding", True), ("ids", False)):
        torch.manual_seed(0)
        tokenizer = create_tokenizer("tiny_ett")
        reader = captioner(tokenizer, source)
        reader.loss(tokenizer.encode(image), text).backward()
        gradients = [p.grad for p in tokenizer.encoder.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == reaches
    with pytest.raises(VTCError, match="source"):
        CodeProjector(tokenizer.space, 4, 4, "pixels")


def test_captions_are_causal_and_see_the_image() -> None:
    torch.manual_seed(0)
    tokenizer = create_tokenizer("tiny_ett").eval()
    reader = captioner(tokenizer, "embedding")
    codes = tokenizer.encode(torch.rand(1, 3, 8, 8))
    text = torch.tensor([[1, 2, 3, 4]])
    logits = reader(codes, text)
    assert logits.shape == (1, 4, 11)
    changed = reader(codes, torch.tensor([[1, 2, 9, 4]]))
    assert torch.equal(logits[:, :3], changed[:, :3]) and not torch.equal(logits, changed)
    other = reader(tokenizer.encode(torch.rand(1, 3, 8, 8) - 1), text)
    assert not torch.allclose(logits[:, 0], other[:, 0])
    assert joint_caption_loss(torch.tensor(1.0), 2.0) == 1.5


def test_report() -> None:
    pytest.importorskip("skimage")
    tokenizer = create_tokenizer("tiny_instella_1d")
    report = reconstruction_report(tokenizer, torch.rand(5, 3, 8, 8), batch=2)
    names = {"psnr", "ssim", "usage", "code_entropy", "bits_per_image", "bit_entropy"}
    assert set(report) == names
    assert report["bits_per_image"] == 64 and tokenizer.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tiny_elm_bae", "tiny_instella_1d", "tiny_seed_causal"])
def test_saved_tokenizers_are_bit_equal(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    options = {"decomposition": "2-3"} if name == "tiny_elm_bae" else {"dim": 32}
    tokenizer = create_tokenizer(name, **options).to(dtype).eval()
    save(tokenizer, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    image = torch.rand(2, 3, 8, 8, dtype=dtype)
    first, second = tokenizer.encode(image), again.encode(image)
    assert torch.equal(first.ids, second.ids) and torch.equal(first.z, second.z)
    assert torch.equal(tokenizer.decode(first.ids), again.decode(second.ids))


def test_saved_generators_are_bit_equal(tmp_path: Path) -> None:
    space = create_tokenizer("tiny_elm_bae").space
    generator = create_generator("tiny_elm_ar", space=space, dim=32, plan="cell:2").eval()
    torch.nn.init.normal_(generator.head.out.weight)
    save(generator, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    labels = torch.arange(4)
    assert torch.equal(generator.sample(labels, seed=3), again.sample(labels, seed=3))


def test_bad_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(VTCError, match="is no file"):
        load(tmp_path / "nothing")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(VTCError, match="no recipe"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(VTCError, match="only models made by"):
        save(torch.nn.Linear(1, 1), tmp_path / "x")
