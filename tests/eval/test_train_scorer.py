"""`vtc train-scorer`: where answers look against eager attention, the loop, and what is refused."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vtc
from tests.families import mllama
from vtc.cli import main
from vtc.errors import VTCError
from vtc.eval import reference
from vtc.eval.common.loading import Loaded, load
from vtc.eval.reference.tiles import token_layout
from vtc.eval.scorer import fit as loop
from vtc.eval.scorer import train
from vtc.eval.scorer.compare import page, study
from vtc.eval.scorer.fit import Settings, chosen, fit, loss_of
from vtc.eval.scorer.held_out import HeldOut
from vtc.eval.scorer.pictures import GENERAL, Picture, from_folder, scenes
from vtc.eval.scorer.teach import Lesson, answer_logits, asked, file_of, lesson
from vtc.methods._scorer import DemandScorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("reference", "cpu")


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Questions of different lengths, with answers of one and of two words."""
    return scenes(2, 0, 8)[1]


def alone(loaded: Loaded, picture: Picture, question: str) -> tuple[torch.Tensor, int, dict]:
    """A prompt and its answer in one row, made without `asked`: ids, tokens of the answer, inputs."""
    inputs = loaded.inputs([picture.open()], question)
    with torch.inference_mode():
        out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8)
    inputs = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    return (
        out,
        out.shape[1] - loaded.inputs([picture.open()], question)["input_ids"].shape[1],
        inputs,
    )


def test_answers_stand_behind_their_prompts(loaded: Loaded, picture: Picture) -> None:
    said = asked(loaded, picture.open(), picture.questions, 8)
    assert len(set(said.answers.tolist())) > 1  # else there would be nothing to move
    for row, question in enumerate(picture.questions):
        whole, count, _ = alone(loaded, picture, question)
        assert int(said.answers[row]) == count
        mine = said.inputs["input_ids"][row][said.inputs["attention_mask"][row].bool()]
        assert torch.equal(mine, whole[0])
        assert bool(said.inputs["attention_mask"][row, -1])  # rows end together


def test_where_answers_look_is_what_eager_attention_says(loaded: Loaded, picture: Picture) -> None:
    found = lesson(loaded, picture, 8)
    image = picture.open()
    layout = token_layout(image.height, image.width)
    place = torch.tensor(np.where(layout.patch < 0, -1, layout.tile * 64 + layout.patch))
    kinds: dict[str, list[torch.Tensor]] = {}
    loaded.model.set_attn_implementation("eager")
    try:
        for question, kind in zip(picture.questions, picture.types, strict=True):
            ids, count, inputs = alone(loaded, picture, question)
            with torch.inference_mode():
                maps = loaded.model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **inputs,
                    output_attentions=True,
                ).attentions  # fmt: skip
            columns = (ids[0] == loaded.model.config.image_token_id).nonzero()[:, 0]
            mean = torch.stack([m[0] for m in maps]).mean((0, 1))  # layers and heads
            looks = mean[-count - 1 : -1].mean(0)[columns]
            row = torch.zeros(found.valid.numel())
            row[place[place >= 0]] = looks[place >= 0]
            kinds.setdefault(kind, []).append(row / row.sum())
    finally:
        loaded.model.set_attn_implementation("sdpa")
    want = torch.stack([torch.stack(rows).mean(0) for rows in kinds.values()]).mean(0)
    torch.testing.assert_close(found.target.flatten(), want, rtol=1e-3, atol=1e-6)
    assert float(found.target.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((found.target[~found.valid] == 0).all()) and found.overview


def test_divergence_is_that_of_single_prompts(loaded: Loaded, picture: Picture) -> None:
    held = HeldOut.of(loaded, [picture], 8)
    assert held.divergence(vtc.create_method("coverage", retention=1.0)) < 1e-4  # half precision
    got = held.divergence(vtc.create_method("uniform", retention=0.05))
    each = []
    for question in picture.questions:
        ids, count, inputs = alone(loaded, picture, question)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}
        with torch.inference_mode():
            full = loaded.model(**row).logits[0, -count - 1 : -1].log_softmax(-1)
            with vtc.compress(loaded.model, "uniform", retention=0.05):
                few = loaded.model(**row).logits[0, -count - 1 : -1].log_softmax(-1)
        each.append((full.exp() * (full - few)).sum(-1))
    assert got == pytest.approx(float(torch.cat(each).mean()), rel=2e-2, abs=1e-3)
    assert got > 0.1
    assert answer_logits(loaded, held.said[0]).shape[0] == int(held.said[0].answers.sum())


# -- the loop, on made-up lessons --------------------------------------------------------------------


def made_up(folder: Path, count: int = 5) -> list[Path]:
    """Images whose answers look at what points along one axis."""
    draw = torch.Generator().manual_seed(0)
    files = []
    for number in range(count):
        tiles = 1 + number % 3
        features = torch.randn(tiles, 16, 8, generator=draw)
        valid = torch.ones(tiles, 16, dtype=torch.bool)
        valid[-1, 12:] = False
        target = (3 * features[..., 0]).exp() * valid
        one = Lesson(
            features, torch.rand(tiles, 16, generator=draw), valid, tiles > 1, target / target.sum()
        )
        files.append(folder / f"{number}.safetensors")
        one.save(files[-1])
    return files


