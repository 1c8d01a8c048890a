"""What only a GPU can show: the CPU's choice, SDPA's kernels, compiled decoding, waits for the device.

Skipped without one. Everything else runs there with `VTC_TEST_DEVICE=cuda pytest tests/hf`.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import vtc
from tests import asking
from tests.device import placed
from tests.hf.tiny import snapshot
from tests.kernels.test_launches import STATED
from tests.methods.images import METHODS, image, make
from vtc import VisualTokens
from vtc.eval.common.loading import Loaded
from vtc.eval.reference import load_reference, prompt, scenes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
GREEDY = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
#: methods choose by scores; two as close as rounding may change places
TIES = 0.01
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """float32 is float32: cuDNN would round the patches' convolution to TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The reference model on the CPU, never patched, and its processor."""
    return load_reference()


@pytest.fixture
def model(loaded: tuple[Any, Any]) -> Any:
    return copy.deepcopy(loaded[0]).to(CUDA).eval()


@pytest.fixture(scope="module")
def batch(loaded: tuple[Any, Any]) -> dict[str, Any]:
    """Questions of different length about one picture, on the CPU."""
    scene = next(iter(scenes("val", 1, seed=3, questions=4)))
    prompts = [prompt(question.text) for question in scene.questions]
    made = Loaded("reference", *loaded, loaded[0].device)
    return dict(made.batch([[scene.image]] * len(prompts), prompts))


def there(batch: dict[str, Any], model: Any) -> dict[str, Any]:
    out = placed(batch, CUDA)
    return {**out, "pixel_values": out["pixel_values"].to(model.dtype)}


