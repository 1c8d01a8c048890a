"""The photo model: a real vision tower and a real language model from packages, joined by what was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import language, tower
from .parts import LANGUAGE, TOWER, require

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the tower was taught


def build() -> LlavaForConditionalGeneration:
    """The parts in one model, float32; the projector is new and says nothing yet.

    Raises:
        VTCError: a package is missing.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    require("onnx", "gguf", "accelerate")
    eyes = tower.build(TOWER.path())
    words = language.build(LANGUAGE.path())
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
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 8
    model.generation_config.bos_token_id = text.bos_token_id
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.eos_token_id
    return model.eval()


def image_processor() -> Any:
    """Pictures to 224 x 224 px. It is the PIL one, so torchvision is not needed."""
    from transformers import CLIPImageProcessorPil

    side = {"height": tower.SIDE, "width": tower.SIDE}
    return CLIPImageProcessorPil(
        size=side, do_center_crop=False, crop_size=side, image_mean=MEAN, image_std=STD
    )


def processor(tokenizer: Any, images: Any = None) -> LlavaProcessor:
    """Pictures and words to what the model takes."""
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=images or image_processor(),
        tokenizer=tokenizer,
        patch_size=tower.PATCH,
        vision_feature_select_strategy="default",
        chat_template=language.CHAT_TEMPLATE,
        image_token=language.IMAGE,
        num_additional_image_tokens=1,
    )


def save(folder: Path) -> None:
    """Parts in one folder, as transformers reads it."""
    build().save_pretrained(folder)
    processor(language.tokenizer(LANGUAGE.path())).save_pretrained(folder)


def base(folder: Path | None = None) -> LlavaForConditionalGeneration:
    """The parts in one model, out of a folder that `save` wrote where there is one."""
    from transformers import LlavaForConditionalGeneration

    if folder is None:
        return build()
    import torch

    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path | None = None) -> Any:
    """The tokenizer, out of such a folder where there is one."""
    from transformers import PreTrainedTokenizerFast

    if folder is None:
        return language.tokenizer(LANGUAGE.path())
    return PreTrainedTokenizerFast.from_pretrained(folder)
