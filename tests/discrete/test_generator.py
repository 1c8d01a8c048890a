"""Generators: caches against full passes, guidance, masks, objectives, errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.discrete.small_generators import BITS, BYTES, MODELS, PLANS, draw, lively, text
from vtc import VTCError
from vtc.discrete import CodeSpace, Guidance, create_generator, create_objective
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.checkpoint import save
from vtc.discrete.generator import Generator, GeneratorConfig, GroupStepper, Stepper
from vtc.discrete.noise import Noise
from vtc.discrete.objectives import Mixture, NextAll, NextToken, Objective
from vtc.discrete.plans import Plan


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", MODELS)
def test_cached_tokens_equal_the_full_pass(kind: str, plan: str) -> None:
    model, given = MODELS[kind](plan)
    model, given = lively(model), model.condition(given)
    ids = draw(model.space)
    full = model.next_logits(ids, given)
    step = Stepper(model, given, len(ids))
    parts = [step(ids[:, i - 1 : i] if i else None) for i in range(model.space.tokens)]
    assert torch.allclose(torch.cat(parts, dim=1), full, atol=1e-5)
    if not plan.startswith(("raster", "whole")):  # the plan's positions matter
        raster = MODELS[kind]("raster")[0].eval()
        raster.load_state_dict(model.state_dict())
        assert not torch.allclose(raster.next_logits(ids, given), full, atol=1e-3)


@pytest.mark.parametrize("plan", [*PLANS, "pyramid"])
def test_cached_groups_equal_the_full_pass(plan: str) -> None:
    model = lively(
        create_generator("tiny_xar_cell", grid=4, channels=2, plan=plan, dim=32, depth=2)
    )
    given = model.condition(torch.tensor([1, 10]))
    parts = model.plan.arrange(torch.randn(2, 16, 2)).split(list(model.plan.sizes), dim=1)
    step = GroupStepper(model, given)
    for group, part in enumerate(parts):
        noisy, t = torch.randn_like(part), torch.tensor([0.7, 0.2])
        times = torch.zeros(2, model.plan.groups)
        times[:, group] = t
        x = torch.cat([*parts[:group], noisy, *parts[group + 1 :]], dim=1)
        rows = slice(model.plan.starts[group], model.plan.starts[group] + part.shape[1])
        full = model.velocities(x, times, given)[:, rows]
        assert torch.allclose(step.velocity(noisy, t), full, atol=1e-5)
        step.commit(part)


def test_groups_do_not_see_later_ones() -> None:
    model = lively(create_generator("tiny_xar_cell", grid=4, channels=2, plan="cell:2", dim=32))
    given, t = model.condition(torch.tensor([1, 2])), torch.rand(2, 4)
    x = torch.randn(2, 16, 2)
    changed = x.clone()
    changed[:, 8:] = torch.randn(2, 8, 2)
    before, after = model.velocities(x, t, given), model.velocities(changed, t, given)
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.equal(before, after)


@pytest.mark.parametrize("kind", MODELS)
def test_next_token_is_causal(kind: str) -> None:
    model, given = MODELS[kind]("raster")
    model, given = lively(model), model.condition(given)
    ids = draw(model.space)
    changed = ids.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % torch.tensor(model.space.vocab)
    before, after = model.next_logits(ids, given), model.next_logits(changed, given)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("head", ["index", "tied"])
def test_hidden_tokens_stay_hidden(head: str) -> None:
    space = CodeSpace(16, (8, 8), (4, 4))
    model = lively(create_generator("tiny_elm_mlm", space=space, dim=32, head=head))
    given, ids = model.condition(torch.zeros(3).long()), draw(space)
    unknown = torch.zeros(3, 16, dtype=torch.bool)
    unknown[:, 5:9] = True
    other = torch.where(unknown.unsqueeze(-1), (ids + 3) % 8, ids)
    before = model.masked_logits(ids, unknown, given)
    assert before.shape == (3, 16, 2, 8)
    assert torch.equal(before, model.masked_logits(other, unknown, given))
    assert not torch.equal(before, model.masked_logits((ids + 1) % 8, unknown, given))


def test_strict_next_all_predictions_are_independent() -> None:
    from vtc.discrete import masks

    model = lively(create_generator("tiny_token_unify", space=BYTES, dim=32))
    given, ids = model.condition(torch.zeros(3).long()), draw(BYTES)
    unknown = torch.zeros(3, 16, dtype=torch.bool)
    unknown[:, 6:] = True
    shown = unknown.clone()
    shown[:, 15] = False  # reveal a token behind the cut: the others must not notice
    mask = masks.next_all(16, 6)
    before, after = (model.masked_logits(ids, u, given, mask) for u in (unknown, shown))
    assert torch.equal(before[:, :15], after[:, :15])


def guidance_cases():
    four = CodeSpace(4, (2,) * 3)
    yield "tiny_elm_ar", {"space": BYTES}, {}
    yield "tiny_elm_mlm", {"space": CodeSpace(16, (8, 8), (4, 4))}, {"steps": 4}
    yield "tiny_instella_ar", {"space": four}, {"temperature": 0.7}
    yield "tiny_instella_diffusion", {"space": four}, {"steps": 5}
    yield "tiny_instella_diffusion", {"space": four}, {"steps": 5, "posterior": True}
    yield "tiny_xar_cell", {"grid": 4, "plan": "cell:2"}, {"steps": 3}
    yield "tiny_xar_cell", {"grid": 4, "plan": "pyramid"}, {"steps": 3, "method": "euler"}


@pytest.mark.parametrize(("name", "build", "options"), list(guidance_cases()))
def test_guidance_of_one_is_the_conditional_model(name: str, build: dict, options: dict) -> None:
    model = lively(create_generator(name, dim=32, depth=2, **build))
    labels = torch.tensor([0, 3, 7])
    alone = model.sample(labels, seed=5, **options)
    same = model.sample(labels, guidance=1.0, seed=5, **options)
    more = model.sample(labels, guidance=Guidance(30.0, "linear"), seed=5, **options)
    assert torch.equal(alone, model.sample(labels, seed=5, **options))
    assert torch.allclose(alone.float(), same.float(), atol=1e-4)
    assert not torch.allclose(alone.float(), more.float(), atol=1e-4)
    if not model.config.channels:
        model.space.check(alone)


def objective_cases():
    for name in ("next_token", "masked_token", "next_all", "mixture"):
        yield name, create_generator("tiny_elm_ar", space=BYTES, dim=32), draw(BYTES)
        yield name, create_generator("tiny_instella_ar", space=BITS, dim=32), draw(BITS)
    space = CodeSpace(16, (8, 8), (4, 4))
    yield "masked_token", create_generator("tiny_elm_mlm", space=space, dim=32), draw(space)
    yield "next_all", create_generator("tiny_elm_mlm", space=space, dim=32), draw(space)
    yield "bit_diffusion", create_generator("tiny_instella_diffusion", space=BITS), draw(BITS)
    for plan in ("cell:2", "whole", "pyramid"):
        model = create_generator("tiny_xar_cell", grid=4, channels=2, plan=plan)
        yield "next_x", model, torch.randn(3, 16, 2)


@pytest.mark.parametrize(("name", "model", "codes"), list(objective_cases()))
def test_objectives_train_every_part(name: str, model: Generator, codes: torch.Tensor) -> None:
    model = lively(model).train()
    objective = create_objective(name)
    labels = torch.tensor([0, 1, 2])
    reports = [objective.loss(model, codes, labels, seed) for seed in (3, 3, 4)]
    assert torch.equal(reports[0]["loss"], reports[1]["loss"])
    assert reports[0]["position"].shape == (model.plan.length,)
    reports[2]["loss"].backward()
    unused = set()
    if model.config.class_as == "token" or model.config.channels or name == "bit_diffusion":
        unused.add("start")  # the class, or nothing, stands in front
    if name in ("next_token", "bit_diffusion"):
        unused.add("head.mask")
    if "mixture" in name:  # one part a batch
        unused.update(("head.mask", "start"))
    dead = {
        key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()
    }
    assert dead <= unused
    if name == "next_token":
        assert reports[0]["loss"].item() == pytest.approx(
            reports[0]["position"].mean().item(), rel=1e-5
        )


def test_a_generator_trains_by_its_own_objective() -> None:
    model = create_generator("tiny_elm_ar", space=BYTES, dim=32).eval()
    labels = torch.tensor([0, 1, 2])
    own, other = model.loss(draw(BYTES), labels), NextToken().loss(model, draw(BYTES), labels)
    assert torch.equal(own["loss"], other["loss"])
    uniform = (torch.log(torch.tensor(8.0)) + torch.log(torch.tensor(4.0))) / 2
    assert torch.isclose(own["loss"], uniform)  # output maps start at zero


class OnlyLast(Objective):
    """The last token alone counts."""

    def terms(self, model, codes, given, noise):
        losses, _ = NextToken().terms(model, codes, given, noise)
        return losses, torch.arange(losses.shape[1]).eq(losses.shape[1] - 1).expand_as(losses)


def test_parts_of_your_own() -> None:
    order = torch.arange(16).flip(0)
    plan = Plan((4, 4), order, (1,) * 16, torch.stack([order // 4, order % 4], dim=1).float())
    config = create_generator("tiny_elm_ar", space=BYTES, dim=32).config
    model = lively(Generator(replace(config, plan=plan, objective=OnlyLast())))
    labels, codes = torch.tensor([0, 3, 7]), draw(BYTES)
    each = NextToken().loss(model, codes, labels)["position"]
    assert torch.isclose(model.loss(codes, labels)["loss"], each[-1], atol=1e-5)
    assert torch.isclose(model.loss(codes, labels, objective="next_token")["loss"], each.mean())
    soft = model.loss(codes, labels, objective=NextAll(strict=False), seed=0)["loss"]
    assert torch.equal(soft, NextAll(strict=False).loss(model, codes, labels, 0)["loss"])
    BYTES.check(model.sample(labels, seed=0))
    with pytest.raises(VTCError, match="plan: got one of grid"):
        Generator(replace(config, space=CodeSpace(16, (8, 4), (2, 8)), plan=plan))
    with pytest.raises(VTCError, match="objective: got 'next'"):
        Generator(replace(config, objective="next"))


def test_parts_of_your_own_are_not_saved(tmp_path: Path) -> None:
    model = create_generator("tiny_token_unify", space=BYTES, objective=OnlyLast())
    with pytest.raises(VTCError, match="model: "):
        save(model, tmp_path / "model.safetensors")


def test_objectives_from_a_config() -> None:
    parts = ["next_token", {"name": "next_all", "strict": False}]
    made = create_objective({"name": "mixture", "parts": parts, "weights": [0, 2]})
    assert made == Mixture((NextToken(), NextAll(strict=False)), [0, 2])
    model = lively(create_generator("tiny_token_unify", space=BYTES, dim=32))
    labels, codes = torch.tensor([0, 1, 2]), draw(BYTES)
    replay = [torch.tensor(0.1), torch.tensor(0.6)]  # which part, then its cut
    mixed = made.loss(model, codes, labels, Noise(replay=replay))["loss"]
    alone = NextAll(False).loss(model, codes, labels, Noise(replay=replay[1:]))["loss"]
    assert torch.equal(mixed, alone)


@pytest.mark.parametrize("growth", ["linear", "cos"])
def test_guidance_from_one_has_a_name(growth: str) -> None:
    guidance = Guidance(3.0, f"{growth}_from_one")
    assert guidance == Guidance(3.0, growth, from_one=True)
    assert guidance.at(0, 4) == 1 and guidance.at(3, 4) == pytest.approx(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(torch.tensor([11])), "labels: got 11"),
        (lambda m: m.sample(None), "labels: got None"),
        (lambda m: m.sample(torch.zeros(0).long()), "batch"),
        (lambda m: m.sample(torch.tensor([1]), "dream"), "sampler: got 'dream'"),
        (lambda m: m.sample(torch.tensor([1]), temperature=-1.0), "temperature"),
        (
            lambda m: m.sample(torch.tensor([1]), "bit_diffusion"),
            r"^sampler: got BitDiffusion, which makes bits, not .* this model takes ar, maskgit$",
        ),
        (lambda m: m.sample(torch.tensor([1.0])), "labels: got"),
        (lambda m: m.sample(torch.tensor([[1]])), "labels: got"),
        (lambda m: m.sample(torch.tensor(1)), "labels: got"),
        (lambda m: m.sample([1]), "labels: got"),
        (lambda m: m.sample(torch.tensor([1]), batch=2), "labels: got 1 rows, expected 2"),
        (lambda m: m.loss(draw(BYTES), torch.tensor([1])), "labels: got 1 rows, expected 3"),
        (lambda m: m.loss(draw(BYTES, 0), torch.zeros(0).long()), "empty batch"),
        (lambda m: m.sample(text(1)), "context: got one"),
        (lambda m: m.sample(torch.tensor([1]), stepz=3), "stepz: 'ar' has no such option"),
        (lambda m: m.sample(torch.tensor([1]), "maskgit", steps=0), "steps: got 0"),
        (
            lambda m: m.sample(torch.tensor([1]), "next_x"),
            r"^sampler: got NextX, which does not make the codes .* this model takes ar, maskgit$",
        ),
        (lambda m: m.sample(torch.tensor([1]), guidance="2"), "guidance: got '2'"),
        (lambda m: m.sample(torch.tensor([1]), guidance=float("nan")), "scale: got nan"),
        (
            lambda m: m.sample(torch.tensor([1, 2, 3]), guidance=2.0, null=torch.tensor([1, 2])),
            "null: got 2 rows",
        ),
        (lambda m: m.loss(torch.full((1, 16, 2), 9), torch.tensor([1])), "codes: got codes in"),
        (lambda m: m.loss(torch.zeros(1, 15, 2).long(), torch.tensor([1])), "codes: got shape"),
        (lambda m: Guidance(2.0, "cubic"), "schedule"),
        (lambda m: create_objective("next"), "objective"),
        (lambda m: Mixture(weights=(1.0,)), "weights"),
        (lambda m: Mixture(weights=(0.0, 0.0, 0.0)), "weights: got"),
        (lambda m: Mixture(weights=(2.0, -1.0, 0.0)), "weights: got"),
        (lambda m: Mixture(()), "parts: got none"),
        (lambda m: create_objective({"strict": True}), "objective: got 'None'"),
        (lambda m: create_objective("next_all", strct=True), "did you mean 'strict'"),
        (lambda m: Guidance(2.0, "cubic_from_one"), "schedule: got 'cubic_from_one'"),
        (lambda m: create_generator("tiny_elm_ar", space=BYTES, plan="pyramid"), "pyramid"),
        (lambda m: create_generator("tiny_elm_mlm", space=BYTES), "equal sub-codes"),
        (lambda m: create_generator("tiny_instella_ar", space=BYTES), "needs bits"),
        (lambda m: create_generator("xar_cell", size="M"), "size: got 'M'"),
        (
            lambda m: create_generator("tiny_xar_cell").loss(torch.zeros(1, 64, 3)),
            "codes: got shape",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(VTCError, match=message):
        call(create_generator("tiny_elm_ar", space=BYTES, dim=32))


def test_numbers_of_numpy() -> None:
    model = lively(create_generator("tiny_elm_ar", space=BYTES, dim=32))
    labels = torch.tensor([0, 3])
    expected = model.sample(labels, guidance=3.0, seed=1)
    assert torch.equal(model.sample(labels, guidance=np.float32(3), seed=np.int64(1)), expected)
    assert torch.equal(model.sample(labels.int(), guidance=3, seed=1), expected)


def test_sampling_leaves_the_mode_of_every_part() -> None:
    model = create_generator("tiny_elm_ar", space=BYTES, dim=32).train()
    model.backbone.blocks[0].eval()  # frozen by the user
    before = [module.training for module in model.modules()]
    model.sample(torch.tensor([0]))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["tiny_elm_ar", "tiny_instella_ar", "tiny_instella_diffusion", "tiny_xar_cell"]
)
def test_other_precisions_sample_and_train(name: str, dtype: torch.dtype) -> None:
    space = {"tiny_elm_ar": BYTES, "tiny_xar_cell": None}.get(name, BITS)
    options = {"space": space} if space else {"grid": 4, "plan": "cell:2", "depth": 2}
    model = lively(create_generator(name, dim=32, **options))
    codes = draw(space) if space else torch.randn(3, 16, 1)
    labels = torch.tensor([0, 3, 7])
    expected = model.loss(codes, labels, seed=0)["loss"].item()
    model = model.to(dtype)
    loss = model.loss(codes, labels, seed=0)["loss"]
    assert loss.isfinite()
    if dtype == torch.bfloat16:  # double numbers are drawn in another way
        assert loss.item() == pytest.approx(expected, rel=0.05)
    made = model.sample(labels, guidance=2.0, seed=0)
    assert made.shape == codes.shape and made.dtype == (torch.int64 if space else dtype)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_unequal_sub_codes_under_autocast() -> None:
    model = lively(create_generator("tiny_elm_ar", space=BYTES, dim=32))
    labels = torch.tensor([0, 3, 7])
    with torch.autocast("cpu", torch.float16):
        loss = model.loss(draw(BYTES), labels)["loss"]
        ids = model.sample(labels, guidance=2.0, seed=0)
    assert loss.item() == pytest.approx(model.loss(draw(BYTES), labels)["loss"].item(), rel=0.02)
    BYTES.check(ids)


def test_a_tied_head_predicts_masked_tokens_only() -> None:
    space = CodeSpace(4, (8, 8), (2, 2))
    model = create_generator("tiny_elm_mlm", space=space)
    with pytest.raises(VTCError, match="the 'tied' head takes several; this model takes maskgit$"):
        model.sample(torch.tensor([0]), "ar")


def test_a_tied_head_can_tell_the_subcodes_of_a_hidden_token_apart() -> None:
    space = CodeSpace(16, (8, 8), (4, 4))
    torch.manual_seed(0)
    model = create_generator("tiny_elm_mlm", space=space, dim=32).eval()
    given, ids = model.condition(torch.zeros(3).long()), draw(space)
    hidden = torch.ones(3, 16, dtype=torch.bool)
    logits = model.masked_logits(ids, hidden, given)
    torch.testing.assert_close(logits[:, :, 0], logits[:, :, 1])  # ELM's, where training starts
    model.loss(ids, torch.zeros(3).long(), seed=0)["loss"].backward()
    with torch.no_grad():
        model.head.place -= 10 * model.head.place.grad
    logits = model.masked_logits(ids, hidden, given)
    assert not torch.allclose(logits[:, :, 0], logits[:, :, 1], atol=1e-4)


@pytest.mark.parametrize("objective", ["next_token", "masked_token"])
def test_soft_targets_lie_around_the_code(objective: str) -> None:
    space = CodeSpace(4, (8, 8))
    head = "tied" if objective == "masked_token" else "index"
    model = lively(Generator(GeneratorConfig(space, TransformerConfig(16, 1, 2), head=head)))
    codes = torch.randint(8, (3, 4, 2))
    soft, hard = (
        create_objective(objective, hamming=radius).loss(model, codes, seed=1)["loss"]
        for radius in (1, 0)
    )
    if objective == "next_token":  # by hand: the code and its three neighbours
        log = model.next_logits(codes, model.condition(None)).log_softmax(-1)
        near = sum(log.gather(-1, codes.unsqueeze(-1) ^ flip) for flip in (1, 2, 4)).squeeze(-1)
        here = log.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        far = torch.tensor(-3.0).exp()
        torch.testing.assert_close(soft, -((here + far * near) / (1 + 3 * far)).mean())
    assert soft.isfinite() and abs(soft - hard) > 1e-3


@pytest.mark.parametrize("radius, head", [(-1, "index"), (1, "bit")])
def test_soft_targets_need_a_table(radius: int, head: str) -> None:
    model = Generator(GeneratorConfig(CodeSpace(4, (2, 2)), TransformerConfig(16, 1, 2), head=head))
    with pytest.raises(VTCError, match="hamming: got"):
        NextToken(hamming=radius).loss(model, torch.zeros(1, 4, 2, dtype=torch.long))


def test_objectives_are_for_codes_or_for_latents() -> None:
    codes = create_generator("tiny_elm_ar", space=BYTES, dim=32)
    latents = create_generator("tiny_xar_cell", grid=4, channels=2, plan="cell:2", dim=32)
    with pytest.raises(VTCError, match="NextX does not fit a model of codes"):
        codes.loss(draw(BYTES), torch.zeros(3).long(), objective="next_x")
    for name in ("next_token", "masked_token", "mixture"):
        with pytest.raises(VTCError, match="does not fit a model of latents"):
            latents.loss(torch.randn(3, 16, 2), torch.zeros(3).long(), objective=name)
    with pytest.raises(VTCError, match="kind: got 'cosine'"):
        create_objective({"name": "masked_token", "schedule": "cosine"})