def row(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """A row without its padding."""
    real = batch["attention_mask"][index].bool()
    out = {key: value[index : index + 1] for key, value in batch.items()}
    return out | {key: out[key][:, real] for key in ("input_ids", "attention_mask")}


def on(model: Any, loaded: tuple[Any, Any], name: str, retention: float) -> Any:
    options = asking.options(name, 32) if name == "learned" else {}
    return vtc.compress(model, name, processor=loaded[1], retention=retention, **options)


@DTYPES
@pytest.mark.parametrize("name", METHODS)
def test_retention_one_is_bit_equal_and_removal_complete(name, dtype, model, batch, loaded) -> None:
    model = model.to(dtype)
    batch = there(batch, model)
    ask = dict(GREEDY, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        plain, steps = model(**batch).logits, model.generate(**batch, **ask)
        before = snapshot(model)
        if name != "tokenflex":  # it has a projector of its own
            with on(model, loaded, name, 1.0):
                assert torch.equal(model(**batch).logits, plain)
                ours = model.generate(**batch, **ask)
            assert torch.equal(ours.sequences, steps.sequences)
            assert all(map(torch.equal, ours.logits, steps.logits))
        with on(model, loaded, name, 0.25):
            short = model(**batch).logits
            model.generate(**batch, **GREEDY)
        assert short.shape[1] < plain.shape[1] and short.isfinite().all() and short.dtype == dtype
        assert snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize("retention", [0.5, 0.1])
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_its_rows(name, retention, model, batch, loaded) -> None:
    batch = there(batch, model)
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), on(model, loaded, name, retention):
        together, logits = model.generate(**batch, **GREEDY), model(**batch).logits
        for index in range(len(batch["input_ids"])):
            alone = row(batch, index)
            mine = model(**alone).logits[0]
            torch.testing.assert_close(logits[index, -len(mine) :], mine, atol=1e-3, rtol=1e-3)
            new = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
            assert new.tolist() == together[index, length:].tolist()


@pytest.mark.parametrize("retention", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("name", METHODS)
def test_the_model_keeps_what_it_keeps_on_the_cpu(
    name, retention, model, batch, loaded, record_property
) -> None:
    """Places and positions; the shares of those that differ go into the report."""
    kept = []
    for one, inputs in ((copy.deepcopy(loaded[0]), batch), (model, there(batch, model))):
        with torch.no_grad(), on(one, loaded, name, retention) as run:
            one(**inputs)
        kept.append([x.cpu() for x in (run.compaction.slot, run.compaction.position)])
    assert kept[0][0].shape == kept[1][0].shape
    different = max(float((a != b).double().mean()) for a, b in zip(*kept, strict=True))
    record_property("different", different)
    assert different <= TIES


def on_gpu(tokens: VisualTokens) -> VisualTokens:
    return replace(
        tokens,
        features=tokens.features.to(CUDA),
        newline=None if tokens.newline is None else tokens.newline.to(CUDA),
        signals={name: value.to(CUDA) for name, value in tokens.signals.items()},
    )


@pytest.mark.parametrize("grid,crops", [((24, 24), None), ((24, 24), (2, 2)), ((27, 27), (1, 3))])
@pytest.mark.parametrize("name", METHODS)
def test_methods_choose_what_they_choose_on_the_cpu(name, grid, crops, record_property) -> None:
    images = [image(grid, crops, (600, 500), seed=seed) for seed in range(3)]
    images = [replace(tokens, newline=images[0].newline) for tokens in images]
    method = make(name, **({"side": 8} if name == "tokenflex" else {"retention": 0.25}))
    pairs = zip(
        method.compress_all(images), method.compress_all(list(map(on_gpu, images))), strict=True
    )
    different = 0.0
    for cpu, gpu in pairs:
        assert gpu.features.is_cuda and len(cpu) == len(gpu)
        differs = (cpu.tile != gpu.tile.cpu()) | (cpu.patch != gpu.patch.cpu())
        differs |= cpu.anchor != gpu.anchor.cpu()
        different = max(different, float(differs.double().mean()))
        close = (gpu.features.cpu() - cpu.features).abs().amax(-1) < 1e-3
        assert bool((close | differs).double().mean() >= 1 - TIES)
    record_property("different", different)
    assert different <= TIES


# the decomposition of `prunesid` waits by itself
@pytest.mark.parametrize("name", [name for name in METHODS if name != "prunesid"])
def test_a_selection_waits_for_the_device_as_often_as_stated(name, record_property) -> None:
    method = make(name, **({"side": 4} if name == "tokenflex" else {"retention": 0.25}))
    images = [on_gpu(image((24, 24), (2, 2), (600, 500), seed=seed)) for seed in range(2)]
    images = [replace(tokens, newline=images[0].newline) for tokens in images]
    for _ in range(2):
        method.compress_all(images)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            method.compress_all(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in said if "synchroniz" in str(one.message)]
    record_property("waits", len(waits))
    assert len(waits) <= STATED.get(name, (0, 0, 0, 1))[3], waits


@pytest.mark.parametrize("backend", KERNELS)
def test_kernels_of_sdpa(backend, model, batch, loaded) -> None:
    """Bit equality at retention 1.0 under each, and PyTorch's own attention within rounding."""
    model = model.to(torch.bfloat16)
    single = there(row(batch, 0), model)

    def logits(kernel: SDPBackend, name: str, retention: float) -> Tensor:
        with torch.no_grad(), sdpa_kernel(kernel), on(model, loaded, name, retention):
            return model(**single).logits.float()

    try:
        with torch.no_grad(), sdpa_kernel(KERNELS[backend]):
            plain = model(**single).logits.float()
    except RuntimeError as error:
        pytest.skip(f"upstream: {str(error).splitlines()[0]}")
    assert torch.equal(logits(KERNELS[backend], "globalcom2", 1.0), plain)
    mine, other = (logits(kernel, "uniform", 0.5) for kernel in (KERNELS[backend], SDPBackend.MATH))
    assert (mine - other).norm() / other.norm() < 5e-2


@pytest.mark.parametrize("name", ["globalcom2", "recoverable"])
def test_static_cache_with_compiled_decoding(name, model, batch, loaded) -> None:
    """transformers compiles the steps behind the prompt where the cache is static."""
    batch = there(batch, model)
    static = dict(GREEDY, cache_implementation="static")
    try:
        plain = model.generate(**batch, **static)
    except Exception as error:
        pytest.skip(f"upstream: {type(error).__name__}: {str(error).splitlines()[0]}")
    assert torch.equal(plain, model.generate(**batch, **GREEDY)), "upstream"
    with on(model, loaded, name, 0.25):
        assert torch.equal(model.generate(**batch, **static), model.generate(**batch, **GREEDY))


@pytest.mark.parametrize("patch_first", [True, False])
def test_a_compiled_language_model(patch_first, model, batch, loaded) -> None:
    batch = there(batch, model)
    torch._dynamo.reset()
    with torch.no_grad(), on(model, loaded, "uniform", 0.5):
        want = model(**batch).logits
    if not patch_first:
        model.model.language_model.compile(dynamic=True)
    with torch.no_grad(), on(model, loaded, "uniform", 0.5):
        if patch_first:
            model.model.language_model.compile(dynamic=True)
        torch.testing.assert_close(model(**batch).logits, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_threads(shared, model, batch, loaded) -> None:
    """Calls at the same time on streams of their own, on one model and on two."""
    batch, names = there(batch, model), ("globalcom2", "recoverable")
    models = [model, model if shared else copy.deepcopy(model)]
    names = (names[0], names[0] if shared else names[1])
    handles = [on(one, loaded, name, 0.25) for one, name in zip(models, names, strict=True)]
    want = [one.generate(**batch, **GREEDY).tolist() for one in models]
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work(index: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(5):
                    if models[index].generate(**batch, **GREEDY).tolist() != want[index]:
                        wrong.append(f"thread {index}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert not wrong
