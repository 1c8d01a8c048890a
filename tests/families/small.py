"""What the bare model is given in place of pictures made smaller: small pixels and a short prompt, put
together placeholder by placeholder."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import vtc
from tests.families import tiny
from vtc.methods.resize import Resize

FREE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_pixtral"]
CROPS = ["llava_next", "llava_next_video", "llava_onevision", "llava_onevision_shrunk", "internvl"]
#: a batch for each in which there is something to make smaller
LARGE, WIDE, TALL = ("image", (96, 96)), ("image", (50, 130)), ("image", (110, 40))
CLIP = ("video", (64, 96))
ROWS: dict[str, tiny.Rows] = {
    **dict.fromkeys(FREE, [[LARGE], [], [WIDE, TALL], [TALL]]),
    **dict.fromkeys(CROPS, [[LARGE], [], [WIDE], [TALL]]),
}
#: budgets that each family can keep to; the first picture of two of them cannot be made smaller
METHODS: dict[str, Resize] = {
    **dict.fromkeys(FREE, Resize(0.5)),
    **dict.fromkeys(CROPS, Resize(tokens=[40, 50, 30])),
    "llava_onevision_shrunk": Resize(tokens=[32, 27, 25]),
    "internvl": Resize(tokens=[4, 12, 5]),
}
CASES = [(name, False) for name in (*FREE, *CROPS)] + [(name, True) for name in FREE[:3]]
KINDS = (("image", tiny.IMAGE, "pixel_values"), ("video", tiny.VIDEO, "pixel_values_videos"))


def rows_of(name: str, video: bool = False) -> tiny.Rows:
    return [[CLIP], [LARGE, CLIP], [TALL]] if video else ROWS[name]


def encoded(model: Any, method: Any, batch: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the encoders are given under a method, by name."""
    seen: dict[str, Any] = {}
    base = model.model
    for kind, _, key in KINDS:
        if key not in batch:
            continue
        own = getattr(base, f"get_{kind}_features")

        def spy(*args: Any, _own: Any = own, **kwargs: Any) -> Any:
            seen.update(kwargs)  # Qwen3's clips are handed on as images, without names
            return _own(*args, **kwargs)

        spy.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
        setattr(base, f"get_{kind}_features", spy)
    try:
        with torch.no_grad(), vtc.compress(model, method, **more):
            model(**batch)
    finally:
        for kind, _, key in KINDS:
            if key in batch:
                delattr(base, f"get_{kind}_features")
    kept = {"pixel_values", "pixel_values_videos", "image_sizes", "batch_num_images"}
    return {k: v for k, v in seen.items() if k in kept or k.endswith("grid_thw")}


