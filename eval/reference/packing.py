"""Many questions about one image in one sequence: the prompt's prefix is computed once.

A row is a prefix (text, then the image) and up to N question blocks. Each block sees the prefix
and itself, and its positions go on after the prefix, so a row is exactly N separate prompts. The
prefix can hold all image tokens or some of them, with their first positions or renumbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lexicon import FILLER
from .scene import Scene
from .tiles import SIDE, normalise, split_tiles, token_layout
from .tokenizer import chat

TEXT, NEWLINE, PAD = -2, -1, -3


@dataclass
class Packed:
    """A batch of rows. ``source`` indexes (tile * patches + patch), or is TEXT, NEWLINE or PAD."""

    tiles: Tensor  # [rows, tiles, 3, H, W]
    ids: Tensor  # [rows, prefix]
    source: Tensor  # [rows, prefix]
    positions: Tensor  # [rows, prefix]
    block_ids: Tensor  # [rows, blocks, length]
    block_positions: Tensor  # [rows, blocks, length]
    targets: Tensor  # [rows, blocks, length], -100 where nothing is predicted
    types: list[list[str]]  # question types, one list a row


def numbering(source: np.ndarray, rng: np.random.Generator, mode: str = "jitter") -> np.ndarray:
    """Positions of a prefix. "plain" counts tokens; "jitter" mimics renumbered sparse images.

    When a method drops tokens and the rest is numbered without gaps, a token's number says less
    about where it came from. Jitter trains for all such numberings at once: image patches advance
    the position with a probability that differs from scene to scene.
    """
    step = np.ones(len(source), dtype=np.int64)
    offset = 0
    if mode == "jitter" and rng.random() < 0.6:
        rate = rng.uniform(0.05, 1.0)
        patches = source >= 0
        step[patches] = rng.random(int(patches.sum())) < rate
        offset = int(rng.integers(0, 24))
    positions = np.cumsum(step) - 1
    positions[1:] += offset
    return positions


def pack(
    scenes: Sequence[Scene],
    tokenizer: Any,
    rng: np.random.Generator,
    mode: str = "jitter",
    filler: bool = True,
    keep: Sequence[np.ndarray] | None = None,
    contiguous: bool = False,
    noise: float = 0.0,
) -> Packed:
    """Rows for scenes of one tile grid.

    ``keep`` holds for each scene a boolean mask over its image tokens; the dropped ones leave the
    prefix. Their positions stay free, or are closed when ``contiguous`` is true. ``noise`` is the
    share of questions whose first answer token is fed as a random one: without it the model finds
    "the number that starts with 3" for the second digit of "37", instead of asking the image.
    """
    prefixes, blocks = [], []
    for row, scene in enumerate(scenes):
        layout = token_layout(scene.image.height, scene.image.width)
        image = np.where(layout.patch < 0, NEWLINE, layout.tile * SIDE * SIDE + layout.patch)
        count = int(rng.integers(0, 13)) if filler and rng.random() < 0.6 else 0
        before = " ".join(rng.choice(FILLER, count))
        head, _ = chat("", before).split("<image>")
        ids = tokenizer(head).input_ids
        source = np.concatenate([np.full(len(ids), TEXT), image])
        ids = np.concatenate([ids, np.zeros(len(image), dtype=np.int64)])
        positions = numbering(source, rng, mode)
        end = int(positions[-1]) + 1
        if keep is not None:
            kept = np.concatenate([np.ones(len(source) - len(image), dtype=bool), keep[row]])
            ids, source, positions = ids[kept], source[kept], positions[kept]
            if contiguous:
                positions = np.arange(len(positions))
                end = len(positions)
        prefixes.append((ids, source, positions))
        asked = []
        for question in scene.questions:
            _, tail = chat(question.text).split("<image>")
            prompt = tokenizer(tail, add_special_tokens=False).input_ids
            answer = tokenizer(question.answer, add_special_tokens=False).input_ids
            asked.append((prompt, [*answer, tokenizer.eos_token_id], end))
        blocks.append(asked)
    wide = max(len(ids) for ids, _, _ in prefixes)
    many = max(1, max(len(asked) for asked in blocks))
    long = max([len(p) + len(a) for asked in blocks for p, a, _ in asked], default=2)
    shape = (len(scenes), wide)
    ids, source = np.zeros(shape, np.int64), np.full(shape, PAD)
    positions = np.zeros(shape, np.int64)
    blocked = (len(scenes), many, long)
    block_ids, block_positions = np.zeros(blocked, np.int64), np.zeros(blocked, np.int64)
    targets = np.full(blocked, -100)
    for row, (a, b, c) in enumerate(prefixes):
        ids[row, : len(a)], source[row, : len(a)], positions[row, : len(a)] = a, b, c
        for j, (prompt, answer, end) in enumerate(blocks[row]):
            whole = prompt + answer
            block_ids[row, j, : len(whole)] = whole
            block_positions[row, j] = end + np.arange(long)
            targets[row, j, len(prompt) - 1 : len(whole) - 1] = answer
            if noise and len(answer) > 2 and rng.random() < noise:
                block_ids[row, j, len(prompt)] = rng.integers(5, len(tokenizer))
    tiles = np.stack([normalise(split_tiles(scene.image)) for scene in scenes])
    types = [[question.type for question in scene.questions] for scene in scenes]
    tensor = torch.from_numpy
    return Packed(
        tensor(tiles),
        tensor(ids),
        tensor(source),
        tensor(positions),
        tensor(block_ids),
        tensor(block_positions),
        tensor(targets),
        types,
    )


def patch_features(tower: Any, tiles: Tensor, layer: int) -> Tensor:
    """Patch features ``[rows, tiles * patches, width]`` of a frozen tower, no layer too many."""
    with torch.no_grad():
        flat = tiles.flatten(0, 1)
        hidden = tower.pre_layrnorm(tower.embeddings(flat))
        depth = len(tower.encoder.layers) + 1 + layer
        for block in tower.encoder.layers[:depth]:
            hidden = block(hidden, attention_mask=None)
        return hidden[:, 1:].reshape(len(tiles), -1, hidden.shape[-1])


def prefix_embeddings(model: Any, packed: Packed, features: Tensor | None) -> Tensor:
    """Input embeddings of the prefixes: text, projected patches, newlines.

    ``features`` None leaves the places of patches to the caller.
    """
    core = model.model
    embedded = core.language_model.embed_tokens(packed.ids)
    source = packed.source[..., None]
    if features is not None:
        projected = core.multi_modal_projector(features)
        index = packed.source.clamp(min=0)[..., None].expand(-1, -1, projected.shape[-1])
        embedded = torch.where(source >= 0, projected.gather(1, index), embedded)
    return torch.where(source == NEWLINE, core.image_newline, embedded)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def answer_states(
    model: Any, packed: Packed, prefix: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden states of the question blocks ``[rows, blocks, length, width]``: the final ones, and
    those before the last layer.

    ``bias`` ``[rows, prefix]`` is added to the logits of all attention to the prefix.

    The Llama layers, with attention split in two: prefix on itself, blocks on prefix and
    themselves. The last layer needs only keys and values of the prefix.
    """
    lm = model.model.language_model
    config = lm.config
    heads, size = config.num_attention_heads, config.head_dim
    rows, many, long = packed.block_ids.shape
    block = lm.embed_tokens(packed.block_ids).flatten(1, 2)
    cos_p, sin_p = (t[:, None] for t in lm.rotary_emb(prefix, packed.positions))
    cos_b, sin_b = (t[:, None] for t in lm.rotary_emb(block, packed.block_positions.flatten(1)))
    hidden_keys = (packed.source == PAD)[:, None, None]  # [rows, 1, 1, prefix]
    future = torch.ones(long, long, dtype=torch.bool).triu(1)
    more: Tensor | float = 0.0
    seen = None
    if bias is not None:
        more = bias[:, None, None]
        later = torch.ones(prefix.shape[1], prefix.shape[1], dtype=torch.bool).triu(1)
        seen = more.masked_fill(later, -1e9)

    def split(x: Tensor) -> Tensor:
        return x.view(rows, -1, heads, size).transpose(1, 2)

    for number, layer in enumerate(lm.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(prefix)
        key_p = _rotate(split(attention.k_proj(normed)), cos_p, sin_p)
        value_p = split(attention.v_proj(normed))
        if number + 1 < len(lm.layers):
            query = _rotate(split(attention.q_proj(normed)), cos_p, sin_p)
            mixed = F.scaled_dot_product_attention(
                query, key_p, value_p, attn_mask=seen, is_causal=seen is None
            )
            prefix = prefix + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            prefix = prefix + layer.mlp(layer.post_attention_layernorm(prefix))
        early = block
        normed = layer.input_layernorm(block)
        query = _rotate(split(attention.q_proj(normed)), cos_b, sin_b) * size**-0.5
        key = _rotate(split(attention.k_proj(normed)), cos_b, sin_b)
        value = split(attention.v_proj(normed))
        far = (query @ key_p.mT + more).masked_fill(hidden_keys, -1e9)
        own = (rows, heads, many, long, size)
        near = query.reshape(own) @ key.reshape(own).mT
        near = near.masked_fill(future, -1e9).flatten(2, 3)
        weights = torch.cat([far, near], -1).softmax(-1)
        far, near = weights.split([far.shape[-1], long], -1)
        mixed = far @ value_p
        near = near.reshape(rows, heads, many, long, long) @ value.reshape(own)
        mixed = mixed + near.flatten(2, 3)
        block = block + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        block = block + layer.mlp(layer.post_attention_layernorm(block))
    shape = (rows, many, long, -1)
    return lm.norm(block).view(shape), early.view(shape)


def answer_logits(
    model: Any,
    packed: Packed,
    features: Tensor | None = None,
    aux: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Logits and targets of all answer tokens, in order of rows, blocks, tokens.

    With ``aux`` (see :class:`Lookahead`) its loss comes as a third value.
    """
    if features is None:
        layer = model.config.vision_feature_layer
        features = patch_features(model.model.vision_tower, packed.tiles, layer)
    states, early = answer_states(model, packed, prefix_embeddings(model, packed, features))
    asked = packed.targets >= 0
    logits, targets = model.lm_head(states[asked]), packed.targets[asked]
    if aux is None:
        return logits, targets
    return logits, targets, aux(early, packed.targets)


class Lookahead(nn.Module):
    """Predicts the first two answer tokens from the end of the prompt, one layer early.

    Only used in training. It makes one look at the image fetch all of an answer ("37", "top
    left"); the second token can then copy its part from there in the last layer.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, vocabulary) for _ in range(2)])

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of both predictions."""
        asked = targets >= 0
        first = asked.clone()
        first[..., 1:] &= ~asked[..., :-1]
        ahead = torch.cat([targets[..., 1:], torch.full_like(targets[..., :1], -100)], -1)
        state = self.norm(states[first])
        wanted = (targets[first], ahead[first])
        one, two = (
            F.cross_entropy(head(state), t) for head, t in zip(self.heads, wanted, strict=True)
        )
        return (one + two) / 2


def exact(packed: Packed, logits: Tensor) -> list[list[bool]]:
    """For each question of each row: is every answer token, the end included, the likeliest?

    Under teacher forcing this equals an exact match of greedy decoding.
    """
    right = torch.ones_like(packed.targets, dtype=torch.bool)
    asked = packed.targets >= 0
    right[asked] = logits.argmax(-1) == packed.targets[asked]
    correct = right.all(-1)
    return [correct[row, : len(types)].tolist() for row, types in enumerate(packed.types)]
