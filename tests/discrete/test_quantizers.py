"""Every quantiser behind the one interface."""

import sys

import pytest
import torch

from vtc import VTCError
from vtc.discrete.codes import bit_table, pack_bits
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers import QUANTIZERS, create_quantizer, list_quantizers
from vtc.discrete.quantizers.base import straight_through
from vtc.discrete.quantizers.bernoulli import BernoulliQuantizer, bit_penalty
from vtc.discrete.quantizers.bsq import bitwise_entropy_loss
from vtc.discrete.quantizers.ibq import IndexBackpropQuantizer, entropy_loss
from vtc.discrete.quantizers.vq import nearest_code

OPTIONS: dict[str, dict] = {
    "bernoulli": {"bits": 6},
    "vq": {"size": 12, "code_dim": 4},
    "ibq": {"size": 12, "scale": 5.0},
    "ema_vq": {"size": 12, "code_dim": 4},
    "lfq": {"bits": 6, "groups": 2},
    "bsq": {"bits": 6},
    "fsq": {"levels": (5, 4)},
    "sim_vq": {"size": 32},
}


def test_every_quantizer_is_covered() -> None:
    assert list_quantizers() == sorted(OPTIONS)
    assert list_quantizers("*sq") == ["bsq", "fsq"]


@pytest.mark.parametrize("name", OPTIONS)
def test_interface(name: str) -> None:
    torch.manual_seed(0)
    quantizer = create_quantizer(name, 8, **OPTIONS[name])
    h = torch.randn(2, 5, 8, requires_grad=True)
    out = quantizer(h)
    assert out.z.shape == (2, 5, 8)
    assert out.ids.shape == (2, 5, len(quantizer.vocab)) and out.ids.dtype == torch.long
    assert (out.ids < torch.tensor(quantizer.vocab)).all() and (out.ids >= 0).all()
    (out.z.square().sum() + out.loss).backward()
    assert h.grad is not None and h.grad.abs().sum() > 0
    quantizer.eval()
    again = quantizer(h)
    assert torch.allclose(quantizer.embed(again.ids), again.z, atol=1e-5)
    assert all(not value.requires_grad for value in again.aux.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_input(name: str) -> None:
    quantizer = create_quantizer(name, 8, **OPTIONS[name])
    ids = torch.zeros(1, 2, len(quantizer.vocab), dtype=torch.long)
    with pytest.raises(VTCError, match="ids"):
        quantizer.embed(ids + max(quantizer.vocab))
    with pytest.raises(VTCError, match="ids"):
        quantizer.embed(ids.repeat(1, 1, 7))
    with pytest.raises(VTCError, match="h: got shape"):
        quantizer(torch.zeros(1, 2, 9))


def test_unknown_names_and_options() -> None:
    with pytest.raises(VTCError, match="did you mean 'bernoulli'"):
        create_quantizer("bernouli", 8)
    with pytest.raises(VTCError, match="did you mean 'bits'"):
        create_quantizer("bernoulli", 8, bit=3)
    with pytest.raises(VTCError, match="bits: 'bernoulli' needs it"):
        create_quantizer("bernoulli", 8)
    with pytest.raises(VTCError, match="take more groups, or .* of bits: 'bernoulli', 'bsq'$"):
        create_quantizer("lfq", 8, bits=64)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    for names in ("'bernoulli', 'ibq', 'vq'", "'bernoulli', 'ibq', 'mine', 'vq'"):
        with pytest.raises(VTCError, match=rf"vtc-vlm\[discrete\]`; {names} work without$"):
            create_quantizer("fsq", 8, levels=(4, 4))
        monkeypatch.setitem(QUANTIZERS, "mine", type("Mine", (BernoulliQuantizer,), {}))
    create_quantizer("bernoulli", 8, bits=4)
    create_quantizer("bsq", 8, bits=18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_codes_keep_their_value_under_large_features(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    quantizer = create_quantizer(name, 8, **OPTIONS[name]).to(dtype)
    quantizer.train(name != "ema_vq")  # a training step moves its codebook
    h = (30 * torch.randn(2, 5, 8)).to(dtype)
    out = quantizer(h)
    assert out.z.dtype == dtype
    torch.testing.assert_close(
        quantizer.embed(out.ids), out.z, atol=0, rtol=torch.finfo(dtype).eps * 4
    )


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"ema_vq"}))  # it asks whether it has begun
def test_diagnostics_stay_on_the_device(name: str) -> None:
    quantizer = create_quantizer(name, 8, **OPTIONS[name]).to("meta")
    out = quantizer(torch.empty(2, 5, 8, device="meta"))  # a value read by the host would raise
    assert out.aux and all(value.is_meta and value.dim() == 0 for value in out.aux.values())
    assert out.loss.is_meta


def test_nearest_code_among_rows_that_are_close() -> None:
    torch.manual_seed(0)
    z, codebook = 4 * torch.randn(500, 16), (2 * torch.rand(4096, 16) - 1) / 4096
    exact = torch.cdist(z.double(), codebook.double()).argmin(1)
    assert (nearest_code(z, codebook) == exact).float().mean() > 0.999
    with torch.autocast("cpu", torch.bfloat16):
        assert (nearest_code(z, codebook) == exact).float().mean() > 0.999
    assert nearest_code(z[:1], codebook[:1].repeat(3, 1)) == 0