@torch.no_grad()
def lengths(model: Any, kind: str, batch: dict[str, Any]) -> list[tuple[int, int]]:
    """Tokens and frames of each image or clip, as the bare encoder makes them."""
    base = model.model
    names = {"image": ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")}
    names["video"] = ("pixel_values_videos", "video_grid_thw")
    given = {n: batch[n] for n in names[kind] if n in batch}
    out = getattr(base, f"get_{kind}_features")(**given, return_dict=True).pooler_output
    grids = batch.get(f"{kind}_grid_thw")
    frames = [1] * len(out) if grids is None or kind == "image" else grids[:, 0].tolist()
    counts = [part.flatten(0, -2).shape[0] for part in out]
    if isinstance(out, Tensor) and kind == "image" and "image_sizes" not in batch:
        runs = batch["_tiles"]
        counts = [sum(counts[a:b]) for a, b in runs]
    return list(zip(counts, frames, strict=False))


def short_rows(model: Any, name: str, batch: dict[str, Any], small: dict[str, Any]) -> list[Any]:
    """The ids of each row with as many placeholders as the small pictures have."""
    queues = {}
    for kind, token, key in KINDS:
        if key in batch:
            old, new = (lengths(model, kind, b) for b in (batch, small))
            queues[token] = [(o[0], n[0], o[1]) for o, n in zip(old, new, strict=True)]
    out = []
    for ids, mask in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True
    ):
        ids = [t for t, m in zip(ids, mask, strict=True) if m]
        row, i = [], 0
        while i < len(ids):
            if ids[i] not in queues:
                row.append(ids[i])
                i += 1
                continue
            token = ids[i]
            old, new, frames = queues[token].pop(0)
            for _ in range(frames):
                while ids[i] != token:  # a time stamp
                    row.append(ids[i])
                    i += 1
                i += old // frames
                row += [token] * (new // frames)
        out.append(row)
    return out


def prompt(name: str, ids: list[int]) -> dict[str, Any]:
    """A row alone, without padding."""
    row = torch.tensor([ids])
    out = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if name.startswith("qwen"):
        out["mm_token_type_ids"] = (row == tiny.IMAGE).long() + 2 * (row == tiny.VIDEO).long()
    return out


def split(name: str, rows: tiny.Rows, small: dict[str, Any]) -> list[dict[str, Any]]:
    """The pixels of each row, out of those of the batch."""
    out: list[dict[str, Any]] = []
    starts = {"image": 0, "video": 0}
    for row in rows:
        mine: dict[str, Any] = {}
        for kind, _, key in KINDS:
            count = sum(k == kind for k, _ in row)
            a, b = starts[kind], starts[kind] + count
            starts[kind] = b
            if not count:
                continue
            grids = small.get(f"{kind}_grid_thw")
            if grids is not None:
                parts = small[key].split(grids.prod(-1).tolist())
                mine |= {key: torch.cat(parts[a:b]), f"{kind}_grid_thw": grids[a:b]}
            elif "_tiles" in small:
                tiles = small["_tiles"][a:b]
                mine |= {key: small[key][tiles[0][0] : tiles[-1][1]]}
            else:
                mine |= {key: small[key][a:b], "image_sizes": small["image_sizes"][a:b]}
                if "batch_num_images" in small:
                    mine["batch_num_images"] = torch.tensor([count])
        out.append(mine)
    return out


def tiles_of(name: str, rows: tiny.Rows, run: Any) -> list[tuple[int, int]]:
    """First and last tile of each image, where the tiles of all are one batch."""
    out, start = [], 0
    for tiles in run:
        out.append((start, start + tiles))
        start += tiles
    return out


def given(name: str, model: Any, rows: tiny.Rows, method: Any, **more: Any) -> Any:
    """The batch, and what of it the bare model gets at the sizes that `method` asks for."""
    batch = tiny.inputs(name, rows, **more)
    small = encoded(model, method, batch)
    if name == "internvl":
        with torch.no_grad(), vtc.compress(model, method) as run:
            model(**batch)
        images = run.reports[-1].images
        batch["_tiles"] = tiles_of(name, rows, [i.full.tiles if i.full else 1 for i in images])
        small["_tiles"] = tiles_of(name, rows, [i.num_tiles for i in images])
    rows_ids = short_rows(model, name, batch, small)
    batch.pop("_tiles", None)
    return batch, [
        {**prompt(name, ids), **mine}
        for ids, mine in zip(rows_ids, split(name, rows, small), strict=True)
    ]


def cell(name: str, video: bool, mode: str, side: str, ask: dict[str, Any] | None) -> str:
    """A cell of the matrix, see `tests.families.matrix`; raises where the outcome differs.

    Args:
        ask: of `generate`, None for a forward.
    """
    model = tiny.built(name)
    if (name, video) not in CASES:
        with torch.no_grad(), vtc.compress(model, Resize(0.5)):
            model(**tiny.inputs(name, tiny.rows_of(name, video)))  # refused
        raise AssertionError("not refused, and there is no reference")
    rows = rows_of(name, video)
    batch, alone = given(name, model, rows, METHODS[name], side=side)

    def run(inputs: dict[str, Any], row: int = 0) -> Tensor:
        torch.manual_seed(row)
        if ask is None:
            return model(**inputs).logits
        return model.generate(**inputs, **ask)[:, inputs["input_ids"].shape[1] :]

    if mode in ("sampled", "assisted"):  # one random stream, or one prompt, at a time
        budget, first = METHODS[name], 0
        for row, one in enumerate(alone):
            padded = tiny.alone(name, rows, row, side=side, padded=bool(rows[row]))
            mine = slice(first, first := first + len(rows[row]))
            if budget.retention is None:
                each = Resize(tokens=budget.tokens[mine] or 16)
            else:
                each = Resize(budget.retention)
            with torch.no_grad(), vtc.compress(model, each) as handle:
                got = run(padded, row)
            if not any(image.full for report in handle.reports for image in report.images):
                continue  # the bare model, which goes on behind padding on the right
            with torch.no_grad():
                want = run(one, row)
            assert torch.equal(got, want), f"row {row}: {got.tolist()}, bare {want.tolist()}"
        return "ok"
    with torch.no_grad():
        with vtc.compress(model, METHODS[name]):
            got = run(batch)
        for row, one in enumerate(alone):
            want = run(one)[0]
            if ask is not None:
                assert torch.equal(got[row], want), f"row {row}"
                continue
            mine = got[row, -len(want) :] if side == "left" else got[row, : len(want)]
            torch.testing.assert_close(mine, want, atol=2e-3, rtol=1e-3)
    return "ok"
