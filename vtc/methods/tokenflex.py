"""TokenFLEX: one projector that was trained to serve any number of tokens."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.batch import ImageBatch
from vtc.batch_tables import batch_tables
from vtc.errors import VTCError
from vtc.functional.grids import pooled_axis, valid_rectangles
from vtc.functional.ragged import joined, starts_of
from vtc.kernels.adaptive_pool import adaptive_pool
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.methods.which import quoted, without_signals
from vtc.packing import Geometry, Packing, tables
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import VisualTokens

COUNTS = (64, 144, 256)
PROBABILITIES = (0.2, 0.3, 0.5)


def side_of(count: int) -> int:
    """n with `n * n == count`.

    Raises:
        VTCError: `count` is not a square.
    """
    side = math.isqrt(max(count, 0))
    if count < 1 or side * side != count:
        raise VTCError(f"count: got {count}, allowed are squares such as 64, 144, 256")
    return side


def sample_token_count(
    generator: torch.Generator | int | None = None,
    counts: Sequence[int] = COUNTS,
    probabilities: Sequence[float] = PROBABILITIES,
) -> int:
    """The number of tokens of one training step, drawn from `counts`.

    Draw once an optimisation step and alike on all ranks: give each the same seed, for example
    `base_seed + step` [ours; the paper does not say].

    Args:
        generator: a CPU generator, a seed, or None for PyTorch's global generator.
        counts: squares; (64, 144, 256) [paper].
        probabilities: of the counts, any scale; 2 : 3 : 5 [paper], which is 184 tokens on average.

    Raises:
        VTCError: a count is not a square, or the probabilities do not fit.
    """
    for count in counts:
        side_of(count)
    weights = torch.tensor(probabilities, dtype=torch.float64)
    if len(counts) != len(weights) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise VTCError(
            f"probabilities: got {list(probabilities)}, need one number >= 0 for each of "
            f"{list(counts)} and a positive sum"
        )
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    return counts[int(torch.multinomial(weights, 1, generator=generator))]


class TokenFlexProjector(nn.Module):
    """Average pooling to n x n tokens, then a SwiGLU from the tower's to the LM's width.

    `y = W3 (SiLU(W1 x) * W2 x)` for every pooled token x, behind a LayerNorm. The paper names
    adaptive average pooling and SwiGLU; norm, hidden width and the absence of biases are this
    project's choice.

    Args:
        vision_width: width of the tower's tokens.
        text_width: width of the language model.
        hidden: width inside; None for `text_width`.
        norm: LayerNorm in front of the SwiGLU.
        bias: biases in the three linear maps.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        hidden: int | None = None,
        norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        hidden = text_width if hidden is None else hidden
        self.config = {
            "vision_width": vision_width,
            "text_width": text_width,
            "hidden": hidden,
            "norm": norm,
            "bias": bias,
        }
        self.norm = nn.LayerNorm(vision_width) if norm else nn.Identity()
        self.gate = nn.Linear(vision_width, hidden, bias=bias)
        self.up = nn.Linear(vision_width, hidden, bias=bias)
        self.down = nn.Linear(hidden, text_width, bias=bias)

    def project(self, pooled: Tensor) -> Tensor:
        """`[..., vision_width]` to `[..., text_width]`, token by token, in the weights' dtype."""
        x = self.norm(pooled.to(self.gate.weight.dtype))
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

    def forward(
        self, features: Tensor, patch_grid: tuple[int, int] | None = None, side: int = 16
    ) -> Tensor:
        """Project every tile to `side * side` tokens.

        Args:
            features: `[B, N, C]` patch tokens, CLS removed.
            patch_grid: `(rows, cols)`; None where N is a square.
            side: n; more than the grid has is allowed with a warning (pooling then repeats).

        Returns:
            `[B, side * side, text_width]`, row-major.

        Raises:
            VTCError: the grid does not fit N, N is no square and no grid is given, or `side` < 1.
        """
        patches = features.shape[1]
        if patch_grid is None:
            if math.isqrt(patches) ** 2 != patches:
                raise VTCError(
                    f"features: got {patches} patches, no square; give patch_grid=(rows, cols)"
                )
            patch_grid = (math.isqrt(patches), math.isqrt(patches))
        elif patch_grid[0] * patch_grid[1] != patches:
            raise VTCError(f"patch_grid: got {patch_grid}, but a tile has {patches} patches")
        _fields.whole("side", side, 1)
        if side > min(patch_grid):
            warnings.warn(
                f"side: {side} x {side} tokens of {patch_grid[0]} x {patch_grid[1]} patches repeat "
                "some of them",
                stacklevel=2,
            )
        return self.project(adaptive_pool(features, patch_grid, (side, side))[0])

    def save(self, folder: str | Path) -> None:
        """Write `projector.safetensors` and `projector.json` into `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "projector.safetensors")
        (folder / "projector.json").write_text(json.dumps(self.config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TokenFlexProjector:
        """The projector that `save` wrote, on the CPU, in the dtype it was saved in.

        Raises:
            VTCError: there is none, or its weights do not fit its configuration.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        config, weights = folder / "projector.json", folder / "projector.safetensors"
        if not (config.is_file() and weights.is_file()):
            raise VTCError(
                f"projector: got {str(folder)!r}, need a folder with projector.json and "
                "projector.safetensors, as TokenFlexProjector.save writes them"
            )
        state = load_file(weights)
        try:
            module = cls(**json.loads(config.read_text()))
            module.load_state_dict(state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise VTCError(f"projector: {str(folder)!r} does not load: {error}") from error
        dtypes = {value.dtype for value in state.values()}
        return module.to(dtypes.pop()) if len(dtypes) == 1 else module


@register_method
@dataclass
class TokenFlex(Method):
    """Pools every tile to n x n tokens and projects them with a projector trained for any n.

    The tokens come out in the language model's width and the model's own projector is passed by, at
    every n, even where nothing is pooled. There has to be a trained `projector`: pooling in front of
    one that never saw pooled tokens is another method, see `pool`.

    Crops: a bin averages its patches that are not padding, and is dropped when it has none (or
    when, cut by the padding, it shows the same line as its neighbour). The bins of all crops form a
    smaller canvas; each of its rows keeps one newline, that of the patch row in its middle. A
    token's provenance and position are those of its bin's middle patch; its weight is the number of
    patches averaged.

    Budget: `side` means n x n tokens a tile. With `retention` or `tokens` n is the largest whose
    tokens, counted after dropping, do not exceed the budget, and at least 1, so that there is at
    least one token a tile. n never exceeds the shorter side of the patch grid, so an oblong grid may
    leave much of the budget: of a tile of 8 x 32 = 256 patches at most 8 x 8 = 64 tokens, whatever
    the retention. Reports say what was asked for and what is left.

    Paper: "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference"
    (arXiv 2504.03154). No code was published.

    Attributes:
        side: None. n, instead of a budget; more than the shorter side of a tile is cut to that with a
            warning (8, 12 and 16 in the paper).
        projector: None. A `TokenFlexProjector`, any module with its `project`, or the folder it was
            saved in; None for what the model brings, e.g. a folder `tokenflex` beside its weights.
    """

    side: int | None = None
    projector: Any = None

    name: ClassVar[str] = "tokenflex"
    paper: ClassVar[str] = "arXiv 2504.03154"
    shown: ClassVar[bool] = True
    stage: ClassVar = "vision"
    exact: ClassVar[bool] = False
    projects: ClassVar[bool] = True
    beside: ClassVar[Mapping[str, str]] = {"projector": "tokenflex"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side is not None:
            _fields.whole("side", self.side, 1)
            if self.retention is not None or self.tokens is not None:
                given = "retention" if self.tokens is None else "tokens"
                raise VTCError(f"side: got {self.side} beside {given}, give only one")
        if isinstance(self.projector, (str, Path)):
            self.projector = TokenFlexProjector.load(self.projector)
        if self.projector is not None and not hasattr(self.projector, "project"):
            raise VTCError(
                f"projector: got {type(self.projector).__name__}, allowed are a "
                "TokenFlexProjector, a folder it was saved in, or None"
            )

    def check(self) -> None:
        if self.projector is None:
            raise VTCError(
                "projector: got None, and the model brings none; TokenFLEX is a projector trained for "
                "any number of tokens. Train one as `python -m vtc.eval.train_tokenflex` does for the "
                "reference model, then give the folder that TokenFlexProjector.save wrote as "
                "projector=..., or put it as 'tokenflex' beside the model's weights; 'pool' works "
                "without"
            )

    @property
    def counts_itself(self) -> bool:
        """Whether n is given, not a budget."""
        return self.side is not None

    def is_identity(self, image: Packing | VisualTokens) -> bool:
        return False  # every token goes through another projector

    def length(self, image: Packing | VisualTokens) -> int:
        plan = _image_plan(image.geometry, self._side(image))
        return plan.tokens[0] + plan.newlines[0]

    def weights(self) -> dict[str, nn.Module]:
        return {} if self.projector is None else {"projector": self.projector}

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        identity, *rest = super().kind(tokens)
        return (identity, None if identity else self._side(tokens), *rest)

    def _side(self, image: Packing | VisualTokens) -> int:
        """n for this image."""
        most = min(image.patch_grid)
        if self.side is None:
            budget, counts = self.budget(image), _token_counts(image.geometry)
            return max((n + 1 for n, count in enumerate(counts) if count <= budget), default=1)
        if self.side > most:
            rows, cols = image.patch_grid
            warnings.warn(
                f"side: {self.side} is more than a tile of {rows} x {cols} patches has, "
                f"{most} is used",
                stacklevel=4,
            )
        return min(self.side, most)

    def select(self, batch: ImageBatch) -> Selection:
        side = self._side(batch.images[0])
        plan = _plan(batch.shapes, side, batch.features.device)
        valid = batch.tables.valid
        pooled, _ = adaptive_pool(batch.features, batch.patch_grid, (side, side), valid)
        features = self._projected(pooled.flatten(0, 1)[plan.bin]).to(batch.features.dtype)
        return batch.merge(
            plan.place,
            plan.output,
            plan.source,
            1 / plan.size[plan.output],
            plan.size,
            plan.tokens,
            plan.entries,
            separators=(plan.separators, plan.newlines),
            features=features,
        )

    def _projected(self, pooled: Tensor) -> Tensor:
        """`[M, C]` through the projector, which is moved to where the features are.

        Raises:
            VTCError: it was made for features of another width, or returns another number of tokens.
        """
        config = getattr(self.projector, "config", None)
        made_for = config.get("vision_width") if isinstance(config, dict) else None
        if made_for not in (None, pooled.shape[-1]):
            raise VTCError(
                f"projector: got one for vision features of width {made_for}, this model's have "
                f"width {pooled.shape[-1]}"
            )
        weight = next(iter(self.projector.parameters()), None)
        if weight is not None and weight.device != pooled.device:
            self.projector.to(pooled.device)
        out = self.projector.project(pooled)
        if out.dim() != 2 or len(out) != len(pooled):
            raise VTCError(
                f"projector: {type(self.projector).__name__}.project made {tuple(out.shape)} of "
                f"{tuple(pooled.shape)}, expected as many tokens"
            )
        return out


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is pooled into what in a batch, from shapes and n alone.

    Attributes:
        bin: int64 `[M]`, bin `tile * n * n + bin` of each token.
        place: int64 `[M]`, place of its middle patch among all packed tokens.
        output, source: int64 `[K]`, token and `tile * N + patch` of each patch that is pooled.
        size: float `[M]`, patches pooled into each token.
        separators: int64, places of the newlines that close a row of tokens.
        tokens, entries, newlines: M, K and separators of each image.
    """

    bin: Tensor
    place: Tensor
    output: Tensor
    source: Tensor
    size: Tensor
    separators: Tensor
    tokens: list[int]
    entries: list[int]
    newlines: list[int]


@lru_cache(maxsize=16)
def _plan(shapes: tuple[Geometry, ...], side: int, device: torch.device) -> _Plan:
    """The plan of images side by side, on `device`."""
    with tables():
        host = batch_tables(shapes, torch.device("cpu"))
        parts = [_image_plan(shape, side) for shape in shapes]
        tokens = [len(p.bin) for p in parts]
        steps = {
            "bin": host.first * side * side,
            "place": host.start,
            "output": torch.tensor(starts_of(tokens)),
            "source": host.first * host.valid.shape[1],
            "size": torch.zeros(len(parts)),
            "separators": host.start,
        }
        moved = {
            name: joined([getattr(part, name) for part in parts], step)
            for name, step in steps.items()
        }
        return _Plan(
            **{name: x.to(device, non_blocking=True) for name, x in moved.items()},
            tokens=tokens,
            entries=[len(p.output) for p in parts],
            newlines=[len(p.separators) for p in parts],
        )


@lru_cache(maxsize=512)
def _image_plan(shape: Geometry, side: int) -> _Plan:
    """The plan of a single image, on the CPU; called inside `tables`."""
    (rows, cols), patches = shape.patch_grid, shape.valid.shape[1]
    sides = torch.full((shape.tiles,), side)
    top, bottom, left, right = _rectangles(shape)
    row_used, row_first, row_last = pooled_axis(rows, sides, side, top, bottom)
    col_used, col_first, col_last = pooled_axis(cols, sides, side, left, right)
    tile, i, j = (row_used[:, :, None] & col_used[:, None, :]).nonzero(as_tuple=True)
    up, down = row_first[tile, i], row_last[tile, i]
    west, east = col_first[tile, j], col_last[tile, j]
    line, column = torch.arange(rows), torch.arange(cols)
    inside_rows = (line >= up[:, None]) & (line < down[:, None])
    inside_cols = (column >= west[:, None]) & (column < east[:, None])
    members = (inside_rows[:, :, None] & inside_cols[:, None, :]).flatten(1)
    output, source = members.nonzero(as_tuple=True)
    middle = (up + down - 1) // 2 * cols + (west + east - 1) // 2
    separators = shape.separators
    if shape.tile_grid is not None:
        crop = tile >= 1
        row = (tile[crop] - 1) // shape.tile_grid[1] * rows + middle[crop] // cols
        closes = shape.layout.row[separators]  # -1 for separators that close no row
        separators = separators[(closes < 0) | torch.isin(closes, row)]
    return _Plan(
        bin=tile * side * side + i * side + j,
        place=shape.packed[tile, middle],
        output=output,
        source=tile[output] * patches + source,
        size=members.sum(1).float(),
        separators=separators,
        tokens=[len(tile)],
        entries=[len(output)],
        newlines=[len(separators)],
    )


def _rectangles(shape: Geometry) -> tuple[Tensor, ...]:
    """Top, bottom, left and right end of what is not padding, of each tile."""
    try:
        return valid_rectangles(shape.valid, shape.patch_grid).unbind(1)
    except VTCError as error:
        raise VTCError(f"{error}; {quoted(without_signals())} can work on it") from None


@lru_cache(maxsize=512)
def _token_counts(shape: Geometry) -> list[int]:
    """Tokens of an image at 1 x 1, 2 x 2, ... up to the side of a tile."""
    with tables():
        rows, cols = shape.patch_grid
        most = min(rows, cols)
        side = torch.arange(1, most + 1)[:, None]
        top, bottom, left, right = _rectangles(shape)
        used_rows = pooled_axis(rows, side, most, top[None], bottom[None])[0].sum(-1)
        used_cols = pooled_axis(cols, side, most, left[None], right[None])[0].sum(-1)
        return (used_rows * used_cols).sum(1).tolist()
