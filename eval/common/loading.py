"""A model with its processor: loading it, prompting it, reading its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError, nearest
from vtc.eval.common.prompts import user_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

#: names of the models that come with this project
SHIPPED = ("reference", "photo")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model on its device, with its processor."""

    name: str
    model: Any
    processor: Any
    device: Any

    def inputs(self, images: Sequence[Image], text: str, raw: bool = False) -> Any:
        """What `model.generate` takes: one prompt with all `images`, on the device.

        Args:
            images: of the prompt.
            text: the user's words, or with `raw` the whole prompt; see `prompts.RULES`.

        Raises:
            VTCError: `text` holds image tokens, but not one for each image.
        """
        text = user_prompt(self.processor, text, len(images), raw)
        return self._placed(self.processor(images=list(images), text=text, return_tensors="pt"))

    def batch(self, images: Sequence[Sequence[Image]], prompts: Sequence[str]) -> Any:
        """What `model.generate` takes: several prompts, padded on the left, on the device.

        Args:
            images: the images of each prompt; either all prompts have some or none has.
            prompts: finished prompts, with their image tokens.
        """
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        tokenizer.padding_side = "left"  # an answer goes on where its prompt ends
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        nested = [list(row) for row in images] if any(images) else None
        return self._placed(
            self.processor(images=nested, text=list(prompts), padding=True, return_tensors="pt")
        )

    def answer(self, inputs: Any, **generation: Any) -> list[str]:
        """What the model says, a text a row with the spaces around it; greedy unless `generation`,
        arguments of `model.generate`, says otherwise. Compression that is on the model takes part."""
        import torch

        given = {"do_sample": False, "num_beams": 1, **generation}
        with torch.inference_mode():
            return self.decode(self.model.generate(**inputs, **given), inputs)

    def decode(self, output: Any, inputs: Any) -> list[str]:
        """What stands behind the prompts in what `generate` returned, a text a row."""
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)

    def _placed(self, inputs: Any) -> Any:
        """`inputs` on the device, pixels in the model's dtype."""
        inputs = inputs.to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs


def load(name: str, device: str | None = None, dtype: str = "auto") -> Loaded:
    """Load a hub id, a local folder, `"reference"`, or `"photo"`.

    Args:
        device: a torch device; by default the first GPU if there is one.
        dtype: one of `DTYPES`; `"auto"` is the checkpoint's own on a GPU and float32 on a CPU.

    Raises:
        VTCError: no such model, no network, no such device, or a package is missing.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = find_device(device)
    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and place.type == "cpu":
        kind = torch.float32  # half precision is slow on most CPUs
    if name == "reference":
        model, processor = _reference(None if kind == "auto" else kind)
    elif name == "photo":
        from vtc.eval.reference_photo import load_photo

        model, processor = load_photo(None if kind == "auto" else kind)
    else:
        if Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser())
        elif name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise VTCError(
                f"model: {name!r} is no folder; give a hub id, a folder, 'reference' or 'photo'"
            )
        model, processor = _pretrained(name, kind)
    return Loaded(name, model.to(place).eval(), processor, place)


def find_device(name: str | None) -> Any:
    """The torch device of that name, by default the first GPU if there is one, else the CPU.

    Raises:
        VTCError: it cannot be used.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise VTCError(f"device: cannot use {name!r}: {_first_line(error)}") from error
    if device.type == "meta":
        raise VTCError("device: cannot use 'meta', which holds no numbers")
    return device


def _reference(dtype: Any) -> tuple[Any, Any]:
    from vtc.eval.reference import checkpoint_path, load_reference

    if not (checkpoint_path() / "config.json").is_file():
        raise VTCError(f"model: the reference checkpoint is missing from {checkpoint_path()}")
    return load_reference(dtype)


def _pretrained(name: str, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # Asked once here, because loading would ask again and again for minutes
    offline = not Path(name).is_dir() and not _hub_answers()
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=offline)
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, local_files_only=offline
        )
    except ImportError as error:
        raise VTCError(f"model: {name!r} needs a package: {_first_line(error)}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = _first_line(error)
        if offline and isinstance(error, OSError):
            reason = "the hub cannot be reached, and the local cache does not hold all of it"
        if "/" not in name:
            reason += nearest(name, SHIPPED)
        raise VTCError(f"model: cannot load {name!r}: {reason}") from error
    return model, processor


def _hub_answers() -> bool:
    """Whether the model hub can be reached, proxies and mirrors as set for `huggingface_hub`."""
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:  # whatever the HTTP library raises
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
