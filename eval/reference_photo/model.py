"""The photo model: a real vision tower and a real language model from packages, joined by what
was trained here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError

from . import language, tower
from .parts import LANGUAGE, TOWER, digest, require

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the tower was taught
WEIGHTS, DIGEST = "model.safetensors", "digest.json"


def checkpoint_path() -> Path:
    """Folder with what was trained: the one thing of the model that ships."""
    return Path(__file__).resolve().parent / "checkpoint"


def cache_path() -> Path:
    """Folder of the composed parts, 0.3 GB: in `VTC_CACHE`, else in the user's cache. Another cut of
    the parts has another folder."""
    root = os.environ.get("VTC_CACHE") or Path.home() / ".cache" / "vtc"
    made = repr((TOWER.sha256, LANGUAGE.sha256, tower.LAYERS, language.LAYERS))
    return Path(root) / f"photo-parts-{hashlib.sha256(made.encode()).hexdigest()[:12]}"


def compose() -> LlavaForConditionalGeneration:
    """The parts in one model, float32; the projector is new and says nothing yet.

    Raises:
        VTCError: a package is missing.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    files = TOWER.path(), LANGUAGE.path()
    require("onnx", "gguf", "accelerate")
    eyes, words = tower.build(files[0]), language.build(files[1])
    text = words.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(text, name):
            delattr(text, name)
    config = LlavaConfig(
        vision_config=eyes.config,
        text_config=text,
        image_token_index=text.vocab_size - 1,
        vision_feature_layer=tower.FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.SIDE // tower.PATCH) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eyes.state_dict())
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.tie_weights()
    settings = model.generation_config
    settings.do_sample, settings.max_new_tokens = False, 8
    settings.bos_token_id, settings.eos_token_id = text.bos_token_id, text.eos_token_id
    settings.pad_token_id = text.eos_token_id
    return model.eval()


def base_folder() -> Path:
    """The composed parts on disk; composing takes a minute, so they are kept.

    Raises:
        VTCError: they are not there, and a package is missing.
    """
    from filelock import FileLock

    folder = cache_path()
    if _is_whole(folder):
        return folder
    TOWER.path(), LANGUAGE.path()  # names what is missing before anything is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of several processes one composes
        if not _is_whole(folder):
            _write(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether composed parts are there, as they were noted."""
    if not ((folder / DIGEST).is_file() and (folder / WEIGHTS).is_file()):
        return False
    noted = json.loads((folder / DIGEST).read_text())[WEIGHTS]
    return bool(noted == digest(folder / WEIGHTS))


def _write(folder: Path) -> None:
    """Compose the parts into a folder, whole or not at all."""
    model: Any = compose()
    # else transformers writes in the first process of a group alone, and this one may be another
    model.should_save_on_this_rank = lambda _: True
    place = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(place)
        language.tokenizer(LANGUAGE.path()).save_pretrained(place)
        (place / DIGEST).write_text(json.dumps({WEIGHTS: digest(place / WEIGHTS)}))
        shutil.rmtree(folder, ignore_errors=True)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def base() -> Any:
    """The composed parts, float32, without anything that was trained here."""
    import torch
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(base_folder(), dtype=torch.float32).eval()


def load_tokenizer() -> Any:
    """The tokenizer of the composed parts."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(base_folder())


def build_processor(tokenizer: Any) -> LlavaProcessor:
    """Pictures, brought to 224 x 224 px, and words to what the model takes."""
    # The class is named because the automatic choice would ask for torchvision.
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    side = {"height": tower.SIDE, "width": tower.SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, do_center_crop=False, crop_size=side, image_mean=MEAN, image_std=STD
        ),
        tokenizer=tokenizer,
        patch_size=tower.PATCH,
        vision_feature_select_strategy="default",
        chat_template=language.CHAT_TEMPLATE,
        image_token=language.IMAGE,
        num_additional_image_tokens=1,
    )


def load_photo(
    dtype: Any = None, path: str | Path | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The photo model in evaluation mode, and its processor.

    The first call puts the parts together (a minute) and keeps them under `cache_path`. Every call
    compares the fingerprint of what is kept with the one noted then.

    Args:
        dtype: a torch floating-point type, float32 by default.
        path: of a `trained.safetensors`, in the place of the one that ships.

    Raises:
        VTCError: a package is missing or another than it should be, or there are no trained weights.
    """
    import torch
    from safetensors.torch import load_file

    from . import lora

    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise VTCError(f"dtype: got {dtype!r}, allowed are torch floating-point types")
    file = checkpoint_path() / "trained.safetensors" if path is None else Path(path)
    if not file.is_file():
        raise VTCError(f"path: got {str(file)!r}, which is no file of trained weights")
    model = base()
    trained = load_file(file)
    lora.merge(model, trained)
    rest = {name: value for name, value in trained.items() if not name.endswith(lora.PARTS)}
    told = model.load_state_dict(rest, strict=False)
    if told.unexpected_keys:
        raise VTCError(
            f"path: {str(file)!r} was trained for other parts: {told.unexpected_keys[0]}"
        )
    return model.to(dtype).eval(), build_processor(load_tokenizer())
