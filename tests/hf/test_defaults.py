"""What a model brings along for methods, read in one place by every caller."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vtc
from tests.families.tiny import projector
from tests.hf import tiny
from vtc.eval import reference
from vtc.eval.common.settings import Setting, create
from vtc.eval.efficiency import subject
from vtc.methods.tokenflex import TokenFlex, TokenFlexProjector
from vtc.plugins.hf import defaults

SHIPPED = reference.checkpoint_path() / "tokenflex" / "projector.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder that a model was saved in."""
    tiny.build("llava-clip").save_pretrained(tmp_path)
    return tmp_path


def loaded(folder: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    model.generation_config.suppress_tokens = [tiny.IMAGE]
    return model


def weights(method: Any) -> torch.Tensor:
    return method.projector.gate.weight


@pytest.fixture(scope="module")
def shipped() -> Any:
    return reference.load_reference()


def test_the_reference_brings_its_projector(shipped: Any) -> None:
    """By name, as a configuration and as an object, and what runs and efficiency ask for."""
    model, processor = shipped
    want = load_file(SHIPPED)["gate.weight"]
    config = vtc.CompressionConfig("tokenflex", retention=0.25)
    for method in ("tokenflex", config, TokenFlex(), vtc.create_method("tokenflex", tokens=40)):
        with vtc.compress(model, method) as run:
            assert torch.equal(weights(run.method), want)
    assert torch.equal(weights(config.create(vtc.model_defaults(model))), want)
    (method,) = create(Setting("tokenflex", 0.5), vtc.model_defaults(model))
    assert torch.equal(weights(method), want)
    options = subject.from_checkpoint("reference", "cpu").options("tokenflex")
    assert torch.equal(weights(vtc.create_method("tokenflex", **options)), want)


def test_what_a_user_gives_goes_before(shipped: Any) -> None:
    model, _ = shipped
    config = json.loads((SHIPPED.parent / "projector.json").read_text())
    mine = TokenFlexProjector(**config)
    for method, options in (
        ("tokenflex", {"projector": mine}),
        (TokenFlex(projector=mine), {}),
        (vtc.CompressionConfig("tokenflex", options={"projector": mine}), {}),
    ):
        with vtc.compress(model, method, **options) as run:
            assert run.method.projector is mine
    for method, options in (
        ("tokenflex", {"projector": None}),
        (vtc.CompressionConfig("tokenflex", options={"projector": None}), {}),
    ):
        with pytest.raises(vtc.VTCError, match="projector: got None"):
            vtc.apply(model, method, **options)
    assert not hasattr(model, "_vtc")


def test_a_projector_beside_a_checkpoint_is_found(saved: Path) -> None:
    """A user saves a trained projector into the folder of the model."""
    model = loaded(saved)
    with pytest.raises(vtc.VTCError, match=r"projector: got None.*TokenFlexProjector.save.*'pool'"):
        vtc.apply(model, "tokenflex", retention=0.5)
    trained = projector(model, seed=3)
    trained.save(saved / "tokenflex")
    assert vtc.model_defaults(model) == {"tokenflex": {"projector": str(saved / "tokenflex")}}
    batch = tiny.inputs("llava-clip", tiny.ONE)
    with torch.no_grad():
        with vtc.compress(model, "tokenflex", retention=0.5) as run:
            ours = model(**batch).logits
        with vtc.compress(model, "tokenflex", retention=0.5, projector=trained):
            assert torch.equal(model(**batch).logits, ours)
    assert torch.equal(weights(run.method), trained.gate.weight)


def test_the_file_goes_before_the_folder(saved: Path) -> None:
    model = loaded(saved)
    projector(model, seed=1).save(saved / "tokenflex")
    other = projector(model, seed=2)
    other.save(saved / "parts" / "flex")
    (saved / defaults.FILE).write_text(
        json.dumps(
            {
                "tokenflex": {"projector": "./parts/flex"},
                "token_correlation": {"alpha": 0.7, "beta": 0.2},
                "of_a_package_that_is_not_here": {"x": 1},
            }
        )
    )
    with vtc.compress(model, "tokenflex", retention=0.5) as run:
        assert torch.equal(weights(run.method), other.gate.weight)
    with vtc.compress(model, "token_correlation", beta=0.3) as run:
        assert (run.method.alpha, run.method.beta) == (0.7, 0.3)
    with vtc.compress(model, vtc.CompressionConfig("token_correlation")) as run:
        assert run.method.alpha == 0.7
    made = vtc.create_method("token_correlation")  # its fields are given, all of them
    with vtc.compress(model, made) as run:
        assert run.method is made and made.alpha == 0.57
    with vtc.compress(model, "uniform", retention=0.5) as run:
        assert run.method == vtc.create_method("uniform", retention=0.5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "vtc_defaults.json: cannot be read"),
        ("[]", "vtc_defaults.json: got .*, expected options by name for each method"),
        ('{"uniform": 3}', "expected options by name for each method"),
        ('{"uniform": {"retention": 0.5}}', "'uniform' has 'retention', which the caller alone"),
        ('{"uniform": {"tokens": 5}}', "'uniform' has 'tokens', which the caller alone"),
        ('{"uniform": {"sede": 5}}', "sede: 'uniform' has no such option"),
        ('{"uniform": {"video": "film"}}', "video: got 'film'.*comes with the model in .*"),
    ],
)
def test_files_that_are_wrong(saved: Path, text: str, message: str) -> None:
    (saved / defaults.FILE).write_text(text)
    model = loaded(saved)
    before = tiny.snapshot(model)
    with pytest.raises(vtc.VTCError, match=message):
        vtc.apply(model, "uniform", retention=0.5)
    assert tiny.snapshot(model) == before


def test_an_error_of_the_caller_is_not_the_models(saved: Path) -> None:
    (saved / defaults.FILE).write_text('{"token_correlation": {"alpha": 0.7}}')
    with pytest.raises(vtc.VTCError, match="^beta: got 7, allowed are numbers from 0 to 1$"):
        vtc.apply(loaded(saved), "token_correlation", beta=7)


def test_models_without_a_folder_bring_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Not even what happens to lie in the working directory."""
    model = tiny.build("llava-clip")
    projector(model).save(tmp_path / "tokenflex")
    monkeypatch.chdir(tmp_path)
    for name in ("", "nobody/nothing", "not a name: at all"):
        model.config.name_or_path = model.name_or_path = name
        assert vtc.model_defaults(model) == {}


def test_a_snapshot_of_the_hub_is_a_folder_too(
    saved: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """What was downloaded with the model's repository lies beside its configuration."""
    model = loaded(saved)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--flexible" / "snapshots" / commit
    projector(model).save(snapshot / "tokenflex")
    shutil.copy(saved / "config.json", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    model.config._commit_hash = commit
    model.name_or_path = "someone/flexible"
    assert vtc.model_defaults(model) == {"tokenflex": {"projector": str(snapshot / "tokenflex")}}