def test_straight_through() -> None:
    soft = torch.tensor([0.2, 0.7], requires_grad=True)
    out = straight_through(torch.tensor([0.0, 1.0]), soft)
    assert out.tolist() == [0.0, 1.0]
    out.sum().backward()
    assert soft.grad is not None and soft.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_bernoulli_gradient_is_that_of_the_probability(symmetric: bool) -> None:
    quantizer = BernoulliQuantizer(4, 3, temperature=0.1, symmetric=symmetric)
    h, up = torch.randn(1, 2, 4, requires_grad=True), torch.randn(1, 2, 4)
    (quantizer(h, Noise(0)).z * up).sum().backward()
    soft = torch.tanh if symmetric else torch.sigmoid
    other = h.detach().clone().requires_grad_()
    ((soft(quantizer.project(other)) @ quantizer.table) * up).sum().backward()
    assert torch.allclose(h.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]


def test_bernoulli_draws_in_training_and_rounds_in_evaluation() -> None:
    quantizer = BernoulliQuantizer(4, 3, temperature=1.0, penalty=2.0)
    h = torch.zeros(50, 4, 4)
    torch.nn.init.zeros_(quantizer.project.bias)
    drawn = quantizer(h, Noise(0))
    assert 0.4 < drawn.ids.float().mean() < 0.6
    assert drawn.loss.item() == pytest.approx(2 * 0.25)
    assert torch.equal(drawn.ids, quantizer(h, Noise(0)).ids)
    assert (quantizer.eval()(h).ids == 0).all()  # a logit of exactly 0 is a 0
    assert (quantizer(h).z == 0).all()
    assert bit_penalty(torch.tensor([0.0, 1.0])) == 0


def test_index_backprop_reaches_the_whole_codebook() -> None:
    torch.manual_seed(0)
    quantizer = IndexBackpropQuantizer(4, 9)
    quantizer(torch.randn(2, 3, 4)).z.square().sum().backward()
    assert (quantizer.codebook.grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]
    sure = torch.eye(4)
    assert entropy_loss(sure) == pytest.approx(-torch.log(torch.tensor(4.0)).item())
    assert entropy_loss(torch.full((3, 4), 0.25)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "name, options, subcodes",
    [
        ("bernoulli", {"bits": 80}, 80),
        ("bsq", {"bits": 62}, 1),
        ("bsq", {"bits": 128, "groups": 4}, 4),
    ],
)
def test_many_bits(name: str, options: dict, subcodes: int) -> None:
    quantizer = create_quantizer(name, 8, **options).eval()
    h = torch.randn(1, 2, 8, requires_grad=True)
    out = quantizer(h)
    assert out.ids.shape == (1, 2, subcodes)
    torch.testing.assert_close(quantizer.embed(out.ids), out.z)
    (out.z.square().sum() + out.loss).backward()
    assert h.grad.abs().sum() > 0  # type: ignore[union-attr]
    with pytest.raises(VTCError, match="62 bits a group"):
        create_quantizer("bsq", 8, bits=63)


def test_entropy_on_the_sphere_factorises() -> None:
    torch.manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=-1)
    corners = (2 * bit_table(5).double() - 1) / 5**0.5
    every = torch.softmax(30 * u @ corners.T, dim=-1)  # all 32 corners
    exact = torch.special.entr(every).sum(-1).mean()
    single = u[:1].expand(7, 5)  # the second term is exact where all rows are alike
    assert bitwise_entropy_loss(single, 30.0) == pytest.approx(0, abs=1e-9)
    chance = torch.sigmoid(2 * 30 * u / 5**0.5).mean(0)
    mean = (torch.special.entr(chance) + torch.special.entr(1 - chance)).sum()
    assert bitwise_entropy_loss(u, 30.0) == pytest.approx(float(exact - mean))


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_signs_are_packed_most_significant_bit_first(name: str) -> None:
    quantizer = create_quantizer(name, 6, bits=6, groups=2).eval()
    h = torch.randn(3, 4, 6)
    assert torch.equal(quantizer(h).ids, pack_bits((h > 0).long(), 2))


def test_ema_codebook_moves_to_the_features() -> None:
    torch.manual_seed(0)
    quantizer = create_quantizer("ema_vq", 2, size=4, kmeans=True, reset_below=1.0, decay=0.5)
    centres = torch.tensor([[4.0, 4.0], [-4.0, 4.0], [4.0, -4.0], [-4.0, -4.0]])
    features = (centres.repeat(64, 1) + 0.1 * torch.randn(256, 2)).view(8, 32, 2)
    for _ in range(10):
        out = quantizer(features)
    with pytest.raises(VTCError, match="kmeans"):
        create_quantizer("ema_vq", 2, size=4, kmeans=True).eval()(features)
    assert out.aux["usage"] == 1 and (out.z - features).square().mean() < 0.1
