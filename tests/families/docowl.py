"""A tiny stand-in for mPLUG-DocOwl1.5, whose own code needs an old transformers.

Written from what is known of that code: the names of its parts and arguments, the order of its
calls, which tensor goes where. One placeholder (-200) stands for a tile; the model puts the tile's
tokens in its place and tells the decoder which they are, as images have key, value and norm weights
of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from tests.families import by_hand, tiny
from vtc.methods.base import Method

PLACEHOLDER, SIDE, GLOBAL = -200, 8, 9
#: tokens of a tile: rows of four patches, and the embedding that ends it
TOKENS = SIDE * SIDE // 4 + 1
#: what its code cannot do, compressed or not (shown in test_docowl.py)
IMPOSSIBLE = {
    "beams": "generate copies tiles one by one for the beams, which then read them in another order",
    "assisted": "prepare_inputs_for_generation hands on the last token alone, so guesses are not read",
}


class Attention(nn.Module):
    """One projection gives query, key and value, head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        batch, length, width = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, length, self.num_heads, 3, -1)
        query, key, value = fused.permute(3, 0, 2, 1, 4)
        weights = (query @ key.transpose(-1, -2) * self.scale).softmax(-1)
        return self.dense((weights @ value).transpose(1, 2).reshape(batch, length, width)), None


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, 4)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        hidden = hidden + self.self_attn(hidden_states=self.input_layernorm(hidden))[0]
        return (hidden + self.mlp(self.post_attention_layernorm(hidden)),)


class Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, SIDE**2 + 1, config.hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(pixels), 1, -1), patches], 1) + (
            self.position_embedding
        )


