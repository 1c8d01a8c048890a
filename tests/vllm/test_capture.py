"""What is read of a vision tower while it runs, and of a reading that fails; no vLLM is needed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vtc import VTCError
from vtc.plugins.vllm import capture

HEADS, WIDTH = 2, 8


class Core(nn.Module):
    """The core of an attention layer, as vLLM has it."""

    num_heads = HEADS

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value


class Tower(nn.Module):
    """A model whose encoder has `depth` layers and goes over its images one by one."""

    def __init__(self, depth: int = 3, broken: int | None = None) -> None:
        super().__init__()
        layers = nn.ModuleList(nn.Module() for _ in range(depth))
        for layer in layers:
            layer.self_attn = nn.Module()
            layer.self_attn.attn = Core()
        if broken is not None:
            layers[broken].self_attn.attn.num_heads = HEADS + 1  # its queries cannot be cut
        self.vision_tower = nn.Module()
        self.vision_tower.encoder = nn.Module()
        self.vision_tower.encoder.layers = layers
        self.multi_modal_projector = nn.Linear(WIDTH, WIDTH)
        self.runs = 0

    def encode(self, images: Tensor) -> list[Tensor]:
        self.runs += 1
        rows = []
        for image in images:
            x = image[None]
            for layer in self.vision_tower.encoder.layers:
                x = layer.self_attn.attn(x, 2 * x, x + 1)
            rows.append(self.multi_modal_projector(x)[0])
        return rows

    @property
    def hung(self) -> int:
        """What hangs on the model."""
        layers = self.vision_tower.encoder.layers
        hooks = sum(len(layer.self_attn.attn._forward_pre_hooks) for layer in layers)
        return hooks + ("forward" in vars(self.multi_modal_projector))


def run(model: Tower, layers: set[int], images: Tensor) -> tuple[list[Tensor], capture.Record]:
    watch = partial(capture.recording, model, layers, True, None)
    return capture.watched(partial(model.encode, images), watch)


def test_queries_keys_and_what_the_projector_reads() -> None:
    model, images = Tower(), torch.randint(9, (2, 5, WIDTH)).float()  # sums are exact
    rows, record = run(model, {0, 2}, images)
    assert model.runs == 1 and not model.hung
    assert torch.equal(torch.stack(rows), torch.stack(model.encode(images)))
    assert sorted(record.attention) == [0, 2]
    for layer, calls in record.attention.items():
        for heads, image in zip(calls, images + layer, strict=True):
            query = image.view(1, 5, HEADS, -1).transpose(1, 2)
            assert torch.equal(heads.query, query) and torch.equal(heads.key, 2 * query)
    for given, image in zip(record.projector_input, images, strict=True):
        assert torch.equal(given[0], image + 3)


def test_of_a_reading_that_failed_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Layer 0 was seen before layer 1 failed: half a record would be taken for that of all images."""
    model, images = Tower(broken=1), torch.randn(2, 5, WIDTH)
    rows, record = run(model, {0, 1}, images)
    assert "nothing could be read of the vision tower" in caplog.text
    assert record == capture.Record()
    assert model.runs == 2 and not model.hung
    whole = Tower()
    whole.load_state_dict(model.state_dict())
    assert torch.equal(torch.stack(rows), torch.stack(whole.encode(images)))


def test_a_layer_that_is_not_there_costs_the_reading_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Tower()
    rows, record = run(model, {7}, torch.randn(1, 5, WIDTH))
    assert len(rows) == 1 and record == capture.Record() and not model.hung
    assert "layer: got 7, vLLM built 3 layers of the tower" in caplog.text


def test_an_error_of_the_encoder_itself_is_raised() -> None:
    def encode() -> list[Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        capture.watched(encode, partial(capture.recording, Tower(), {0}, False, None))
    with pytest.raises(VTCError, match="no tower under"):
        capture.layers_of(nn.Module())
