"""Encoders and decoders: shapes, resolutions, causality, errors."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from vtc import VTCError
from vtc.discrete import ImageTokenizer, create_quantizer, create_tokenizer, load, save
from vtc.discrete.autoencoders import (
    GridConfig,
    GridDecoder,
    GridEncoder,
    LatentConfig,
    LatentDecoder,
    LatentEncoder,
    PatchEncoder,
    QueryEncoder,
    ResampleDown,
    ResampleUp,
    TimmEncoder,
    latent_coordinates,
)
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.presets import tokenizers


def latent_config(causal: bool = False, stages: tuple[int, ...] = (1, 1)) -> LatentConfig:
    config = TransformerConfig(24, stages, 2, rope=(4, 4, 4))
    return LatentConfig(5, 2, config, config, extent=4, causal=causal)


def strengthen(module: nn.Module) -> nn.Module:
    """Weights large enough that every input matters."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def test_resampling_starts_from_mean_and_nearest() -> None:
    down, up = ResampleDown(3), ResampleUp(3)
    for layer in (down, up):
        nn.init.zeros_(layer.conv.weight)
        nn.init.zeros_(layer.conv.bias)
    x = torch.randn(1, 3, 4, 6)
    assert torch.allclose(down(up(x)), x)
    assert down(x).shape == (1, 3, 2, 3)
    assert torch.allclose(down(x)[0, :, 0, 0], x[0, :, :2, :2].mean((1, 2)))


def test_grid_autoencoder() -> None:
    config = GridConfig(8, (1, 2), 1, dim=12, norm_first=True)
    encoder, decoder = GridEncoder(config), GridDecoder(config)
    image = torch.randn(2, 3, 8, 12)
    z = encoder(image)
    assert z.shape == (2, 24, 12) and encoder.code_shape((8, 12)) == (24, (4, 6))
    assert decoder(z, (8, 12)).shape == image.shape
    assert decoder.last_layer.requires_grad
    with pytest.raises(VTCError, match="tokens"):
        decoder(z, (8, 8))
    with pytest.raises(VTCError, match="multiples of 2"):
        encoder.code_shape((7, 8))


def test_grid_tokens_are_in_raster_order() -> None:
    encoder = GridEncoder(GridConfig(8, (1, 2), 1, dim=4)).eval()
    image = torch.randn(1, 3, 6, 10)
    assert torch.equal(encoder(image)[0, 1 * 5 + 3], encoder.net(image)[0, :, 1, 3])


def test_latent_autoencoder_at_several_resolutions() -> None:
    encoder, decoder = LatentEncoder(latent_config()), LatentDecoder(latent_config())
    for size in ((8, 8), (16, 8)):
        z = encoder(torch.randn(2, 3, *size))
        assert z.shape == (2, 5, 24)
    for size in ((8, 8), (16, 16), (4, 12)):
        assert decoder(z, size).shape == (2, 3, *size)
    assert decoder(z[:, :2], (8, 8)).shape == (2, 3, 8, 8)
    assert decoder.last_layer.requires_grad
    with pytest.raises(VTCError, match="multiples of 4"):
        decoder(z, (6, 8))


def test_pixels_come_from_their_patch() -> None:
    decoder = strengthen(LatentDecoder(latent_config(stages=(1,))))
    seen: list[torch.Tensor] = []
    decoder.out.register_forward_hook(lambda _, __, out: seen.append(out))
    image = decoder(torch.randn(1, 5, 24), (4, 6))
    block = seen[0][0, 1, 2].view(2, 2, 3)  # patch in row 1, column 2: rows, columns, channels
    assert torch.equal(image[0, :, 2:4, 4:6], block.permute(2, 0, 1))


def test_latent_coordinates() -> None:
    got = latent_coordinates(2, (1, 3))
    assert got.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2]]


@pytest.mark.parametrize("stages", [(2,), (1, 1)])
def test_causal_latents_do_not_see_later_ones(stages: tuple[int, ...]) -> None:
    encoder = strengthen(LatentEncoder(latent_config(True, stages)))
    image = torch.randn(1, 3, 8, 8)
    before = encoder(image)
    with torch.no_grad():
        encoder.latents[3] += torch.randn(24)
    after = encoder(image)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_causal_queries_do_not_see_later_ones() -> None:
    config = TransformerConfig(16, 4, 2, norm="layer", post_norm=True, cross_dim=7, cross_every=2)
    encoder = strengthen(QueryEncoder(6, config))
    source = torch.randn(2, 9, 7)
    before = encoder(source)
    with torch.no_grad():
        encoder.queries[4] += torch.randn(16)
    after = encoder(source)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 5], after[:, 5])
    assert not torch.allclose(encoder(source + 1), after)
    with pytest.raises(VTCError, match="cross_dim"):
        QueryEncoder(2, TransformerConfig(16, 1, 2))


