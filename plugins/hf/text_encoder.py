"""The text half of a CLIP or SigLIP model: embeds questions and projects patches into the same space.

An encoder belongs to the patches that use it. Patches on one device that name the same source share one
while one of them is on its model; with the last it is gone. It never leaves its device: a vision tower
elsewhere gets an encoder of its own there.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf.typing import Model

#: held while something is loaded, copied, tokenized (a fast tokenizer cannot pad for two threads at
#: once) or put into a cache; not on the instances, which are copied and pickled with their model
_LOCK = threading.RLock()
_CACHED = 256  # texts
_Key = tuple[str, int, bool, torch.device]  # source, width, `whole_padding`, device


#: what works where no text tower fits the vision tower
_WITHOUT = "give text_score='similarity', which uses no text tower, or take 'mmtok'"


class TextEncoder:
    """A CLIP text tower with the two projections of its shared text-image space.

    The vision tower of the checkpoint is dropped after loading.

    Args:
        source: hub id or folder of a `CLIPModel`.
        width: width C of the vision tower whose patches are projected.
        whole_padding: read the last padded position instead of the first end-of-text token, as the
            official code of Recoverable Compression does.
    """

    #: the modules, by attribute
    parts: ClassVar[tuple[str, ...]] = ("text_model", "text_projection", "visual_projection")

    def __init__(self, source: str | Path, width: int, whole_padding: bool = False) -> None:
        model = _pretrained("CLIPModel", source)
        self.tokenizer = _tokenizer(source)
        _fits(source, model.visual_projection.in_features, width)
        self.text_model = model.text_model.eval().requires_grad_(False)
        self.text_projection = model.text_projection.requires_grad_(False)
        self.visual_projection = model.visual_projection.requires_grad_(False)
        self.whole_padding = whole_padding
        self.max_length = model.config.text_config.max_position_embeddings
        self._fresh()

    def _fresh(self) -> None:
        """Nobody else's yet, with nothing remembered."""
        self._key: _Key | None = None
        self._cache: dict[str, Tensor] = {}
        self._elsewhere: dict[torch.device, TextEncoder] = {}

    @property
    def device(self) -> torch.device:
        """Where it is, for good."""
        return next(getattr(self, self.parts[0]).parameters()).device

    def on(self, device: torch.device) -> TextEncoder:
        """This encoder, or the one of the same weights on another device, where it is needed."""
        if self.device == device:
            return self
        found = self._elsewhere.get(device)
        if found is None:
            with _LOCK:
                key = None if self._key is None else (*self._key[:-1], device)
                found = self._elsewhere[device] = _shared(key, lambda: self._copy(device))
        return found

    def _copy(self, device: torch.device) -> TextEncoder:
        other = copy.copy(self)
        for part in self.parts:
            setattr(other, part, copy.deepcopy(getattr(self, part)))
        other._fresh()
        return other._settle(device)

    def _settle(self, device: torch.device) -> TextEncoder:
        """Move there, before anybody has it."""
        for part in self.parts:
            getattr(self, part).to(device)
        return self

    # not inference tensors, which a training run could not read from the cache later
    @torch.inference_mode(False)
    def embed(self, text: str) -> Tensor:
        """`[P]` embedding of a text, not normalised; remembered for the last texts seen."""
        found = self._cache.get(text)
        if found is None:
            found = self._embed(text)
            with _LOCK:
                while len(self._cache) >= _CACHED:
                    del self._cache[next(iter(self._cache))]
                self._cache[text] = found
        return found

    @torch.no_grad()
    def segments(self, text: str) -> Tensor:
        """`[M, P]`, the embeddings of a text cut into pieces that the tower can read.

        The ids of the whole text are filled up with masked zeros and cut, as CDPruner's code does.
        """
        with _LOCK:
            ids = self.tokenizer(text)["input_ids"]
        rows = -(-len(ids) // self.max_length) * self.max_length
        padded = torch.zeros(2, rows, dtype=torch.long)
        padded[0], padded[1, : len(ids)] = self._filler(), 1
        padded[0, : len(ids)] = torch.tensor(ids)
        ids, mask = padded.unflatten(1, (-1, self.max_length)).to(self.device)
        return self._pooled(ids, mask)

    def _filler(self) -> int:
        """The id behind a text."""
        return 0

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`[M, P]` of rows of ids."""
        pooled = self.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return self.text_projection(pooled)

    @torch.no_grad()
    def sequence(self, text: str) -> Tensor:
        """`[L, P]`, the projected last hidden states of a text, a row a token that is no padding."""
        inputs = self._padded(text, self.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        return self._projected(hidden[mask[0].bool()])

    def _projected(self, hidden: Tensor) -> Tensor:
        """Hidden states of the text tower in the shared space."""
        return self.text_projection(hidden)

    def _padded(self, text: str, device: torch.device) -> Any:
        """Ids and mask `[1, max_length]`, padded to the full length."""
        with _LOCK:
            inputs = self.tokenizer(
                text,
                padding="max_length",
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        return inputs.to(device)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        inputs = self._padded(text, self.device)
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
        project = self.on(hidden.device).visual_projection
        return project(hidden.to(project.weight.dtype))


class SiglipTextEncoder(TextEncoder):
    """SigLIP's text tower, and its pooling head for single patches.

    SigLIP has no projection of patches: an image's embedding is what its pooling head makes of all of
    them. A patch goes through the same head as if it were the whole image, that is, behind the tower's
    last norm, the head's value path and its MLP [this project's choice; there is no published one].

    Args:
        source: hub id or folder of a `SiglipModel`.
        width: width C of the vision tower whose patches are projected.
    """

    parts: ClassVar[tuple[str, ...]] = ("text_model", "norm", "head")

    def __init__(self, source: str | Path, width: int) -> None:
        model = _pretrained("SiglipModel", source)
        vision = getattr(model.vision_model, "vision_model", model.vision_model)
        self.tokenizer = _tokenizer(source)
        _fits(source, vision.post_layernorm.weight.shape[0], width)
        self.text_model = model.text_model.eval().requires_grad_(False)
        self.norm = vision.post_layernorm.requires_grad_(False)
        self.head = vision.head.eval().requires_grad_(False)
        self.max_length = model.config.text_config.max_position_embeddings
        self._fresh()

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        # As it was trained: padded to full length, padding seen, the last place read
        inputs = self._padded(text, self.device)
        return self.text_model(input_ids=inputs["input_ids"]).pooler_output[0]

    def _filler(self) -> int:
        return self.tokenizer.pad_token_id  # which the tower sees

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text_model(input_ids=ids).pooler_output

    def _projected(self, hidden: Tensor) -> Tensor:
        return self.text_model.head(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        here: Any = self.on(hidden.device)
        patches = here.norm(hidden.to(here.norm.weight.dtype))
        return here.head(patches.flatten(0, -2)[:, None]).unflatten(0, hidden.shape[:-1])


#: those that somebody uses
_LOADED: WeakValueDictionary[_Key, TextEncoder] = WeakValueDictionary()


class CallableTextEncoder:
    """A user's own pair of functions in place of `TextEncoder`.

    Args:
        embed: text -> `[P]`.
        project: patches `[..., C]` -> `[..., P]`.
    """

    def __init__(self, embed: Callable[[str], Tensor], project: Callable[[Tensor], Tensor]) -> None:
        self.embed, self.project = embed, project


def fits(made: Any, by: str, *rows: int) -> Tensor:
    """What `embed` or `project`, perhaps a user's own, has made: `[*rows, P]`.

    Raises:
        VTCError: it is something else.
    """
    if not isinstance(made, Tensor) or made.dim() == 0 or made.shape[:-1] != rows:
        want = ", ".join(map(str, (*rows, "P")))
        raise VTCError(f"text_encoder: its {by} gave {_said(made)}, allowed is [{want}]")
    return made


def fits_one_space(signals: Mapping[str, Tensor]) -> None:
    """Raise `VTCError` where a text and patches have no space in common."""
    text, patches = signals.get("text_embedding"), signals.get("patch_embedding")
    if text is not None and patches is not None and text.shape[-1] != patches.shape[-1]:
        raise VTCError(
            f"text_encoder: its embed gave {_said(text)} for a text and its project {_said(patches)} "
            "for an image's patches, allowed are rows of the same width"
        )


def _said(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


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


@torch.inference_mode(False)  # whatever the caller is in: others may train with it
def _shared(key: _Key | None, make: Callable[[], TextEncoder]) -> TextEncoder:
    """The encoder of a key, made where nobody has it; None is nobody else's."""
    with _LOCK:
        found = None if key is None else _LOADED.get(key)
        if found is None:
            found = make()
            found._key = key
            if key is not None:
                _LOADED[key] = found
        return found


def load_text_encoder(choice: Any, model: Model, width: int, official: bool) -> Any:
    """The text encoder that a text-guided method reads, on the model's device.

    Shared with whoever uses the same one there: the caller owns it, nothing here does.

    Args:
        choice: hub id, folder, a pair `(embed, project)` of callables, or None for the `clip` folder
            beside the model's own weights.
        model: the model to compress, for its folder and its device.
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
        folder = getattr(model, "name_or_path", None)  # "" of a model that was not loaded
        beside = Path(folder) / "clip" if folder else None
        if beside is None or not (beside / "config.json").is_file():
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
    path = Path(choice).expanduser()
    source = str(path.resolve()) if path.is_dir() else str(choice)
    first = next(model.parameters(), None)
    # an offloaded model has its numbers elsewhere; `on` finds out where it works
    device = torch.device("cpu") if first is None or first.is_meta else first.device
    return _shared(
        (source, width, official, device),
        lambda: _make(path if path.is_dir() else choice, width, official)._settle(device),
    )


def load_tokenizer(processor: Any, model: Model) -> Any:
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
