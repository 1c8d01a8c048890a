"""The least time each operation can take on a GPU: `python -m vtc.kernels.floors`.

Bytes that must cross the memory bus and FLOPs that must be done at the shapes of LLaVA-NeXT-7B (one
image: a thumbnail and four crops through CLIP-L/14 at 336 pixels), divided by what the datasheet
promises. A floor counts neither launches nor what a cache may save; no number here was measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.eval.common.docs import put

#: thumbnail and crops, patches of a tile, heads and their width, width of the tower and of the LM
TILES, PATCHES, HEADS, HEAD_WIDTH, WIDTH, LM_WIDTH = 5, 576, 16, 64, 1024, 4096
PIXELS = 588  # numbers of a patch's pixels
HALF, FLOAT, INT, FLAG = 2, 4, 8, 1  # bytes of an element


@dataclass(frozen=True)
class Card:
    """What a datasheet promises.

    Attributes:
        bandwidth: bytes per second of the main memory.
        tensor: FLOPs per second of dense 16-bit matrix products.
        plain: FLOPs per second in float32 outside the tensor cores.
    """

    bandwidth: float
    tensor: float
    plain: float


#: NVIDIA's datasheets: A100 80 GB SXM, H100 SXM
CARDS = {
    "A100": Card(2.039e12, 312e12, 19.5e12),
    "H100": Card(3.35e12, 989e12, 67e12),
}


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without.

    Attributes:
        read, written: bytes.
        flops: additions and multiplications.
        matrix: whether they are products of 16-bit matrices.
        shape: in words.
    """

    read: int
    written: int
    flops: int
    matrix: bool
    shape: str

    def seconds(self, card: Card) -> float:
        """The larger of the two floors."""
        peak = card.tensor if self.matrix else card.plain
        return max((self.read + self.written) / card.bandwidth, self.flops / peak)

    def bound(self, card: Card) -> str:
        """What the floor comes from."""
        moved = (self.read + self.written) / card.bandwidth
        return "memory" if moved >= self.seconds(card) else "arithmetic"


def _cls_attention(tiles: int) -> Work:
    tokens = PATCHES + 1
    heads = tiles * HEADS * tokens * HEAD_WIDTH
    return Work(
        heads * HALF,
        2 * tiles * tokens * FLOAT,
        2 * heads,
        False,
        f"keys [{tiles}, {HEADS}, {tokens}, {HEAD_WIDTH}]",
    )


def _attention_received(tiles: int) -> Work:
    heads = tiles * HEADS * PATCHES * HEAD_WIDTH
    return Work(
        2 * heads * HALF,
        tiles * PATCHES * FLOAT,
        2 * heads * PATCHES,
        True,
        f"queries and keys [{tiles}, {HEADS}, {PATCHES}, {HEAD_WIDTH}]",
    )


def _row_attention(tiles: int) -> Work:
    heads, keys = 32, tiles * PATCHES * LM_WIDTH  # all heads side by side
    return Work(
        keys * HALF + tiles * PATCHES * FLAG,
        tiles * PATCHES * FLOAT,
        2 * keys,
        False,
        f"a row, keys [{tiles}, {heads}, {PATCHES}, {LM_WIDTH // heads}]",
    )


def _neighbour_count(tiles: int) -> Work:
    pairs = tiles * PATCHES * (PATCHES - 1) // 2  # cosines are symmetric
    return Work(
        tiles * PATCHES * (WIDTH * HALF + FLAG),
        tiles * PATCHES * INT,
        2 * pairs * WIDTH,
        True,
        f"keys [{tiles}, {PATCHES}, {WIDTH}]",
    )


def _cosine_topk(tiles: int) -> Work:
    queries, k = 32, 32
    return Work(
        tiles * (PATCHES * (WIDTH * HALF + FLOAT + FLAG) + queries * (WIDTH * HALF + INT)),
        tiles * queries * k * INT,
        2 * tiles * queries * PATCHES * WIDTH,
        True,
        f"{queries} queries, keys [{tiles}, {PATCHES}, {WIDTH}], k = {k}",
    )


def _greedy_pick(tiles: int) -> Work:
    picks = PATCHES // 4
    # mmr: the cosines of every pick with all candidates
    return Work(
        tiles * PATCHES * (LM_WIDTH * HALF + FLOAT + FLAG),
        tiles * picks * INT,
        2 * tiles * picks * PATCHES * LM_WIDTH,
        True,
        f"{picks} picks of [{tiles}, {PATCHES}, {LM_WIDTH}]",
    )


def _lof(tiles: int) -> Work:
    k = 20
    # for every value and neighbour: moving the window, distance, reach, density, ratio
    return Work(
        tiles * PATCHES * (FLOAT + FLAG),
        tiles * PATCHES * FLOAT,
        tiles * PATCHES * k * 10,
        False,
        f"values [{tiles}, {PATCHES}], k = {k}",
    )