def fresh(seed: int = 0) -> DemandScorer:
    torch.manual_seed(seed)
    return DemandScorer(8, hidden=16, heads=2, layers=1)


def curve(scorer: DemandScorer) -> dict[str, float]:
    return {"divergence": -float(scorer.leave.weight.detach().norm())}


def test_before_the_first_step_the_loss_is_coverages(tmp_path: Path) -> None:
    lessons = [Lesson.load(file) for file in made_up(tmp_path)]
    want = []
    for one in lessons:
        demand, target = one.demand[one.valid], one.target[one.valid]
        want.append((target * (target / (demand / demand.sum())).log()).sum())
    got = loss_of(fresh(), lessons, CPU)
    assert float(got.detach()) == pytest.approx(float(torch.stack(want).mean()), rel=1e-4)


def test_it_learns_where_answers_look(tmp_path: Path) -> None:
    files = made_up(tmp_path, 8)
    scorer, settings = fresh(), Settings(steps=60, batch=4, lr=1e-2, every=30)
    before = float(loss_of(scorer, [Lesson.load(file) for file in files], CPU).detach())
    state = fit(scorer, files, settings, curve, CPU, tmp_path / "training.pt")
    after = float(loss_of(scorer, [Lesson.load(file) for file in files], CPU).detach())
    assert after < before / 4
    assert [row["step"] for row in state.curve] == [0, 30, 60]


