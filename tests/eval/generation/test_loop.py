"""Training: continued runs equal uninterrupted ones, averages, errors, several processes."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vtc import VTCError
from vtc.discrete import Noise, create_tokenizer
from vtc.discrete.adversarial import Adversarial, PatchDiscriminator

pytest.importorskip("omegaconf")
pytest.importorskip("accelerate")

from vtc.eval.generation.config import TrainSettings  # noqa: E402
from vtc.eval.generation.data import TensorImages  # noqa: E402
from vtc.eval.generation.loop import fit, latest, learning_rate  # noqa: E402
from vtc.eval.generation.tasks import Lpips, TokenizerTask  # noqa: E402


class Killed(BaseException):
    """Stands for a signal: nothing in between may catch it."""


def images() -> TensorImages:
    draw = torch.Generator().manual_seed(0)
    return TensorImages(torch.rand(50, 3, 8, 8, generator=draw) * 2 - 1, torch.zeros(50).long())


def task(rival: bool = False, **options: Any) -> TokenizerTask:
    torch.manual_seed(0)
    options = options or {"quantizer": "bernoulli", "options": {"bits": 4}}
    adversarial = None
    if rival:
        discriminator = PatchDiscriminator(width=4, layers=1)
        adversarial = Adversarial(start=4, lecam=0.1, discriminator=discriminator)
    tokenizer = create_tokenizer("tiny_titok", dim=24, **options)
    return TokenizerTask(tokenizer, prefix=True, adversarial=adversarial)


SETTINGS = TrainSettings(steps=9, batch=8, log_every=2, checkpoint_every=3)
MOVING = {
    "quantizer": "ema_vq",
    "options": {"size": 16, "code_dim": 4, "kmeans": True, "reset_below": 2.0},
}


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


RIVAL = {"rival": True, "quantizer": "bernoulli", "options": {"bits": 4}}


@pytest.mark.parametrize("options", [{}, MOVING, RIVAL], ids=["bernoulli", "moving", "adversarial"])
def test_a_continued_run_is_bit_equal(options: dict, tmp_path: Path) -> None:
    if options is MOVING:
        pytest.importorskip("vector_quantize_pytorch")
    plain = task(**options)
    best, history = fit(plain, images(), SETTINGS, seed=5, folder=tmp_path / "whole")

    def kill(step: int, row: dict) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(task(**options), images(), SETTINGS, 5, tmp_path / "cut", progress=kill)
    assert latest(tmp_path / "cut" / "checkpoints").name == "step_3"  # type: ignore[union-attr]
    torch.manual_seed(123)  # nothing may hang on the state that is left over
    again = task(**options)
    second, continued = fit(again, images(), SETTINGS, 5, tmp_path / "cut", resume=True)
    for one, other in ((plain, again), (best, second)):
        left, right = weights(one), weights(other)
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert history == continued
    assert [row["step"] for row in history] == [2, 4, 6, 8, 9]


def test_a_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    fit(task(), images(), TrainSettings(steps=2, batch=8), 0, tmp_path)
    (tmp_path / "checkpoints" / "unfinished").mkdir()
    assert latest(tmp_path / "checkpoints").name == "step_2"  # type: ignore[union-attr]
    with pytest.raises(VTCError, match="--resume"):
        fit(task(), images(), TrainSettings(steps=2, batch=8), 0, tmp_path)


def test_another_seed_is_another_run() -> None:
    short = TrainSettings(steps=2, batch=8, log_every=1)
    runs = [fit(task(), images(), short, seed)[1] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_averaged_weights_follow_the_last_ones() -> None:
    settings = TrainSettings(steps=3, batch=8, ema=0.5)
    plain = task()
    best, _ = fit(plain, images(), settings)
    name = "tokenizer.decoder.out.weight"
    assert not torch.equal(weights(best)[name], weights(plain)[name])
    plain = task()
    same, _ = fit(plain, images(), TrainSettings(steps=3, batch=8, ema=0.0))
    assert same is plain and not same.training


def test_the_average_is_the_recursion() -> None:
    class Walk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
            return {"loss": -self.x.sum()}

    walk, seen = Walk(), []
    settings = TrainSettings(steps=20, batch=8, ema=0.5, weight_decay=0.0)
    best, _ = fit(walk, images(), settings, progress=lambda *_: seen.append(walk.x.item()))
    expected = seen[0]
    for count, value in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert best.x.item() == pytest.approx(expected)


def test_the_sides_are_clipped_apart() -> None:
    """A rival with huge gradients leaves the autoencoder's step as it is."""
    settings = TrainSettings(steps=5, batch=8, clip=1e-3, weight_decay=0.0)
    ends = []
    for factor in (1.0, 1e3):
        model = task(rival=True)
        model.adversarial.weight = 0.0  # so that only the discriminator's own loss differs

        def loud(module: Any, args: Any, output: Tensor, factor: float = factor) -> Tensor:
            return output * factor

        model.adversarial.discriminator.register_forward_hook(loud)
        model.adversarial.adaptive = False
        fit(model, images(), settings, 5)
        ends.append(weights(model.tokenizer))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_perceptual_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(torch.nn.Conv2d):  # stands in for the lpips package, which downloads its weights
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__(3, 4, 3)

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            difference = super().forward(output) - super().forward(target)
            return difference.square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Net))
    model = TokenizerTask(create_tokenizer("tiny_titok", dim=24), perceptual=Lpips(0.5))
    assert not any("lpips" in name or "perceptual" in name for name in model.state_dict())
    batch = images()[list(range(4))]
    seen = model(batch, Noise(0))
    model.perceptual = None
    plain = model(batch, Noise(0))
    assert seen["reconstruction"] > plain["reconstruction"]
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(VTCError, match=r"vtc-vlm\[discrete\]"):
        Lpips(1.0)


def test_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 9 and 0 < rates[-1] < 0.01
    constant = TrainSettings(steps=100, lr=1.0, warmup=0.1, schedule="constant")
    assert learning_rate(constant, 99) == 1.0


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    broken = images()
    broken.tensors["image"][:] = float("nan")
    with pytest.raises(VTCError, match=r"loss is nan at step 1"):
        fit(task(), broken, TrainSettings(steps=3, batch=8, log_every=1))


def test_prefixes_need_one_dimensional_codes() -> None:
    with pytest.raises(VTCError, match="prefix"):
        TokenizerTask(create_tokenizer("tiny_elm_bae", width=8), prefix=True)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Gradients of both processes are averaged, so both end with the same weights, rivals too."""
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys, torch\n"
        "from accelerate import PartialState\n"
        "from vtc.eval.generation.loop import fit\n"
        "from tests.eval.generation.test_loop import SETTINGS, images, task\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "model = task(rival=True)\n"
        "fit(model, images(), SETTINGS, 5, folder / 'run')\n"
        "rank = PartialState().process_index\n"
        "total = sum(p.double().abs().sum().item() for p in model.parameters())\n"
        "(folder / f'{rank}.json').write_text(json.dumps([total, PartialState().num_processes]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and first[1] == 2
    assert latest(tmp_path / "run" / "checkpoints").name == "step_9"  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "run")
    alone = task(rival=True)
    fit(alone, images(), SETTINGS, 5)
    total = sum(p.double().abs().sum().item() for p in alone.parameters())
    assert total == pytest.approx(first[0], rel=0.05)  # the noise of the second process differs
