"""Configurations of the reference VLM, and how to build, save and load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tiles import GRIDS, PATCH, TILE
from .tokenizer import CHAT_TEMPLATE, EOS, IMAGE, PAD, SPECIAL, build_tokenizer, token_ids

if TYPE_CHECKING:
    from transformers import CLIPModel, LlavaNextForConditionalGeneration, LlavaNextProcessor

# The layer the language model reads, as in LLaVA: the last but one.
FEATURE_LAYER = -2


def checkpoint_path() -> Path:
    """Folder with the shipped weights, configuration, processor and ``clip/``."""
    return Path(__file__).resolve().parent / "checkpoint"


def vision_config(width: int = 128, layers: int = 5) -> Any:
    """CLIP vision tower: 64 px tiles, 8 px patches, a CLS token."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=width,
    )


def clip_config(width: int = 128, layers: int = 5) -> Any:
    """The vision tower with a two-layer text tower."""
    from transformers import CLIPConfig, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=len(token_ids()),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=128,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=1,
        eos_token_id=SPECIAL.index(EOS),
    )
    return CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision_config(width, layers).to_dict(),
        projection_dim=128,
    )


def llava_config(vision_width: int = 128, width: int = 128, layers: int = 4) -> Any:
    """The whole LLaVA-NeXT."""
    from transformers import LlamaConfig, LlavaNextConfig

    text = LlamaConfig(
        vocab_size=len(token_ids()),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=1,
        eos_token_id=SPECIAL.index(EOS),
        tie_word_embeddings=False,
    )
    return LlavaNextConfig(
        vision_config=vision_config(vision_width),
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        image_grid_pinpoints=[[r * TILE, c * TILE] for r, c in GRIDS],
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def build_clip(seed: int = 0) -> CLIPModel:
    """A freshly initialised CLIP model."""
    import torch
    from transformers import CLIPModel

    torch.manual_seed(seed)
    return CLIPModel(clip_config())


def build_llava(clip: CLIPModel | None = None, seed: int = 0) -> LlavaNextForConditionalGeneration:
    """A freshly initialised LLaVA-NeXT; its vision tower is copied from ``clip`` when given."""
    import torch
    from transformers import LlavaNextForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(llava_config())
    if clip is not None:
        model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.generation_config.max_new_tokens = 8
    model.generation_config.do_sample = False
    model.generation_config.pad_token_id = SPECIAL.index(PAD)
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = SPECIAL.index(EOS)
    return model


def build_processor() -> LlavaNextProcessor:
    """The processor. Its image side is the PIL one, so torchvision is not needed."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[[r * TILE, c * TILE] for r, c in GRIDS],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def save_checkpoint(model: Any, clip: Any, folder: str | Path, dtype: Any = None) -> None:
    """Write everything that :func:`load_reference` and text-guided methods read."""
    import copy

    folder = Path(folder)
    model, clip = copy.deepcopy(model), copy.deepcopy(clip)
    if dtype is not None:
        model, clip = model.to(dtype), clip.to(dtype)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    clip.save_pretrained(folder / "clip")
    build_tokenizer(end_token=True, max_length=77).save_pretrained(folder / "clip")


def load_reference(
    dtype: Any = None, path: str | Path | None = None, name: str = "drawn"
) -> tuple[Any, Any]:
    """The trained model in evaluation mode, and its processor.

    ``name`` is "drawn" for the small model of this folder, which ships whole, or "photo" for the one on
    real pictures (:func:`vtc.eval.reference_photo.load_photo`), which needs two packages.

    It runs on one thread whoever calls it, see :mod:`vtc.eval.reference.threads`.

    ``dtype`` is a torch floating-point type, float32 by default. ``path`` replaces the shipped
    checkpoint by a folder of the same layout.
    """
    if name not in ("drawn", "photo"):
        raise ValueError(f"name must be 'drawn' or 'photo', got {name!r}")
    if name == "photo":
        from vtc.eval.reference_photo import load_photo

        return load_photo(dtype, path)
    import torch
    from transformers import (
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
        PreTrainedTokenizerFast,
    )

    from .threads import on_one_thread

    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a torch floating-point type, got {dtype!r}")
    folder = checkpoint_path() if path is None else Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"path must be a reference checkpoint folder, no config.json in {folder}")
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    # The classes are named here because the automatic choice would ask for torchvision.
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    return on_one_thread(model).eval(), processor
