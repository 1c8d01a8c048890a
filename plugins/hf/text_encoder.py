"""The text half of a CLIP or SigLIP model: embeds questions and projects patches into the same space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError


#: what works where no text tower fits the vision tower
_WITHOUT = "'recoverable' takes text_score='similarity', which uses no text tower"


class TextEncoder:
    """A CLIP text tower with the two projections of its shared text-image space.

    The vision tower of the checkpoint is dropped after loading.

    Args:
        source: hub id or folder of a `CLIPModel`.
        width: width C of the vision tower whose patches are projected.
        whole_padding: read the last padded position instead of the first end-of-text token, as the
            official code of Recoverable Compression does.
    """

    def __init__(self, source: str | Path, width: int, whole_padding: bool = False) -> None:
        model = _pretrained("CLIPModel", source)
        self.tokenizer = _tokenizer(source)
        _fits(source, model.visual_projection.in_features, width)
        self.text_model = model.text_model.eval().requires_grad_(False)
        self.text_projection = model.text_projection.requires_grad_(False)
        self.visual_projection = model.visual_projection.requires_grad_(False)
        self.whole_padding = whole_padding
        self.max_length = model.config.text_config.max_position_embeddings
        self._cache: dict[str, Tensor] = {}

    def embed(self, text: str) -> Tensor:
        """`[P]` embedding of a text, not normalised; remembered for the last texts seen."""
        if text not in self._cache:
            if len(self._cache) > 256:
                self._cache.clear()
            self._cache[text] = self._embed(text)
        return self._cache[text]

    def _padded(self, text: str, device: torch.device) -> Any:
        """Ids and mask `[1, max_length]`, padded to the full length."""
        return self.tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(device)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        inputs = self._padded(text, self.text_projection.weight.device)
        ids = inputs["input_ids"]
        mask = None if self.whole_padding else inputs["attention_mask"]
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        if self.whole_padding:
            return self.text_projection(hidden[-1])
        ends = (ids[0] == self.tokenizer.eos_token_id).nonzero()
        last = int(ends[0]) if len(ends) else int(inputs["attention_mask"][0].sum()) - 1
        return self.text_projection(hidden[last])

    def project(self, hidden: Tensor) -> Tensor:
        """Patches `[..., C]` into the shared space, `[..., P]`."""
        self.to(hidden.device)
        return self.visual_projection(hidden.to(self.visual_projection.weight.dtype))

    def to(self, device: torch.device) -> None:
        """Move to the device of the vision tower."""
        if self.text_projection.weight.device != device:
            for part in (self.text_model, self.text_projection, self.visual_projection):
                part.to(device)
            self._cache.clear()


class SiglipTextEncoder(TextEncoder):
    """SigLIP's text tower, and its pooling head for single patches.

    SigLIP has no projection of patches: an image's embedding is what its pooling head makes of all of
    them. A patch goes through the same head as if it were the whole image, that is, behind the tower's
    last norm, the head's value path and its MLP [this project's choice; there is no published one].

    Args:
        source: hub id or folder of a `SiglipModel`.
        width: width C of the vision tower whose patches are projected.
    """

    def __init__(self, source: str | Path, width: int) -> None:
        model = _pretrained("SiglipModel", source)
        vision = getattr(model.vision_model, "vision_model", model.vision_model)
        self.tokenizer = _tokenizer(source)
        _fits(source, vision.post_layernorm.weight.shape[0], width)
        self.text_model = model.text_model.eval().requires_grad_(False)
        self.norm = vision.post_layernorm.requires_grad_(False)
        self.head = vision.head.eval().requires_grad_(False)
        self.max_length = model.config.text_config.max_position_embeddings
        self._cache = {}

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        # As it was trained: padded to full length, padding seen, the last place read
        inputs = self._padded(text, self.norm.weight.device)
        return self.text_model(input_ids=inputs["input_ids"]).pooler_output[0]

    def project(self, hidden: Tensor) -> Tensor:
        self.to(hidden.device)
        patches = self.norm(hidden.to(self.norm.weight.dtype))
        return self.head(patches.flatten(0, -2)[:, None]).unflatten(0, hidden.shape[:-1])

    def to(self, device: torch.device) -> None:
        if self.norm.weight.device != device:
            for part in (self.text_model, self.norm, self.head):
                part.to(device)
            self._cache.clear()


class CallableTextEncoder:
    """A user's own pair of functions in place of `TextEncoder`.

    Args:
        embed: text -> `[P]`.
        project: patches `[..., C]` -> `[..., P]`.
    """

    def __init__(self, embed: Callable[[str], Tensor], project: Callable[[Tensor], Tensor]) -> None:
        self.embed, self.project = embed, project


def _pretrained(kind: str, source: str | Path) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(source)
    except (OSError, ValueError) as error:
        raise VTCError(
            f"text_encoder: got {str(source)!r}, which cannot be loaded as a CLIP or SigLIP model: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _tokenizer(source: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise VTCError(
            f"text_encoder: got {str(source)!r}, which has no tokenizer: {str(error).splitlines()[0]}"
        ) from error


def _fits(source: str | Path, have: int, width: int) -> None:
    if have != width:
        raise VTCError(
            f"text_encoder: got {str(source)!r}, made for vision features of width {have}, but this "
            f"model's vision tower has width {width}; for a tower without a text tower {_WITHOUT}"
        )


def _make(source: str | Path, width: int, official: bool) -> TextEncoder:
    """SigLIP's or, for anything else, CLIP's text encoder."""
    from transformers import PreTrainedConfig

    try:
        kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError):
        kind = None  # the loader says what is wrong
    if kind == "siglip":
        return SiglipTextEncoder(source, width)
    return TextEncoder(source, width, official)


_LOADED: dict[tuple[str, int, bool], TextEncoder] = {}


def load_text_encoder(choice: Any, model: nn.Module, width: int, official: bool) -> Any:
    """The text encoder that a text-guided method reads, loaded once and shared.

    Args:
        choice: hub id, folder, a pair `(embed, project)` of callables, or None for the `clip` folder
            beside the model's own weights.
        model: the model to compress, for its folder.
        width: width of its vision tower.
        official: see `TextEncoder.whole_padding`.

    Raises:
        VTCError: there is none, it cannot be loaded, or it does not fit the vision tower.
    """
    if isinstance(choice, (tuple, list)) and len(choice) == 2 and all(map(callable, choice)):
        return CallableTextEncoder(*choice)
    if hasattr(choice, "embed") and hasattr(choice, "project"):
        return choice
    if choice is None:
        beside = Path(getattr(model, "name_or_path", "") or "") / "clip"
        if not (beside / "config.json").is_file():
            raise VTCError(
                "text_encoder: got None, and the checkpoint brings none; give the CLIP model that the "
                "vision tower comes from, or its SigLIP model, e.g. "
                "text_encoder='openai/clip-vit-large-patch14-336'; for a tower that comes from none "
                f"{_WITHOUT}"
            )
        choice = beside
    if not isinstance(choice, (str, Path)):
        raise VTCError(
            f"text_encoder: got {choice!r}, allowed are a hub id, a folder, or a pair of callables "
            "(embed, project)"
        )
    key = (str(choice), width, official)
    if key not in _LOADED:
        _LOADED[key] = _make(choice, width, official)
    return _LOADED[key]


def load_tokenizer(processor: Any, model: nn.Module) -> Any:
    """The tokenizer that reads the prompt: the processor's, or the one beside the model's weights.

    Raises:
        VTCError: neither is there.
    """
    if processor is not None:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "decode"):
            raise VTCError(f"processor: got {type(processor).__name__}, which cannot decode text")
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise VTCError(
            "processor: got None, and no tokenizer is found beside the model; text-guided methods read "
            "the question from the prompt, so pass processor=..., or a fixed question=..."
        ) from error
