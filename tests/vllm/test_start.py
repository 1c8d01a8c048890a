"""What ends the start of a server, and what its processes are told; no vLLM is needed."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers as tf

from vtc import VTCError
from vtc.plugins.vllm import families, metrics, server, start

DEFAULT = {"vtc_method": "uniform", "vtc_retention": 0.5, "num_crops": 4}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("VTC_", "VLLM_"))]:
        monkeypatch.delenv(name)
    metrics.tally.cache_clear()
    yield
    metrics.tally.cache_clear()


def configuration(keywords: dict[str, Any] | None = None, model: Any = None) -> Any:
    """What `vtc` reads of vLLM's configuration."""
    mm_config = SimpleNamespace(
        mm_processor_kwargs=keywords,
        mm_encoder_tp_mode="weights",
        get_video_pruning_spec=lambda: None,
    )
    model_config = SimpleNamespace(
        multimodal_config=mm_config, hf_config=model or tf.LlavaConfig(image_token_index=3)
    )
    return SimpleNamespace(
        model_config=model_config,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=False, compile_mm_encoder=False),
        lora_config=None,
    )


def wrong(place: str, name: str, value: Any) -> Any:
    config = configuration()
    if place == "lora_config":
        config.lora_config = SimpleNamespace()
    target = config.model_config.multimodal_config if place == "multimodal_config" else None
    setattr(target or getattr(config, place), name, value)
    return config


