"""Every method in front of the language model runs in every family."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import asking
from tests.families.tiny import projector
from tests.hf import tiny
from tests.methods.images import METHODS
from vtc.registry import method_class


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["none", *METHODS])
def test_method_runs(name: str, family: str) -> None:
    """Half of the patches, a ragged batch: right counts, finite logits, batch equals rows alone."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    options = asking.options(name, 32)
    if method_class(name).projects:
        options = {"projector": projector(model)}
    try:
        run = vtc.apply(model, name, retention=0.5, processor=asking.tokenizer(), **options)
    except vtc.VTCError as error:
        # the only good reason to refuse
        assert "siglip" in family and "CLS" in str(error)
        return
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=3, do_sample=False)
        logits = model(**batch).logits
        assert logits.isfinite().all()
        for image in run.reports[-1].images:
            share = 1.0 if name == "none" else 0.5
            assert image.patches_after <= max(1, round(image.patches_before * share))
        for i in range(len(tiny.MIXED)):
            single = tiny.row(batch, tiny.MIXED, i)
            alone = model.generate(**single, max_new_tokens=3, do_sample=False)
            assert alone[0, -3:].tolist() == out[i, -3:].tolist()
    run.remove()
    assert "_vtc" not in vars(model)
