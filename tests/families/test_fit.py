"""How a picture became one tile: what the adapter says is what the family's processor does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import vtc
from tests.families import tiny

#: the processors that the families' checkpoints come with
PROCESSORS: dict[str, Any] = {
    "llava": CLIPImageProcessorPil,
    "vipllava": CLIPImageProcessorPil,
    "llava_siglip": SiglipImageProcessorPil,
    "paligemma": SiglipImageProcessorPil,
    "gemma3": Gemma3ImageProcessorPil,
    "internvl": GotOcr2ImageProcessorPil,
    "idefics3": Idefics3ImageProcessorPil,
}


def seen_whole(processor: Any) -> bool:
    """Whether the white ends of a wide black picture are in the tile."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :8] = pixels[:, -8:] = 255
    out = processor()(Image.fromarray(pixels), do_normalize=False, return_tensors="pt")
    return bool(out["pixel_values"].max() > 0.5)


@pytest.mark.parametrize("family", PROCESSORS)
def test_fit_is_what_the_processor_does(family: str) -> None:
    model, batch = tiny.build(family), tiny.inputs(family, [[tiny.C]])
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5) as run:
        model(**batch)
    (image,) = run.reports[0].images
    assert image.tile_grid is None
    assert image.fit == ("stretch" if seen_whole(PROCESSORS[family]) else "crop")
