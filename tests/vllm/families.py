"""Tiny random models of the families that vLLM serves, each with its processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TILE, PATCH = 64, 8
SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<video>"]
VISION: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=TILE,
    patch_size=PATCH,
)
TEXT: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)
PINPOINTS = [[64, 128], [128, 64], [128, 128], [64, 192], [192, 64]]


def tokenizer(specials: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """Bytes, and these tokens; the special ones first, so that their ids are their places."""
    symbols = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[s for s in specials if s not in ("<pad>", "<s>", "</s>")],
        **roles,
    )


@dataclass(frozen=True)
class Made:
    """A checkpoint.

    Attributes:
        model: as transformers has it.
        processor: reads prompts with pictures.
        image: what stands for a picture in a prompt.
        positions: what transformers is told, so that it numbers tokens as vLLM does.
        two: whether transformers and vLLM cut several pictures of a prompt in the same way.
    """

    model: Any
    processor: Any
    image: str = "<image>"
    positions: str = "contiguous"
    two: bool = True


# -- LLaVA -------------------------------------------------------------------------------------


def llava() -> Made:
    words = tokenizer(SPECIALS, extra_special_tokens={"image_token": "<image>"})
    vocab = len(words)
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT, vocab_size=vocab),
        vision_config=_clip(),
        image_token_index=3,
        image_token_id=3,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(TILE // PATCH) ** 2,
    )
    pictures = tf.CLIPImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}
    )
    processor = tf.LlavaProcessor(
        pictures,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Made(tf.LlavaForConditionalGeneration(config), processor)


def _clip() -> Any:
    return tf.CLIPVisionConfig(**VISION)


def _siglip(**more: Any) -> Any:
    return tf.SiglipVisionConfig(**VISION, vision_use_head=False, **more)


def llava_next() -> Made:
    words = tokenizer(SPECIALS, extra_special_tokens={"image_token": "<image>"})
    config = tf.LlavaNextConfig(
        text_config=tf.LlamaConfig(**TEXT, vocab_size=len(words)),
        vision_config=_clip(),
        image_token_index=3,
        image_token_id=3,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
    )
    pictures = tf.LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    processor = tf.LlavaNextProcessor(
        pictures,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Made(tf.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision() -> Made:
    words = tokenizer(
        SPECIALS, extra_special_tokens={"image_token": "<image>", "video_token": "<video>"}
    )
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = tf.LlavaOnevisionConfig(
        text_config=tf.Qwen2Config(**text, vocab_size=len(words)),
        vision_config=_siglip(),
        image_token_index=3,
        image_token_id=3,
        video_token_index=4,
        video_token_id=4,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    pictures = tf.LlavaOnevisionImageProcessor(
        size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    processor = tf.LlavaOnevisionProcessor(
        pictures,
        words,
        tf.LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    # transformers does not crop where a prompt has several pictures, vLLM does
    return Made(tf.LlavaOnevisionForConditionalGeneration(config), processor, two=False)


# -- Qwen --------------------------------------------------------------------------------------

QWEN = ["<pad>", "<s>", "</s>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>"]
QWEN += ["<|vision_end|>"]


def _qwen(name: str, vision: dict[str, Any], text: dict[str, Any], processor: str) -> Made:
    words = tokenizer(QWEN)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0, **text}
    plain = {key: value for key, value in TEXT.items() if key != "head_dim"}
    more = {"head_dim": 32} if name.startswith("Qwen3") else {}
    config = getattr(tf, f"{name}Config")(
        text_config={**plain, **more, "vocab_size": len(words), "rope_parameters": rope},
        vision_config={"depth": 4, "num_heads": 4, "patch_size": PATCH, **vision},
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
        tie_word_embeddings=False,
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    pictures = tf.Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2, size=size)
    clips = "Qwen3VLVideoProcessor" if name.startswith("Qwen3") else "Qwen2VLVideoProcessor"
    made = getattr(tf, processor)(
        pictures, words, getattr(tf, clips)(patch_size=PATCH, merge_size=2, size=size)
    )
    model = getattr(tf, f"{name}ForConditionalGeneration")(config)
    return Made(model, made, "<|vision_start|><|image_pad|><|vision_end|>", "original")


def qwen2_vl() -> Made:
    vision = dict(embed_dim=64, hidden_size=64, mlp_ratio=2)
    return _qwen("Qwen2VL", vision, {}, "Qwen2VLProcessor")


def qwen2_5_vl() -> Made:
    vision = dict(hidden_size=64, intermediate_size=96, out_hidden_size=64)
    vision |= dict(window_size=32, fullatt_block_indexes=[1, 3])
    return _qwen("Qwen2_5_VL", vision, {}, "Qwen2_5_VLProcessor")


def qwen3_vl() -> Made:
    vision = dict(hidden_size=64, intermediate_size=96, out_hidden_size=64)
    vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[1, 2])
    return _qwen("Qwen3VL", vision, {"mrope_interleaved": True}, "Qwen3VLProcessor")


# -- tiles with pixel shuffle ------------------------------------------------------------------


def internvl() -> Made:
    names = ["<pad>", "<s>", "</s>", "<IMG_CONTEXT>", "<video>", "<img>", "</img>"]
    roles = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(names, extra_special_tokens=roles)
    vision = tf.InternVLVisionConfig(
        **{**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]}
    )
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = tf.InternVLConfig(
        text_config=tf.Qwen2Config(**text, vocab_size=len(words)),
        vision_config=vision,
        downsample_ratio=0.5,
        image_token_id=3,
        image_seq_length=16,
    )
    pictures = tf.GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = tf.InternVLProcessor(
        pictures,
        words,
        tf.InternVLVideoProcessor(size={"height": TILE, "width": TILE}),
        image_seq_length=16,
    )
    return Made(tf.InternVLForConditionalGeneration(config), processor, "<IMG_CONTEXT>")


def _idefics(name: str) -> Made:
    names = ["<pad>", "<s>", "</s>", "<image>", "<video>", "<fake_token_around_image>"]
    names += ["<global-img>", "<end_of_utterance>"]
    names += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    roles = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    roles |= {"global_image_token": "<global-img>", "video_token": "<video>"}
    words = tokenizer(names, extra_special_tokens=roles)
    config = getattr(tf, f"{name}Config")(
        text_config=tf.LlamaConfig(**TEXT, vocab_size=len(words)),
        vision_config=getattr(tf, f"{name}VisionConfig")(**VISION),
        scale_factor=2,
        image_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    pictures = getattr(tf, f"{name}ImageProcessor")(
        size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}
    )
    clips = [tf.SmolVLMVideoProcessor()] if name == "SmolVLM" else []
    processor = getattr(tf, f"{name}Processor")(pictures, words, *clips, image_seq_len=16)
    return Made(getattr(tf, f"{name}ForConditionalGeneration")(config), processor)


def idefics3() -> Made:
    return _idefics("Idefics3")


def smolvlm() -> Made:
    return _idefics("SmolVLM")


_ALL = (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl)
_ALL += (internvl, idefics3, smolvlm)
FAMILIES: dict[str, Callable[[], Made]] = {make.__name__: make for make in _ALL}