def _segmented_topk(tiles: int) -> Work:
    return Work(
        tiles * PATCHES * (FLOAT + FLAG),
        tiles * PATCHES * (INT + FLAG),
        tiles * PATCHES * 50,  # a bitonic sort of 1024 compares every value 55 times
        False,
        f"scores [{tiles}, {PATCHES}]",
    )


def _merge(tiles: int) -> Work:
    entries, outputs = tiles * PATCHES, tiles * PATCHES // 4
    return Work(
        entries * (WIDTH * HALF + 2 * INT + FLOAT),
        outputs * WIDTH * HALF,
        2 * entries * WIDTH,
        False,
        f"{entries} rows of {WIDTH} into {outputs}",
    )


def _adaptive_pool(tiles: int) -> Work:
    bins = 64
    return Work(
        tiles * PATCHES * (WIDTH * HALF + FLAG),
        tiles * bins * (WIDTH * HALF + FLOAT),
        tiles * PATCHES * WIDTH,
        False,
        f"[{tiles}, {PATCHES}, {WIDTH}] to 8 x 8",
    )


def _ragged_compact(tiles: int) -> Work:
    kept = tiles * PATCHES // 4
    return Work(
        kept * (LM_WIDTH * HALF + INT),
        kept * (LM_WIDTH * HALF + INT + FLAG),
        0,
        False,
        f"{kept} of {tiles * PATCHES} rows of {LM_WIDTH}",
    )


def _bit_packing(tiles: int) -> Work:
    words, width = tiles * PATCHES, 16
    return Work(
        words * width * FLAG, words * INT, words * width, False, f"{words} words of {width}"
    )


def _drop_alike(tiles: int) -> Work:
    front, step = PATCHES // 8, 8  # of the fourth that stays, half by attention
    lists = range(PATCHES - front, front, -step)
    return Work(
        tiles * (PATCHES**2 * FLOAT + lists[0] * INT),
        tiles * lists[0] * INT,
        tiles * sum(n * n // 4 for n in lists),
        False,
        f"{len(lists)} rounds on [{tiles}, {lists[0]}] of [{tiles}, {PATCHES}, {PATCHES}]",
    )


def _suppress(tiles: int) -> Work:
    pairs = tiles * PATCHES**2
    # two steps at least: the second sees that nothing changed
    return Work(
        (pairs + tiles * PATCHES) * FLAG,
        tiles * PATCHES * FLAG,
        2 * 2 * pairs,
        False,
        f"pairs [{tiles}, {PATCHES}, {PATCHES}]",
    )


def _pixel_surprise(tiles: int) -> Work:
    numbers = tiles * PATCHES * PIXELS
    # four pairs of tokens: difference, size and largest
    return Work(
        numbers * HALF + tiles * PATCHES * FLAG,
        tiles * PATCHES * FLOAT,
        4 * 3 * numbers,
        False,
        f"pixels [{tiles}, {PATCHES}, {PIXELS}]",
    )


#: file of the operation -> what it cannot do without, for so many tiles
WORK: dict[str, Callable[[int], Work]] = {
    "cls_attention": _cls_attention,
    "attention_received": _attention_received,
    "row_attention": _row_attention,
    "segmented_topk": _segmented_topk,
    "lof": _lof,
    "neighbour_count": _neighbour_count,
    "cosine_topk": _cosine_topk,
    "greedy_pick": _greedy_pick,
    "merge": _merge,
    "adaptive_pool": _adaptive_pool,
    "ragged_compact": _ragged_compact,
    "bit_packing": _bit_packing,
    "drop_alike": _drop_alike,
    "suppress": _suppress,
    "pixel_surprise": _pixel_surprise,
}


def markdown() -> str:
    """The table, for the docs."""
    lines = [
        "| operation | shape | read | written | MFLOP | "
        + " | ".join(f"{name} floor" for name in CARDS)
        + " | bound by |",
        "|---|---|---:|---:|---:|" + "---:|" * len(CARDS) + "---|",
    ]
    for name, make in WORK.items():
        work = make(TILES)
        floors = " | ".join(f"{1e6 * work.seconds(card):.2f} us" for card in CARDS.values())
        moved = " | ".join(f"{count / 1e3:,.0f} kB" for count in (work.read, work.written))
        bounds = sorted({work.bound(card) for card in CARDS.values()})
        lines.append(
            f"| `{name}` | {work.shape} | {moved} | {work.flops / 1e6:,.1f} | {floors} | "
            f"{' / '.join(bounds)} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or put it into the docs."""
    parser = argparse.ArgumentParser(prog="python -m vtc.kernels.floors", description=__doc__)
    parser.add_argument("--markdown", type=Path, help="file of the docs that gets the table")
    given = parser.parse_args(arguments)
    if given.markdown:
        put(given.markdown, "floors", markdown())
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