class Tower(nn.Module):
    """Features are the last hidden state behind a norm, CLS in front."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            Layer(config.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> Any:
        states = [self.embeddings(pixel_values)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1])[0])
        last = self.post_layernorm(states[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=self.post_layernorm(last[:, 0]),
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class HReducer(nn.Module):
    """A convolution over rows of four patches widens, another fuses, a linear layer projects."""

    def __init__(self, width: int, language: int) -> None:
        super().__init__()
        self.conv_shape = (1, 4)
        self.reducer_before = nn.Sequential(nn.Conv2d(width, 4 * width, (1, 4), (1, 4)), nn.GELU())
        self.reducer = nn.Conv2d(width, width, (1, 4), (1, 4))
        self.visual_fc = nn.Linear(width, language)
        self.vit_eos = nn.Parameter(torch.randn(1, 1, language))

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        patches = encoder_hidden_states[:, 1:]
        grid = patches.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        wide = self.reducer_before(grid).unflatten(1, (4, -1))  # [S, 4, C, rows, cols / 4]
        hidden = wide.permute(0, 2, 3, 4, 1).flatten(3)  # [S, C, rows, cols]
        tokens = self.visual_fc(self.reducer(hidden).flatten(2).transpose(1, 2))
        return torch.cat([tokens, self.vit_eos.expand(len(tokens), 1, -1)], 1)


class Multiway(nn.Module):
    """Weights for text and weights for images; `which` `[B, L]` says which token is what."""

    def __init__(self, text: nn.Module, image: nn.Module) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([text, image])

    which: Tensor | None = None  # of the class: all layers read the same

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.which is not None and self.which.shape == hidden.shape[:2]
        return torch.where(
            self.which[..., None].bool(), self.multiway[1](hidden), self.multiway[0](hidden)
        )


class MPLUGDocOwlLlamaModel(tf.LlamaModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision = tf.CLIPVisionConfig(**{**tiny.VISION, "image_size": SIDE * 4, "patch_size": 4})
        self.vision_model = Tower(vision)
        self.vision2text = HReducer(vision.hidden_size, config.hidden_size)
        width = config.hidden_size
        for layer in self.layers:
            for owner, name in (
                (layer, "input_layernorm"),
                (layer, "post_attention_layernorm"),
                (layer.self_attn, "k_proj"),
                (layer.self_attn, "v_proj"),
            ):
                text = getattr(owner, name)
                image = (
                    nn.RMSNorm(width)
                    if "norm" in name
                    else nn.Linear(width, text.out_features, bias=False)
                )
                setattr(owner, name, Multiway(text, image))

    def forward(self, *args: Any, modality_indicators: Tensor, **kwargs: Any) -> Any:
        Multiway.which = modality_indicators
        return super().forward(*args, **kwargs)


class MPLUGDocOwlLlamaForCausalLM(tf.LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = MPLUGDocOwlLlamaModel(config)

    def encode_images(self, images: Tensor, patch_positions: Tensor | None) -> Tensor:
        features = self.model.vision_model(images).last_hidden_state
        return self.model.vision2text(encoder_hidden_states=features)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Tensor | None,
        patch_positions: Tensor | None,
    ) -> tuple[Any, ...]:
        if images is None or input_ids.shape[1] == 1:
            if past_key_values is not None and images is not None:
                length = past_key_values.get_seq_length() + 1
                attention_mask = torch.ones(len(input_ids), length, dtype=torch.long)
            indicators = torch.zeros_like(input_ids)
            return input_ids, indicators, attention_mask, past_key_values, None, labels
        if isinstance(images, list) or images.dim() == 5:  # a placeholder for all tiles of an image
            tiles = self.encode_images(torch.cat(list(images)), patch_positions)
            parts = torch.split(tiles, [len(image) for image in images])
            features = iter([part.flatten(0, 1) for part in parts])
        else:
            features = iter(self.encode_images(images, patch_positions))
        embeds, indicators, targets = [], [], []
        for row, ids in enumerate(input_ids):
            if not bool((ids == PLACEHOLDER).any()):
                next(features)  # one image is made up for a row of text
            parts, kinds, wanted = [], [], []
            for column, token in enumerate(ids.tolist()):
                image = token == PLACEHOLDER
                parts.append(
                    next(features) if image else self.model.embed_tokens(ids[column : column + 1])
                )
                kinds += [int(image)] * len(parts[-1])
                if labels is not None:
                    wanted += [-100] * len(parts[-1]) if image else [int(labels[row, column])]
            embeds.append(torch.cat(parts))
            indicators.append(torch.tensor(kinds))
            targets.append(torch.tensor(wanted))
        lengths = [len(row) for row in embeds]
        before = input_ids.shape[1]
        if attention_mask is not None:
            if labels is None and len(set(lengths)) > 1:
                raise NameError("rows of different lengths are padded beside labels only")
            attention_mask = torch.stack(
                [
                    torch.cat(
                        [
                            row.new_ones(length - before),
                            row,
                            row.new_zeros(max(lengths) - length),
                        ]
                    )
                    for row, length in zip(attention_mask, lengths, strict=True)
                ]
            )
        join = nn.utils.rnn.pad_sequence
        return (
            None,
            join(indicators, batch_first=True),
            attention_mask,
            past_key_values,
            join(embeds, batch_first=True),
            None if labels is None else join(targets, batch_first=True, padding_value=-100),
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Tensor | None = None,
        patch_positions: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        input_ids, indicators, attention_mask, past_key_values, inputs_embeds, labels = (
            self.prepare_inputs_labels_for_multimodal(
                input_ids, attention_mask, past_key_values, labels, images, patch_positions
            )
        )
        out = self.model(
            input_ids=input_ids,
            modality_indicators=indicators,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        logits, loss = self.lm_head(out.last_hidden_state), None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if past_key_values is not None and past_key_values.get_seq_length():
            input_ids = input_ids[:, -1:]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
            "images": kwargs.get("images"),
            "patch_positions": kwargs.get("patch_positions"),
        }


def build(seed: int = 0) -> Any:
    """A random model in eval mode; large weights, so that tokens matter to the logits."""
    torch.manual_seed(seed)
    model = MPLUGDocOwlLlamaForCausalLM(tf.LlamaConfig(**tiny.TEXT))
    return tiny.finished(model)


#: rows of as many tiles, so that they have the same length
ROWS = [[(2, 2), (1, 1)], [(1, 1), (2, 2)]]


def inputs(rows: list[list[tuple[int, int]]] = ROWS, seed: int = 0) -> dict[str, Any]:
    """A batch of rows of equal length in words: for each row the crops of its images, `(rows, cols)`.

    As its processor has it: the global image first, then crops from (0, 0) on, a word in front of each.
    """
    rng = torch.Generator().manual_seed(seed)
    longest = max(sum(2 * (1 + r * c) for r, c in row) for row in rows)
    ids, tiles, places = [], [], []
    for row in rows:
        mine = []
        for grid in row:
            at = [(GLOBAL, GLOBAL), *((r, c) for r in range(grid[0]) for c in range(grid[1]))]
            tiles += [tiny.picture((SIDE * 4, SIDE * 4), rng) for _ in at]
            places += at
            mine += [token for n in range(len(at)) for token in (10 + n, PLACEHOLDER)]
        words = torch.randint(*tiny.WORDS, (6 + longest - len(mine),), generator=rng).tolist()
        ids.append([tiny.BOS, *mine, *words])
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(len(ids), len(ids[0]), dtype=torch.long),
        "images": torch.stack(tiles),
        "patch_positions": torch.tensor(places),
    }


def first_row(batch: dict[str, Any]) -> dict[str, Any]:
    count = int((batch["input_ids"][0] == PLACEHOLDER).sum())
    tiles = ("images", "patch_positions")
    return {name: value[: count if name in tiles else 1] for name, value in batch.items()}


@torch.no_grad()
def tiles_left(model: Any, batch: dict[str, Any], method: Method) -> list[Tensor]:
    """What `method` leaves of every tile, put together by hand."""
    packed = model.encode_images(batch["images"], batch["patch_positions"])
    tiles: list[list[Tensor]] = []
    for tokens, out in by_hand.record(model, method, batch):
        count = tokens.features.shape[0]
        mine = packed[len(tiles) : len(tiles) + count].flatten(0, 1)
        image: list[list[Tensor]] = [[] for _ in range(count)]
        for k, slot in enumerate(sorted(out.anchor.tolist())):
            own = mine[out.anchor[k]] if out.patch[k] < 0 else out.features[k]
            image[slot // TOKENS].append(own)
        tiles += image
    return [torch.stack(tile) for tile in tiles]


@contextmanager
def given(model: Any, batch: dict[str, Any], method: Method | None) -> Iterator[None]:
    """The bare model, given what `method` leaves of every tile; None: all there is."""
    if method is None:
        tiles = list(model.encode_images(batch["images"], None))
    else:
        tiles = tiles_left(model, batch, method)
    rows = [int((ids == PLACEHOLDER).sum()) for ids in batch["input_ids"]]

    def encode_images(images: Tensor, places: Tensor | None) -> list[Tensor]:
        left, out = iter(tiles), []
        for count in rows:  # beams are copies of rows
            out += [next(left) for _ in range(count)] * (len(images) // len(tiles))
        return out

    model.encode_images = encode_images
    try:
        yield
    finally:
        del model.encode_images
