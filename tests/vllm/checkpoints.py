"""Tiny random checkpoints, whole folders as vLLM reads them: model, tokenizer, processor.

Weights are made larger than at the start of training, so that every token of a picture matters for what
is said. Special tokens have a row of zeros in the head, so that no placeholder is ever generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
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


def scaled(model: Any, factor: float = 3.0) -> Any:
    """The model with larger weights, and nothing said that is not a byte."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(factor)
            elif "newline" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
        head = model.get_output_embeddings().weight
        head[: len(head) - 256] = 0
    return model.eval()


def llava() -> Made:
    words = tokenizer(SPECIALS, extra_special_tokens={"image_token": "<image>"})
    vocab = len(words)
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT, vocab_size=vocab),
        vision_config=tf.CLIPVisionConfig(**VISION),
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


FAMILIES: dict[str, Callable[[], Made]] = {"llava": llava}


def save(family: str, folder: Path) -> Made:
    """Write a family's checkpoint into a folder."""
    torch.manual_seed(0)
    made = FAMILIES[family]()
    scaled(made.model)
    made.model.generation_config.eos_token_id = None
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if type(made.model.model.vision_tower).__name__ in ("CLIPVisionModel", "SiglipVisionModel"):
        # as in all published checkpoints; transformers 5 no longer writes this level, vLLM needs it
        weights = load_file(folder / "model.safetensors")
        level = {k: k.replace("vision_tower.", "vision_tower.vision_model.") for k in weights}
        weights = {level[name]: weight for name, weight in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return made


def load(family: str, folder: Path) -> Made:
    """A checkpoint as it was written, the model with the weights that vLLM reads."""
    made = FAMILIES[family]()
    model = type(made.model).from_pretrained(folder).eval()
    return replace(made, model=model)
