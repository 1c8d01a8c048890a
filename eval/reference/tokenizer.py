"""Word-level tokenizers for the language model and the CLIP text tower.

Words carry a leading space mark, so a number decodes as "37" and two words decode as "top left".
Digits are single tokens: reading a number means reading each of its digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lexicon import DIGITS, PUNCTUATION, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, UNK, EOS, IMAGE = "<pad>", "<s>", "<unk>", "</s>", "<image>"
# The end token must not have id 2: CLIP treats that id as "take the largest id" for old files.
SPECIAL = [PAD, BOS, UNK, EOS, IMAGE]
SPACE = "\u2581"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %} "
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def token_ids() -> dict[str, int]:
    """Token -> id: special tokens, words, digits that start a number, digits that go on."""
    tokens = list(SPECIAL)
    tokens += [SPACE + word for word in vocabulary()]
    tokens += [SPACE + digit for digit in DIGITS] + DIGITS
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer(end_token: bool = False, max_length: int = 2048) -> PreTrainedTokenizerFast:
    """The tokenizer. ``end_token=True`` appends the end token to every text, as CLIP expects."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    ids = token_ids()
    core = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            *(normalizers.Replace(mark, f" {mark}") for mark in PUNCTUATION),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    piece = f"{SPACE}?[0-9]|{SPACE}?[a-z]+|{SPACE}?[^0-9a-z{SPACE}]"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(piece), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    core.add_special_tokens(SPECIAL)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if end_token else f"{BOS} $A",
        special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        model_max_length=max_length,
        padding_side="right" if end_token else "left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={} if end_token else {"image_token": IMAGE},
    )
    if not end_token:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def chat(question: str, before: str = "") -> str:
    """The prompt the model was trained on. ``before`` is optional text in front of the image."""
    lead = f"{before} " if before else ""
    return f"USER: {lead}<image>\n{question} ASSISTANT:"
