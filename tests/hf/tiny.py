"""Tiny random-weight models of the supported families, and inputs for them."""

from __future__ import annotations

import torch

from tests.device import placed
from tests.families import models
from tests.families.models import BOS, EOS, IMAGE, PAD, PATCH, PINPOINTS, TILE, VOCAB  # noqa: F401
from tests.families.tiny import finished
from vtc.functional.anyres import tile_grid
from vtc.packing import Packing

FAMILIES = ("llava-clip", "llava-siglip", "next-clip", "next-siglip", "vipllava")


def build(family: str, seed: int = 0, attention: str = "sdpa", **config):
    """A random model in eval mode; `config` is of the family's configuration."""
    torch.manual_seed(seed)
    name, _, tower = family.partition("-")
    if name == "vipllava":
        model = models.vipllava(**config)
    else:
        make = {"llava": models.llava, "next": models.llava_next}[name]
        strategy = "full" if tower == "siglip" else "default"
        config = {"vision_feature_select_strategy": strategy, **config}
        model = make({"clip": models.clip, "siglip": models.siglip}[tower](), **config)
    model = finished(model, attention)
    model.generation_config.suppress_tokens = [IMAGE]
    return model


def visual_tokens(family: str, size: tuple[int, int]) -> int:
    """Placeholders of one image of `size` (height, width)."""
    grid = (TILE // PATCH, TILE // PATCH)
    if not family.startswith("next"):
        return grid[0] * grid[1]
    crops = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
    return Packing(grid, crops, size, newline=True).length


def inputs(
    family: str,
    rows: list[list[tuple[int, int]]],
    seed: int = 0,
    side: str = "left",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """A batch: for each row the sizes (height, width) of its images."""
    rng = torch.Generator().manual_seed(seed)

    def words(n: int) -> list[int]:
        return torch.randint(3, IMAGE, (n,), generator=rng).tolist()

    texts, pixels, sizes = [], [], []
    for images in rows:
        ids = [BOS, *words(int(torch.randint(2, 6, (1,), generator=rng)))]
        for size in images:
            ids += [IMAGE] * visual_tokens(family, size) + words(3)
            tiles = 1
            if family.startswith("next"):
                crops = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
                tiles = 1 + crops[0] * crops[1]
            pixels.append(torch.randn(tiles, 3, TILE, TILE, generator=rng))
            sizes.append(size)
        texts.append(ids + words(4))
    width = max(map(len, texts))

    def pad(ids: list[int], fill: int) -> list[int]:
        gap = [fill] * (width - len(ids))
        return gap + ids if side == "left" else ids + gap

    out = {
        "input_ids": torch.tensor([pad(t, PAD) for t in texts]),
        "attention_mask": torch.tensor([pad([1] * len(t), 0) for t in texts]),
    }
    if family.startswith("next"):
        most = max(p.shape[0] for p in pixels)
        padded = [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in pixels]
        out["pixel_values"] = torch.stack(padded).to(dtype)
        out["image_sizes"] = torch.tensor(sizes)
    else:
        out["pixel_values"] = torch.cat(pixels).to(dtype)
    return placed(out)


#: batches as sizes (height, width) of each row's images; every one mixes what it can
ONE = [[(40, 60)]]
MIXED = [[(40, 60)], [], [(70, 20), (30, 90)], [(64, 64)]]


def row(batch: dict[str, torch.Tensor], rows: list[list[tuple[int, int]]], index: int) -> dict:
    """Row `index` of a batch from `inputs`, alone and without padding."""
    keep = batch["attention_mask"][index].bool()
    first = sum(map(len, rows[:index]))
    mine = slice(first, first + len(rows[index]))
    out = {key: batch[key][index][keep][None] for key in ("input_ids", "attention_mask")}
    if rows[index]:
        for key in ("pixel_values", "image_sizes"):
            if key in batch:
                out[key] = batch[key][mine]
    return out


def snapshot(model: torch.nn.Module) -> dict:
    """Everything a patch could leave behind: attributes, configs, hooks and children of each module."""
    out: dict = {"state": list(model.state_dict()), "config": model.config.to_dict()}
    for name, module in model.named_modules():
        held = vars(module)
        out[name] = {
            # tables (hooks, children, parameters) by content, everything else by identity
            key: {k: id(v) for k, v in value.items()} if isinstance(value, dict) else id(value)
            for key, value in held.items()
        }
    return out
