"""Figures of towers on states made by hand."""

from __future__ import annotations

import pytest
import torch

from tests.families.models import clip, llava
from vtc.eval.reference_photo.outliers import figures, look, table


def test_figures_by_hand():
    states = torch.zeros(1, 4, 2)
    states[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [5.0, 0.0]])
    found = figures(states, torch.tensor([[1.0, 1.0, 1.0, 5.0]]))
    assert found["largest"] == pytest.approx(5.0) and found["outliers"] == pytest.approx(0.25)
    assert found["few"] == pytest.approx(5 / 8)  # the first of four patches
    assert found["twins"] == pytest.approx(0.5)  # one pair is at right angles, one alike
    assert "| `photo` | 5.00 | 25.0 | 62 | 0.50 |" in table({"photo": found})


def test_look_reads_the_layer_that_the_model_reads():
    torch.manual_seed(0)
    model = llava(clip()).eval()
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True, output_attentions=True)
    layer = model.config.vision_feature_layer  # -2: made by the last layer but one
    depth = len(out.attentions)
    states = out.hidden_states[depth + 1 + layer][:, 1:]
    attention = out.attentions[depth + layer][:, :, 0, 1:].mean(1)
    assert look(model, [pixels[:1], pixels[1:]]) == pytest.approx(figures(states, attention))
