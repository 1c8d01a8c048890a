"""`PruningProcessor`: what a request asks for becomes a promise for each of its images.

A mixin over the processor of any family. vLLM calls its hooks by position or by keyword, so the names of
their parameters are vLLM's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptUpdateDetails

from vtc.errors import VTCError
from vtc.plugins.model.question import asked, worded
from vtc.plugins.vllm import families, metrics, mrope, server, spec
from vtc.plugins.vllm.settings import SPEC, Settings, Wish, split

logger = init_logger("vllm.vtc")  # vLLM's own handlers
_PROFILING: ContextVar[bool] = ContextVar("vtc_profiling", default=False)


@contextmanager
def _profiling() -> Iterator[None]:
    token = _PROFILING.set(True)
    try:
        yield
    finally:
        _PROFILING.reset(token)


class PruningProcessor:
    """Counts, checks and promises; tokens are dropped by the worker."""

    def __init__(self, info: Any, dummy_inputs: Any, **kwargs: Any) -> None:
        told = server.of(info.ctx.get_mm_config())
        super().__init__(info, dummy_inputs, **kwargs)  # type: ignore[call-arg]
        self._vtc_config = info.ctx.get_hf_config()
        self._vtc = Settings(told.defaults, os.environ)
        self._vtc_tower = families.tower_of(self._vtc_config, told.blind)
        families.check(self._vtc.default, self._vtc_config, self._vtc_tower)
        self._vtc_sizes = metrics.Sizes()
        metrics.visual_tokens()  # in /metrics from the start
        metrics.fallbacks(told.tally)

    # -- a request -------------------------------------------------------------------------------

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """vLLM's own, with the wish among the keywords that name what caches hold."""
        keywords = inputs.hf_processor_mm_kwargs or {}
        wish, theirs = Wish(), dict(keywords)
        if not _PROFILING.get():
            wish = self._vtc.request(keywords)
            theirs = split(keywords)[1]
        if wish.method == "none" or not inputs.mm_data_items.get("image"):
            if not _PROFILING.get() and inputs.mm_data_items.get("image"):
                self._vtc.limits.check_whole()
            inputs.hf_processor_mm_kwargs = theirs
        else:
            families.check(wish, self._vtc_config, self._vtc_tower)
            inputs.hf_processor_mm_kwargs = {**theirs, SPEC: self._vtc_key(wish, inputs)}
        out = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if not _PROFILING.get():
            try:
                self._vtc_count(out, wish)
            except VTCError:
                metrics.forget(inputs.cache, out)
                raise
        return out

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Memory is measured without pruning: a request may ask for all tokens."""
        with _profiling():
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]

    def _vtc_key(self, wish: Wish, inputs: Any) -> str:
        """The wish as one text, the same for equal ones: a part of every cache's key."""
        question = None
        if wish.asks:
            question = self._vtc_question(wish, inputs.prompt)
        fields = [wish.method, wish.retention, wish.tokens, wish.options, question]
        return json.dumps([spec.FORMAT, *fields], separators=(",", ":"))

    def _vtc_question(self, wish: Wish, prompt: Any) -> list[int]:
        """Ids of what guides the method: a question of its own, or what the prompt asks."""
        tokenizer, method = self.info.get_tokenizer(), wish.create()  # type: ignore[attr-defined]
        text = wish.question
        if text is None:
            ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            text = asked(method, tokenizer, torch.tensor(ids))
        text = worded(method, text)
        return list(tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _vtc_count(self, out: Any, wish: Wish) -> None:
        """Count kept and dropped tokens.

        Raises:
            VTCError: they take positions that the model does not have.
        """
        hashes = out["mm_hashes"].get("image", ())
        ranges = out["mm_placeholders"].get("image", ())
        kept = dropped = 0
        items = out["mm_kwargs"].get("image", ())
        sides = []
        for key, place, item in zip(hashes, ranges, items, strict=True):
            left = place.get_num_embeds()
            self._vtc_note(key, item)
            full, side = self._vtc_sizes.get(key) or (left, left)
            kept += left
            dropped += max(full - left, 0)
            sides.append((left, side))
        if self._vtc_config.model_type in families.MROPE:
            known = self._vtc_config.get_text_config().max_position_embeddings
            mrope.check_reach(len(out["prompt_token_ids"]), sides, known)
        if kept:
            metrics.visual_tokens().labels("kept").inc(kept)
            metrics.visual_tokens().labels("dropped").inc(dropped)
            logger.debug("vtc: %s keeps %d of %d image tokens", wish, kept, kept + dropped)

    def _vtc_note(self, key: str, item: Any) -> None:
        """Note the size of an image; a cache that has it keeps its data."""
        if item is not None and SPEC in item:
            promise = spec.Spec.from_tensor(item[SPEC].data)
            self._vtc_sizes.put(key, (promise.full, max(promise.packing.patch_grid)))

    def _merge_mm_kwargs(
        self,
        cache: Any,
        mm_hashes: Any,
        mm_is_cached: Any,
        mm_missing_kwargs: Any,
        mm_missing_prompt_updates: Any,
    ) -> Any:
        """vLLM's own; a cache in shared memory takes the data of new images as well."""
        told = zip(mm_hashes.get("image", ()), mm_is_cached.get("image", ()), strict=True)
        missing = [key for key, is_cached in told if not is_cached]
        for key, item in zip(missing, mm_missing_kwargs.get("image", ()), strict=True):
            self._vtc_note(key, item)
        return super()._merge_mm_kwargs(  # type: ignore[misc]
            cache,
            mm_hashes=mm_hashes,
            mm_is_cached=mm_is_cached,
            mm_missing_kwargs=mm_missing_kwargs,
            mm_missing_prompt_updates=mm_missing_prompt_updates,
        )

    # -- its images --------------------------------------------------------------------------------

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        """Some families call the model's processor here, which must not see the wish."""
        with _wished(hf_kwargs.get(SPEC)):
            return super()._apply_hf_processor_main(mm_items, _stripped(hf_kwargs))  # type: ignore[misc]

    def _postprocess_hf_mm_data(self, mm_data: Any, hf_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(mm_data, hf_kwargs, processed_data)  # type: ignore[misc]
        key = _WISHED.get()
        if key is not None and data.get("pixel_values") is not None:
            data[SPEC] = [
                each.to_tensor() for each in self._vtc_specs(key, mm_data, hf_kwargs, data)
            ]
        return data

    def _vtc_specs(self, key: str, mm_data: Any, hf_kwargs: Any, data: Any) -> list[spec.Spec]:
        """The promise for each image."""
        number, method, retention, tokens, options, question = json.loads(key)
        assert number == spec.FORMAT, "made in this process"
        wish = Wish(method, retention, tokens, options)
        tagged = self._vtc_config.model_type in families.TAGGED
        grids = self._vtc_grids(mm_data, hf_kwargs) if tagged else None
        units = families.units(self._vtc_config, data, grids)
        ids = None if question is None else tuple(question)
        return [spec.make(wish, unit, self._vtc.limits, tagged, ids) for unit in units]

    def _vtc_grids(self, mm_data: Any, hf_kwargs: Any) -> list[tuple[int, int]]:
        """`(rows, cols)` of crops, by the count that vLLM's placeholders follow."""
        info: Any = self.info  # type: ignore[attr-defined]
        items = info.parse_mm_data({"image": mm_data["images"]}, validate=False)["image"]
        processor, out = info.get_hf_processor(**hf_kwargs), []
        for index in range(len(items)):
            size = items.get_image_size(index)
            _, rows, cols = info._get_image_feature_grid_size(
                image_width=size.width,
                image_height=size.height,
                processor=processor,
                mm_kwargs=hf_kwargs,
            )
            out.append((rows, cols))
        return out

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, _stripped(hf_processor_mm_kwargs))  # type: ignore[misc]
        if SPEC not in hf_inputs:
            return fields
        return {**fields, SPEC: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items=mm_items,
            hf_processor_mm_kwargs=_stripped(hf_processor_mm_kwargs),
            out_mm_kwargs=out_mm_kwargs,
        )
        if SPEC not in hf_processor_mm_kwargs:
            return updates
        items = out_mm_kwargs.get("image", ())
        return [
            replace(each, replacement=_Cut(each.replacement, items))
            if each.modality == "image" and hasattr(each, "replacement")
            else each
            for each in updates
        ]


class _Cut:
    """A replacement of vLLM's, with as many placeholders as were promised."""

    def __init__(self, replacement: Any, items: Sequence[Any]) -> None:
        self.replacement, self.items = replacement, items

    def __call__(self, item_idx: int) -> Any:
        found = self.replacement
        found = found(item_idx) if callable(found) else found
        item = self.items[item_idx]
        if item is None or SPEC not in item:
            return found
        details = (
            found if isinstance(found, PromptUpdateDetails) else PromptUpdateDetails.from_seq(found)
        )
        ids = details.full
        embed = [True] * len(ids) if details.is_embed is None else details.is_embed(ids).tolist()
        left = spec.cut(ids, embed, spec.Spec.from_tensor(item[SPEC].data))
        return PromptUpdateDetails(full=left, is_embed=details.is_embed)


_WISHED: ContextVar[str | None] = ContextVar("vtc_wished", default=None)


@contextmanager
def _wished(key: Any) -> Iterator[None]:
    token = _WISHED.set(key)
    try:
        yield
    finally:
        _WISHED.reset(token)


def _stripped(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Without the wish: vLLM keeps a processor for every set of keywords."""
    return {key: value for key, value in keywords.items() if key != SPEC}