@pytest.mark.parametrize(
    "place,name,value,message",
    [
        ("compilation_config", "cudagraph_mm_encoder", True, "cudagraph_mm_encoder: got True"),
        ("compilation_config", "compile_mm_encoder", True, "compile_mm_encoder: got True"),
        ("lora_config", "enable_tower_connector_lora", True, "enable_tower_connector_lora: got"),
        ("multimodal_config", "get_video_pruning_spec", lambda: ("evs", 0.5), "video_pruning_rate"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(
    place: str, name: str, value: Any, message: str
) -> None:
    with pytest.raises(VTCError, match=message + ".*; turn it off, or set VTC_VLLM=0$"):
        start.check(wrong(place, name, value))
    start.check(configuration())


@pytest.mark.parametrize(
    "keywords,message",
    [
        ({"vtc_method": "unifrom", "vtc_retention": 0.5}, "did you mean 'uniform'"),
        ({"vtc_method": "uniform", "vtc_retention": 5}, "vtc_retention: got 5"),
        ({"vtc_retenton": 0.5}, "got 'vtc_retenton', .*did you mean 'vtc_retention'"),
        ({"vtc_method": "fastv", "vtc_retention": 0.5}, "works at a place"),
        (
            {
                "vtc_method": "globalcom2",
                "vtc_retention": 0.5,
                "vtc_options": {"cls_layer": "output"},
            },
            "globalcom2.* has no option 'cls_layer'",
        ),
        (
            {"vtc_method": "dtoken", "vtc_retention": 0.5},
            "vtc_method: ",
        ),
    ],
)
def test_wrong_defaults_end_the_start_in_one_line(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(VTCError, match=message) as caught:
        start.check(configuration(keywords))
    assert "\n" not in str(caught.value)


def test_a_default_for_a_model_that_is_not_pruned_ends_the_start() -> None:
    full = tf.LlavaConfig(image_token_index=3, vision_feature_select_strategy="full")
    pixtral = tf.LlavaConfig(image_token_index=3, vision_config=tf.PixtralVisionConfig())
    for model, message in (
        (full, "hands the CLS token"),
        (pixtral, "a token behind every row"),
        (tf.SmolVLMConfig(), "could not be compared"),
        (tf.Gemma3Config(), "Gemma 3"),
    ):
        start.check(configuration(model=model))  # as vLLM has it
        with pytest.raises(VTCError, match=f"model: .*{message}.*served without pruning"):
            start.check(configuration(dict(DEFAULT), model))


def test_ranks_that_see_their_own_images_read_no_tower() -> None:
    model = tf.Qwen2_5_VLConfig()
    config = configuration({"vtc_method": "visionzip", "vtc_retention": 0.5}, model)
    config.model_config.multimodal_config.mm_encoder_tp_mode = "data"
    start.check(config)  # one rank has all images
    config = configuration({"vtc_method": "visionzip", "vtc_retention": 0.5}, model)
    config.model_config.multimodal_config.mm_encoder_tp_mode = "data"
    config.parallel_config.tensor_parallel_size = 2
    with pytest.raises(VTCError, match="'visionzip' reads the vision tower, and under mm_encoder"):
        start.check(config)
    config = configuration(dict(DEFAULT), model)
    config.model_config.multimodal_config.mm_encoder_tp_mode = "data"
    config.parallel_config.tensor_parallel_size = 2
    start.check(config)
    told = server.of(config.model_config.multimodal_config)
    tower = families.tower_of(model, told.blind)
    settings = start.Settings(told.defaults, {})
    for method in ("uniform", "divprune"):
        families.check(settings.request({"vtc_method": method}), model, tower)
    with pytest.raises(VTCError, match="'visionzip' reads the vision tower"):
        families.check(settings.request({"vtc_method": "visionzip"}), model, tower)


def test_vllms_own_check_of_a_model_is_run_as_well() -> None:
    class Own:
        seen: list[Any] = []

        @classmethod
        def verify_and_update_config(cls, config: Any) -> None:
            cls.seen.append(config)

        @classmethod
        def verify_and_update_model_config(cls, config: Any) -> None:
            cls.seen.append(config)

    both, alone = start.checked(Own), start.checked(None)
    assert start.checked(both) is both
    config = configuration(dict(DEFAULT))
    both.verify_and_update_config(config)
    both.verify_and_update_model_config(config.model_config)
    alone.verify_and_update_model_config(config.model_config)
    assert Own.seen == [config, config.model_config]
    with pytest.raises(VTCError):
        alone.verify_and_update_config(configuration({"vtc_method": "unifrom"}))


def test_vllm_never_sees_our_keywords() -> None:
    config = configuration(dict(DEFAULT)).model_config.multimodal_config
    assert server.of(config).defaults == DEFAULT
    assert config.mm_processor_kwargs == {"num_crops": 4}
    assert server.of(config).defaults == DEFAULT  # once more, in the same process


def test_a_process_with_another_vtc_ends_before_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    told = server.Server(DEFAULT, "blind", "/tmp/nowhere")
    sent = pickle.dumps(told)
    assert pickle.loads(sent) == told == copy.deepcopy(told)
    monkeypatch.setattr(server, "VERSION", "9.9")
    with pytest.raises(VTCError, match="got 9.9 in this process .* on every node"):
        pickle.loads(sent)


@pytest.mark.parametrize("name,value", [("VTC_VLLM", "0"), ("VLLM_PLUGINS", "lora,other")])
def test_a_process_without_the_plug_in_ends_before_it_works(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(server.Server(DEFAULT))
    monkeypatch.setenv(name, value)
    assert not server.turned_on()
    with pytest.raises(VTCError, match="in a worker of a server that prunes"):
        pickle.loads(sent)
    monkeypatch.setenv("VTC_VLLM", "yes")
    with pytest.raises(VTCError, match="VTC_VLLM: got 'yes', allowed are 0 and 1"):
        server.turned_on()


def test_a_process_without_vtc_ends_before_it_works() -> None:
    sent = pickle.dumps(server.Server(DEFAULT))
    # -I: neither this folder nor the environment's path; -S: no installed packages
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], input=sent, capture_output=True)
    assert done.returncode and b"No module named 'vtc'" in done.stderr


def test_failures_in_other_processes_are_counted_on_this_machine() -> None:
    path = metrics.tally()
    assert path is not None and metrics.tally() == path and os.path.getsize(path) == 0
    try:
        code = f"from vtc.plugins.vllm import metrics; metrics.fell_back({path!r})"
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code], check=True)
        metrics.fell_back(path)
        assert os.path.getsize(path) == 3
        metrics._remove(path, os.getpid() + 1)  # a process that was forked ends
        assert os.path.getsize(path) == 3
    finally:
        metrics._remove(path, os.getpid())
    metrics.fell_back(path)  # on another machine the file is not there, and none is made
    assert not Path(path).exists()


def test_where_metrics_count_over_processes_there_is_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/tmp/somewhere")
    assert metrics.tally() is None
