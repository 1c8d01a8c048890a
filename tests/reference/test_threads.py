"""The reference model runs on one thread by default, and nothing else does."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import vtc
from tests.hf.methods import Norms
from vtc.errors import VTCError
from vtc.eval.common import manifest
from vtc.eval.reference import checkpoint_path, load_reference, prompt, scenes, threads
from vtc.eval.reference.threads import one_thread


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_reference()


@pytest.fixture
def inputs(loaded: Any) -> Any:
    scene = next(iter(scenes("test", 1)))
    text = prompt(scene.questions[0].text)
    return loaded[1](images=[scene.image], text=text, return_tensors="pt")


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which torch begins with three threads, and nobody chose a number."""
    before = torch.get_num_threads()
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_defaults", lambda: {3})
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Listening(Norms):
    """A method that notes on how many threads it runs."""

    def compress(self, tokens: vtc.VisualTokens) -> Any:
        SEEN.append(torch.get_num_threads())
        return super().compress(tokens)


SEEN: list[int] = []


def seen(model: Any, inputs: Any, **options: Any) -> set[int]:
    """Threads in the encoder, in the language model and in a method, if there is one."""
    SEEN.clear()
    hooks = [
        module.register_forward_hook(lambda *_: SEEN.append(torch.get_num_threads()))
        for module in (model.model.vision_tower, model.model.language_model)
    ]
    try:
        with torch.no_grad():
            model(**inputs)
            assert torch.get_num_threads() == 3 or options
            model.generate(**inputs, max_new_tokens=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(SEEN) >= 4
    return set(SEEN)


@pytest.mark.parametrize("compressed", [False, True])
def test_one_thread_inside_as_many_as_before_outside(loaded, inputs, compressed: bool) -> None:
    model, processor = loaded
    if compressed:
        with vtc.compress(model, Listening(0.5), processor=processor):
            assert seen(model, inputs) == {1}
        assert len(SEEN) >= 6, "the method was listened to"
    assert seen(model, inputs) == {1}
    assert torch.get_num_threads() == 3
    torch.nn.Linear(2, 2)(torch.zeros(1, 2))  # another model of the process
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", threads.CHOSEN)
def test_a_chosen_number_stays(loaded, inputs, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    assert seen(loaded[0], inputs) == {3}
    monkeypatch.delenv(name)
    torch.set_num_threads(2)  # not what torch began with
    assert seen(loaded[0], inputs, chosen=True) == {2}


def test_torch_s_own_number_is_not_a_chosen_one(monkeypatch) -> None:
    monkeypatch.undo()
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    command = "import torch; print(torch.get_num_threads())"
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert int(told.stdout) in threads._defaults()


def test_errors_put_the_number_back(loaded, inputs) -> None:
    model, _ = loaded
    with pytest.raises(VTCError), vtc.compress(model, Listening(0.5)):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :3]})
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyboardInterrupt), one_thread(), one_thread():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 3 and threads._inside == 0


def test_python_threads_leave_each_its_own_number() -> None:
    """Whoever leaves first or last: all have their threads again."""
    barrier = threading.Barrier(3)

    def work(number: int) -> tuple[int, int]:
        barrier.wait()
        with one_thread():
            barrier.wait()
            inside = torch.get_num_threads()
            barrier.wait()
            if number:
                barrier.wait()
        if not number:
            after = torch.get_num_threads()
            barrier.wait()
        else:
            after = torch.get_num_threads()
        return inside, after

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    assert {after for _, after in found} == {3} and {inside for inside, _ in found} == {1}
    assert torch.get_num_threads() == 3 and threads._inside == 0


def test_it_is_a_llava_next_in_every_other_way(loaded, inputs, tmp_path) -> None:
    model, _ = loaded
    assert isinstance(model, transformers.LlavaNextForConditionalGeneration)
    assert type(model).__name__ == "LlavaNextForConditionalGeneration"
    plain = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        checkpoint_path()
    ).float()
    with torch.no_grad():
        expected = plain(**inputs).logits
        answer = plain.generate(**inputs, max_new_tokens=4, do_sample=False)
        # before its first run: transformers' own recorder cannot be pickled
        for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(load_reference()[0]))):
            torch.testing.assert_close(twin(**inputs).logits, expected)
            said = twin.generate(**inputs, max_new_tokens=4, do_sample=False)
            assert torch.equal(said, answer) and seen(twin, inputs) == {1}
            with vtc.compress(twin, Listening(0.5)):
                assert seen(copy.deepcopy(twin), inputs) == {1} and seen(twin, inputs) == {1}
            assert "generate" not in vars(twin)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == attention
        assert model.model.language_model.config._attn_implementation == attention
    model.save_pretrained(tmp_path)
    stored = load_file(checkpoint_path() / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], value.float()) for name, value in stored.items())
    again = transformers.LlavaNextForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected)
    fresh = load_reference()[0]
    with vtc.compress(fresh, Listening(0.5)):
        assert seen(pickle.loads(pickle.dumps(fresh)), inputs) == {1}


def test_a_manifest_tells_how_many_threads_the_model_had(loaded, monkeypatch) -> None:
    assert manifest.machine("cpu", loaded[0])["threads"] == 1
    assert manifest.machine("cpu", torch.nn.Linear(1, 1))["threads"] == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert manifest.machine("cpu", loaded[0])["threads"] == 3
