"""`DemandScorer`: how much more, or less, a model's answers look at a patch than CLS does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.methods import _fields

#: the largest correction, as a logarithm: a demand changes by a factor of 400 at most
LARGEST = 6.0
FILES = "scorer.json", "scorer.safetensors"


class DemandScorer(nn.Module):
    """A few layers of attention among the patches of an image, so that each knows what else is there.

    Its last map begins at zero: an untrained scorer corrects nothing, to the bit.

    Args:
        width: of the features, those that the language model reads.
        hidden: width inside.
        heads: of its attention; divides `hidden`.
        layers: how many.
        strength: factor of what comes out, chosen on images held out: 0 corrects nothing.
        made_for: what identifies the model that it was trained on, see `vtc.plugins.model.identity`;
            None for any with features of this width.

    Raises:
        VTCError: a number is out of range.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 96,
        heads: int = 4,
        layers: int = 2,
        strength: float = 1.0,
        made_for: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("hidden", hidden), ("heads", heads)):
            _fields.whole(name, value, 1)
        _fields.whole("layers", layers, 0)
        _fields.number("strength", strength, 0, 1)
        if hidden % heads:
            raise VTCError(f"heads: got {heads}, allowed are divisors of hidden={hidden}")
        self.config = {"width": width, "hidden": hidden, "heads": heads, "layers": layers}
        self.strength, self.made_for = strength, made_for
        self.enter = nn.Linear(width, hidden)
        self.facts = nn.Linear(2, hidden, bias=False)  # demand, and whether of the thumbnail
        self.blocks = nn.ModuleList([_Block(hidden, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(hidden)
        self.leave = nn.Linear(hidden, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, demand: Tensor, overview: Tensor, valid: Tensor) -> Tensor:
        """The logarithm of the factor on each patch's demand.

        Args:
            features: `[B, N, width]`, the patches of an image in one row, all tiles together.
            demand: `[B, N]`, not negative.
            overview: bool `[B, N]`, patches of a thumbnail.
            valid: bool `[B, N]`, False for padding, which nobody attends to.

        Returns:
            float32 `[B, N]`, between -`LARGEST` and `LARGEST`.

        Raises:
            VTCError: the features have another width.
        """
        width = self.config["width"]
        if features.shape[-1] != width:
            raise VTCError(
                f"scorer: got one for features of width {width}, this model's have width "
                f"{features.shape[-1]}"
            )
        dtype = self.enter.weight.dtype
        normed = nn.functional.layer_norm(features.to(dtype), (width,))
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean = (demand.float() * valid).sum(1, keepdim=True) / count
        # relative to the image's mean, so that sizes of images and towers do not matter
        relative = (demand.float() / mean.clamp(min=1e-20)).clamp(1e-4, 1e4).log()
        facts = torch.stack([relative, overview.float()], -1).to(dtype)
        hidden = self.enter(normed) + self.facts(facts)
        seen = valid[:, None, None]
        for block in self.blocks:
            hidden = block(hidden, seen)
        out = self.leave(self.norm(hidden)).squeeze(-1).float()
        return self.strength * LARGEST * torch.tanh(out / LARGEST)

    def save(self, folder: str | Path) -> None:
        """Write `scorer.safetensors` and `scorer.json` into `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state, folder / FILES[1])
        facts = {**self.config, "strength": self.strength, "made_for": self.made_for}
        (folder / FILES[0]).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> DemandScorer:
        """The scorer that `save` wrote, on the CPU, in float32.

        Raises:
            VTCError: there is none, or its weights do not fit its configuration.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        facts, weights = (Path(folder) / name for name in FILES)
        if not (facts.is_file() and weights.is_file()):
            raise VTCError(
                f"scorer: got {str(folder)!r}, need a folder with {FILES[0]} and {FILES[1]}, as "
                "`vtc train-scorer` writes them"
            )
        try:
            module = cls(**json.loads(facts.read_text(encoding="utf-8")))
            module.load_state_dict(load_file(weights))
        except (TypeError, ValueError, OSError, RuntimeError, VTCError, SafetensorError) as error:
            raise VTCError(f"scorer: {str(folder)!r} does not load: {error}") from error
        return module.float().eval()


class _Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))