def test_queries_over_a_vision_transformer() -> None:
    vit = PatchEncoder(TransformerConfig(8, 1, 2), 4, 8)
    encoder = QueryEncoder(3, TransformerConfig(8, 1, 2, cross_dim=8), features=vit)
    assert encoder(torch.randn(2, 3, 8, 8)).shape == (2, 3, 8)
    assert encoder.code_shape((8, 8)) == (3, None)
    with pytest.raises(VTCError, match="8 x 8"):
        encoder.code_shape((16, 16))


class FakeTimm(nn.Module):
    """What timm's models give: maps with channels first or last, or tokens behind a prefix."""

    num_features = 6
    pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6)
        self.layout = layout
        if layout == "tokens":
            self.num_prefix_tokens = 2

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] >= 4, "too small"
        y = self.norm(self.conv(x))
        if self.layout == "tokens":
            tokens = y.flatten(2).transpose(1, 2)
            return torch.cat([torch.full_like(tokens[:, :2], 9.0), tokens], dim=1)
        return y if self.layout == "first" else y.permute(0, 2, 3, 1)


LAYOUTS = ["first", "last", "tokens"]


def timm_models(monkeypatch: pytest.MonkeyPatch, layout: str) -> list[dict]:
    """Put `FakeTimm` in timm's place; the arguments of every model made from now on."""
    made: list[dict] = []

    def create_model(name: str, **options) -> FakeTimm:
        made.append(options)
        return FakeTimm(layout)

    fake = types.ModuleType("timm")
    fake.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_timm_features(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    timm_models(monkeypatch, layout)
    encoder = TimmEncoder("any").eval()
    image = torch.rand(2, 3, 8, 12) * 2 - 1
    config = {key: torch.tensor(x).view(3, 1, 1) for key, x in FakeTimm.pretrained_cfg.items()}
    normal = ((image + 1) / 2 - config["mean"]) / config["std"]
    wanted = encoder.model.norm(encoder.model.conv(normal)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(image), wanted)
    assert encoder.code_shape((8, 12)) == (6, (2, 3))
    with pytest.raises(VTCError, match="size: got .*too small"):
        encoder.code_shape((2, 8))
    if layout == "tokens":
        every = TimmEncoder("any", prefix=True)
        assert every(image).shape == (2, 8, 6) and every.code_shape((8, 8)) == (6, None)
    encoder.dim = 7
    with pytest.raises(VTCError, match="width 7"):
        encoder(image)


@pytest.mark.parametrize("frozen", [True, False])
def test_timm_statistics_move_in_training_alone(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    timm_models(monkeypatch, "first")
    encoder = TimmEncoder("any", frozen=frozen).train()
    assert encoder.code_shape((8, 8)) == (4, (2, 2))
    assert (encoder.model.norm.running_mean == 0).all()
    encoder(torch.rand(2, 3, 8, 8))
    assert (encoder.model.norm.running_mean == 0).all() == frozen
    assert all(p.requires_grad != frozen for p in encoder.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_timm_grid_is_decoded_by_convolutions(
    monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    timm_models(monkeypatch, layout)
    encoder = TimmEncoder("any", frozen=True)
    config = GridConfig(8, (1, 1, 2), 1, dim=encoder.dim)
    quantizer = create_quantizer("bernoulli", encoder.dim, bits=4)
    tokenizer = ImageTokenizer(encoder, quantizer, GridDecoder(config), (8, 12))
    assert tokenizer.space.grid == (2, 3)
    image = torch.rand(2, 3, 8, 12)
    tokenizer.loss(image)["loss"].backward()
    assert tokenizer.decode(tokenizer.encode(image).ids).shape == image.shape


def test_a_backbone_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, layers = timm_models(monkeypatch, "tokens"), tokenizers._bert
    monkeypatch.setattr(tokenizers, "_bert", lambda dim, _, *more: layers(dim, 1, *more))
    tokenizer = create_tokenizer("seed_causal", size=8, tokens=2, backbone="any").eval()
    save(tokenizer, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert [options["pretrained"] for options in made] == [True, False]
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(tokenizer.encode(image).z, again.encode(image).z)
    create_tokenizer("seed_causal", size=8, backbone="any", pretrained=False)
    assert not made[-1]["pretrained"]

    def mine(name: str = "any", pretrained: bool = True) -> ImageTokenizer:
        encoder = TimmEncoder(name, pretrained)
        decoder = GridDecoder(GridConfig(8, (1, 1, 2), 1, dim=encoder.dim))
        return ImageTokenizer(encoder, create_quantizer("vq", encoder.dim, size=4), decoder, (8, 8))

    monkeypatch.setitem(tokenizers.TOKENIZERS, "mine", mine)
    save(create_tokenizer("mine"), tmp_path / "mine.safetensors")
    load(tmp_path / "mine.safetensors")
    assert [options["pretrained"] for options in made[-2:]] == [True, False]


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(VTCError, match="needs timm"):
        TimmEncoder("vit_tiny_patch16_224")
    with pytest.raises(VTCError, match="needs timm"):
        create_tokenizer("seed_causal", backbone="vit_tiny_patch16_224")