def test_a_run_that_was_stopped_is_the_run_that_was_not(tmp_path: Path) -> None:
    files, settings = made_up(tmp_path), Settings(steps=6, batch=2, every=2)
    whole = fresh()
    fit(whole, files, settings, curve, CPU, tmp_path / "whole.pt")

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), files, settings, curve, CPU, tmp_path / "part.pt", stop)
    again = fresh(seed=1)  # whatever it begins with
    seen: list[int] = []
    state = fit(
        again, files, settings, curve, CPU, tmp_path / "part.pt", lambda step, _: seen.append(step)
    )
    assert seen == [5, 6] and [row["step"] for row in state.curve] == [0, 2, 4, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(VTCError, match="batch: the run in .* begun with another value"):
        fit(fresh(), files, Settings(steps=6, batch=4, every=2), curve, CPU, tmp_path / "part.pt")
    with pytest.raises(VTCError, match="images: the run in .* begun with another value"):
        fit(fresh(), files[1:], settings, curve, CPU, tmp_path / "part.pt")


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """Here those before the first step."""
    files, scorer = made_up(tmp_path), fresh()
    worse = iter(range(9))
    fit(scorer, files, Settings(steps=4, batch=2, every=2), lambda _: {"divergence": next(worse)},
        CPU, tmp_path / "training.pt")  # fmt: skip
    assert float(scorer.leave.weight.detach().abs().max()) == 0


def test_every_image_is_seen_once_an_epoch_and_processes_share(monkeypatch, tmp_path) -> None:
    steps = [chosen(6, 4, step, seed=3) for step in range(3)]
    places = sum(steps, [])
    assert sorted(places[:6]) == sorted(places[6:]) == list(range(6))
    assert steps != [chosen(6, 4, step, seed=4) for step in range(3)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(VTCError, match="--batch: got 4, which 3 processes cannot share"):
        fit(fresh(), made_up(tmp_path), Settings(batch=4), curve, CPU, tmp_path / "training.pt")
    assert loop.ranks() == (0, 3)


# -- pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "more/c.png"):
        Image.new("RGB", (70, 50), "red").save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def test_pictures_of_a_folder(folder: Path, tmp_path: Path) -> None:
    found = from_folder(folder, None, 8)
    assert [picture.name for picture in found] == ["a.jpg", "b.png", "more/c.png"]
    assert found[0].questions == GENERAL and found[2].open().size == (70, 50)
    lines = [
        {"image": "b.png", "question": "one", "type": "x"},
        {"image": "b.png", "question": "two", "type": "x"},
        {"image": "b.png", "question": "three", "type": "y"},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (only,) = from_folder(folder, file, 2)
    assert only.questions == ("one", "three") and only.types == ("x", "y")
    lesson = file_of(tmp_path, only, 8)
    assert lesson == file_of(tmp_path, from_folder(folder, file, 2)[0], 8)
    assert lesson != file_of(tmp_path, from_folder(folder, file, 3)[0], 8)
    assert lesson != file_of(tmp_path, only, 9)  # answers may be longer
    Image.new("RGB", (70, 50), "blue").save(folder / "b.png")  # as in another folder, by that name
    assert lesson != file_of(tmp_path, only, 8)
    for text, message in (
        ("nonsense", "line 1 of .* is not"),
        ('{"image": "z.png", "question": "what?"}', "line 1 names 'z.png', which --images has not"),
        ("", "has no questions"),
    ):
        file.write_text(text)
        with pytest.raises(VTCError, match=message):
            from_folder(folder, file, 2)
    with pytest.raises(VTCError, match="--images: got .* which has no images"):
        (tmp_path / "empty").mkdir()
        from_folder(tmp_path / "empty", None, 2)


def test_the_command_from_pictures_to_a_method(folder: Path, tmp_path: Path, capsys) -> None:
    """The lines of the issue: train on a folder, then use what was written."""
    out = tmp_path / "scorer"
    argv = ["train-scorer", "--images", str(folder), "--output", str(out), "--steps", "2"]
    argv += ["--every", "1", "--retention", "0.1", "--max-new-tokens", "4", "--batch", "2"]
    assert main(argv) == 0
    told = json.loads((out / "curve.json").read_text())
    assert [row["step"] for row in told["curve"]] == [0, 1, 2] and told["images"] == 2
    assert "kept: the weights of step" in capsys.readouterr().out
    model = load("reference", "cpu").model
    with vtc.compress(model, "learned", scorer=str(out), retention=0.1) as run:
        assert run.method.scorer.strength == told["strength"]
    before = (out / "scorer.safetensors").read_bytes()
    assert main(argv) == 0  # all of it is done already
    assert (out / "scorer.safetensors").read_bytes() == before
    capsys.readouterr()
    for option, value, named in (
        ("--retention", "0.2", "retention"),
        ("--held-out", "2", "held-out"),
    ):
        assert main([*argv, option, value]) == 1  # what is there is no answer to that
        assert f"{named}: the run in" in capsys.readouterr().err
    (out / "lessons" / "model.json").write_text(
        json.dumps({"model_type": "other", "shape": [], "sample": []})
    )
    assert main(argv) == 1
    assert "holds lessons of another model" in capsys.readouterr().err


class Stop(Exception):
    """Far enough."""


def test_what_is_trained_where(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Processes of one machine share its GPUs; images held out are of all sub-folders; the reference
    model alone is kept on one thread."""
    plans, seen, threads = [], [], []

    def load_at(model: str, device: str, dtype: str) -> None:
        seen.append(device)
        raise Stop

    @contextmanager
    def one_thread():
        threads.append(plans[-1].model)
        yield

    original = train.train
    monkeypatch.setattr(
        train, "train", lambda plan, *rest: plans.append(plan) or original(plan, *rest)
    )
    monkeypatch.setattr(train, "load", load_at)
    monkeypatch.setattr(train, "one_thread", one_thread)
    monkeypatch.setattr(train, "_gpus", lambda: True)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for model in ("reference", "org/model"):
        with pytest.raises(Stop):
            main(
                [
                    "train-scorer",
                    "--images",
                    str(folder),
                    "--output",
                    str(tmp_path),
                    "--model",
                    model,
                ]
            )
    assert seen == ["cuda:1"] * 2 and threads == ["reference"]
    names = [[picture.name for picture in plan.pictures] for plan in plans]
    assert names[0] == names[1] != sorted(names[0])


def test_a_model_that_cannot_teach_says_so_before_it_is_asked(
    folder, tmp_path, monkeypatch
) -> None:
    def load_tiny(*_: object) -> SimpleNamespace:
        return SimpleNamespace(model=mllama.build(), device=CPU)

    monkeypatch.setattr(train, "load", load_tiny)
    plan = train.Plan("org/model", from_folder(folder, None, 1), 1, tmp_path / "out", Settings())
    with pytest.raises(VTCError, match="reads images by cross-attention"):
        train.train(plan, None, None)


# -- the comparison ----------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def test_an_untrained_scorer_compares_as_coverage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    DemandScorer(128).save(tmp_path)
    sample = [s for s in reference.scenes("val", 3, 5) if s.questions]
    rows = study([tmp_path], sample, [0.05], tmp_path / "out.json")
    by_name = {row["setting"]: row for row in rows}
    assert by_name["learned, seed 0"]["accuracy"] == by_name["coverage"]["accuracy"]
    assert by_name["learned, seed 0"]["difference"] == 0
    assert by_name["full"]["accuracy"] > by_name["uniform"]["accuracy"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == rows and written["settings"]["split"] == "val"


def test_the_page_has_the_numbers_of_the_log() -> None:
    log = json.loads((ROOT / "eval/reference/logs/learned.json").read_text())
    text = (ROOT / "docs/own-methods.md").read_text()
    assert log["settings"]["split"] == "val"
    for line in page(log["rows"]):
        assert line in text, line
    for seed, run in enumerate(log["curves"]):
        for row in run["curve"]:
            loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
            at = " | ".join(f"{row['at'][share]:.3f}" for share in ("0.05", "0.03"))
            assert f"| {seed} | {row['step']} | {loss} | {at} |" in text
        strengths = " | ".join(f"{value:.3f}" for value in run["strengths"].values())
        assert f"| {seed} | {strengths} | {run['strength']:g} |" in text
