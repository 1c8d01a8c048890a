"""`PruningModel`: vLLM's own model, whose images come out with as many rows as were promised.

A mixin over the class of any family. No error of a method leaves it: that would end the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger

from vtc.plugins.vllm import batches, capture, families, metrics, mrope, server, start
from vtc.plugins.vllm.compress import Images, Kept, View, compress, stand_in, wanted
from vtc.plugins.vllm.settings import SPEC
from vtc.plugins.vllm.spec import Spec

logger = init_logger("vllm.vtc")


class PruningModel:
    """Encodes, lets the methods choose, and returns fewer rows."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        told = server.of(vllm_config.model_config.multimodal_config)
        start.refuse(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        config = vllm_config.model_config.hf_config
        tower = families.tower_of(config, told.blind)
        self._vtc_tally = told.tally
        self._vtc_limit = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self._vtc_next = None
        if tower.built < tower.depth:
            vision = config.vision_config
            self._vtc_next = capture.NextLayer(
                tower.built, vision.num_attention_heads, vision.layer_norm_eps
            )
        self._vtc_view = View(
            config,
            tower,
            config.get_text_config().hidden_size,
            lambda: getattr(self, "image_newline", None),
            self._vtc_project,
            self._vtc_embed,
            self._vtc_gather,
        )
        self.vtc_fallbacks = 0

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """vLLM's own; what is needed of the layer that it leaves out is noted in passing."""
        if self._vtc_next is not None:
            weights = self._vtc_next.watch(weights)
        return super().load_weights(weights)  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """`[rows, width]` of every image or clip; an image with a promise has as many rows as that."""
        carried = kwargs.pop(SPEC, None)
        if carried is None:
            return self._vtc_whole(super().embed_multimodal(**kwargs))  # type: ignore[misc]
        specs = [Spec.from_tensor(each) for each in carried]
        out: list[Tensor] = []
        for inputs, some in batches.slices(kwargs, specs, self._vtc_limit):
            kept = self._vtc_encoded(inputs, some)
            out += [self._vtc_row(each, spec) for each, spec in zip(kept, some, strict=True)]
        return tuple(out)

    # -- pieces ------------------------------------------------------------------------------------

    def _vtc_encoded(self, kwargs: dict[str, Any], specs: Sequence[Spec]) -> list[Kept]:
        """The rows that are left of the images of one slice."""
        encode = super().embed_multimodal  # type: ignore[misc]
        rows, record = capture.watched(
            lambda: encode(**kwargs),
            lambda: capture.recording(self, *wanted(specs, self._vtc_view.tower), self._vtc_next),
        )
        try:
            images = Images(
                specs,
                rows,
                batches.tiles_of(kwargs, specs),
                lambda index: batches.pixels_of(kwargs, specs, index),
                record,
            )
            return compress(self._vtc_view, images, self._vtc_failed)
        except Exception:
            logger.exception("vtc: tokens of %d images are taken at even distances", len(specs))
            for index in range(len(specs)):
                self._vtc_failed(index)
            return [stand_in(row, spec) for row, spec in zip(rows, specs, strict=True)]

    def _vtc_failed(self, index: int) -> None:
        self.vtc_fallbacks += 1
        if get_tensor_model_parallel_rank() == 0:  # all ranks fail alike
            metrics.fell_back(self._vtc_tally)

    def _vtc_row(self, kept: Kept, spec: Spec) -> Tensor:
        return kept.rows

    def _vtc_whole(self, rows: Any) -> Any:
        """Images and clips without a promise."""
        return rows

    # -- what the view asks ------------------------------------------------------------------------

    def _vtc_project(self, features: Tensor) -> Tensor:
        return capture.projector_of(self)(features[None])[0]

    def _vtc_embed(self, ids: Tensor) -> Tensor:
        if not len(ids):
            return torch.zeros(0, self._vtc_view.width, device=ids.device)
        language: Any = self.get_language_model()  # type: ignore[attr-defined]
        return language.embed_input_ids(ids)

    def _vtc_gather(self, values: Tensor, kind: str, layer: int) -> Tensor:
        whole = self._vtc_next is not None and layer == self._vtc_next.index
        return capture.gathered(values, kind, sharded=not whole)


class PruningMRoPE(PruningModel):
    """The same for models with rotary positions on three axes: rows carry their place in the image."""

    vtc_mrope = True
    supports_multimodal_pruning = True
    supported_video_pruning_methods: tuple[str, ...] = ()

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        # the runner asks this before it hands positions over, and Qwen3-VL before it lays out a table of
        # rotary positions, which must have more than there are tokens
        model_config = vllm_config.model_config
        object.__setattr__(model_config.multimodal_config, "is_multimodal_pruning_enabled", _always)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.is_multimodal_pruning_enabled = False  # the model's own pruning, of videos
        self._vtc_length = model_config.max_model_len
        self._vtc_known = min(
            (
                len(module.cos_sin_cache)
                for module in self.get_language_model().modules()  # type: ignore[attr-defined]
                if hasattr(module, "cos_sin_cache")
            ),
            default=2**31,
        )
        mrope.check_table(self._vtc_length, self._vtc_known)

    def _vtc_row(self, kept: Kept, spec: Spec) -> Tensor:
        cols = spec.packing.patch_grid[1]
        place = mrope.columns(kept.anchor // cols, kept.anchor % cols, kept.rows)
        return torch.cat([kept.rows, place.to(kept.rows.device)], 1)

    def _vtc_whole(self, rows: Any) -> Any:
        return rows if rows is None else tuple(torch.cat([r, mrope.blank(r)], 1) for r in rows)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions of the whole prompt at the places that are left of it; of an image, those of its
        first places, until its rows come."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        gaps, long, moved = [], [], 0
        for feature in features:
            place = feature.mm_position
            data = feature.data
            full = place.length
            if feature.modality == "image" and data is not None and SPEC in data:
                full = Spec.from_tensor(data[SPEC].data).full
                gaps.append((place.offset, place.length, full))
            at = dataclasses.replace(place, offset=place.offset + moved)
            if full != place.length:
                at = dataclasses.replace(at, length=full, is_embed=None)
            moved += full - place.length
            long.append(dataclasses.replace(feature, mm_position=at))
        ids, places = mrope.restored(list(input_tokens), gaps)
        positions, _ = super().get_mrope_input_positions(ids, long)  # type: ignore[misc]
        delta = int(positions.max()) + 1 - len(input_tokens)
        return self._vtc_bounded(positions[:, places].contiguous(), delta)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Positions of the tokens of a step; vLLM calls it once their rows are known."""
        config = self._vtc_view.config
        ids = torch.as_tensor(input_ids)
        is_embed = (ids == config.image_token_id) | (ids == config.video_token_id)
        features, positions, delta = mrope.recomputed(
            is_embed, multimodal_embeddings, mrope_positions, num_computed_tokens
        )
        return features, *self._vtc_bounded(positions, delta)

    def _vtc_bounded(self, positions: Tensor, delta: int) -> tuple[Tensor, int]:
        """A position behind the table would end the engine; the API server lets none come so far."""
        return mrope.bounded(positions, delta, self._vtc_known, self._vtc_length)


def _always() -> bool:
    return True
