"""Config files: defaults, overrides, and errors that name the key and the value."""

from pathlib import Path

import pytest

from vtc import VTCError

pytest.importorskip("omegaconf")

from vtc.discrete import list_generators, list_tokenizers  # noqa: E402
from vtc.eval.generation.config import Experiment, list_configs, load_experiment  # noqa: E402


@pytest.mark.parametrize("name", list_configs())
def test_packaged_configs_load_and_name_presets(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.tokenizer.name in list_tokenizers()
    assert experiment.generator.name in list_generators()


def test_overrides_beat_the_file_and_the_file_beats_defaults() -> None:
    experiment = load_experiment("digits_ar", ["tokenizer.train.steps=7", "sample.guidance=1"])
    assert experiment.tokenizer.train.steps == 7
    assert experiment.tokenizer.train.batch == 32 != Experiment().tokenizer.train.batch
    assert experiment.sample.guidance == 1.0


def test_yaml_round_trip(tmp_path: Path) -> None:
    experiment = load_experiment("digits_pixels")
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == experiment


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tokenizer.train.stepz=3", ("stepz", "did you mean 'steps'")),
        ("tokenizer.train.steps=many", ("tokenizer.train.steps", "many")),
        ("tokenizer.train.steps=0", ("steps", "0", ">= 1")),
        ("tokenizer.train.schedule=cosin", ("schedule", "cosin", "cosine, constant")),
        ("tokenizer.loss=l3", ("tokenizer.loss", "l3")),
        ("data.held_out=2", ("held_out", "2", "0.9")),
        ("generator.target=text", ("generator.target", "codes, latents, pixels")),
        ("precision=half", ("precision", "half", "bf16")),
        ("seed", ("seed", "section.key=value")),
    ],
)
def test_errors_name_key_and_value(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(VTCError) as caught:
        load_experiment("digits_ar", [override])
    for word in words:
        assert word in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(VTCError, match="digits_ar"):
        load_experiment("digit_ar")
    (tmp_path / "broken.yaml").write_text("data: [unclosed")
    with pytest.raises(VTCError, match="YAML"):
        load_experiment(tmp_path / "broken.yaml")
