"""The tables of a result, for the terminal and the docs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vtc.eval.kernels.bench.operations import CALLS
from vtc.eval.kernels.bench.selection import LONG
from vtc.eval.kernels.bench.sizes import LAYERS


def milliseconds(values: Sequence[float]) -> str:
    """Median and quartiles of seconds."""
    middle, low, high = (1e3 * value for value in values)
    if low == high:
        return f"{middle:,.1f}"
    return f"{middle:,.1f} ({low:,.1f}-{high:,.1f})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result, for the docs."""
    about = result["about"]
    lines = [
        f"Measured on {about['machine']}, {about['threads']} thread(s), {about['dtype']}, torch "
        f"{about['torch']}, load {about['load']:.1f} before the run; {about['layers']} of {LAYERS} "
        f"layers run and scaled, retention {about['retention']:.0%}, {about['clock']}, median "
        f"(quartiles) of {about['rounds']} rounds; of more than {LONG:,} tokens in a batch 1 round.",
        "",
        "| method | tokens | batch | selection, ms | prefill, ms | selection / prefill | peak, MB "
        "| peak / features |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["selections"]:
        if "ratio" not in row:
            lines.append(
                f"| - | {row['tokens']:,} | {row['batch']} | - | - | {row['why']} | - | - |"
            )
            continue
        once = row["ratio"]["rounds"] == 1
        share = ("{median:.3%}" if once else "{median:.3%} ({low:.3%}-{high:.3%})").format(
            **row["ratio"]
        )
        lines.append(
            f"| `{row['method']}` | {row['tokens']:,}: {row['layout']} | {row['batch']} | "
            f"{milliseconds(row['selection'])} | {milliseconds(row['prefill'])} | {share} | "
            f"{row['memory'] / 1e6:,.1f} | {row['memory'] / row['features']:.2f} |"
        )
    if result.get("official_style"):
        lines += [
            "",
            "| method | tokens | left | ours, ms | stand-in, ms | stand-in / ours "
            "| ours: operations, `.item()` | stand-in: operations, `.item()` |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in result["official_style"]:
            times, counts = row["seconds"], row["operations and items"]
            share = "{median:.1f} ({low:.1f}-{high:.1f})".format(**row["ratio"])
            lines.append(
                f"| `{row['method']}` | {row['tokens']:,} | {row['left']} | "
                f"{milliseconds(times['ours'])} | {milliseconds(times['stand-in'])} | {share} | "
                + " | ".join("{:,}, {:,}".format(*pair) for pair in counts.values())
                + " |"
            )
    if result.get("operations"):
        lines += ["", *_operations(result)]
    return "\n".join(lines) + "\n"


def _operations(result: Mapping[str, Any]) -> list[str]:
    """Times of operations, and how near they come to what the card was measured to do."""
    lines = []
    if "ceilings" in result:
        card = result["ceilings"]
        lines += [
            f"Measured on this card: {card['bandwidth'] / 1e12:.2f} TB/s copied, "
            f"{card['tensor'] / 1e12:.0f} TFLOP/s in fp16 products, {card['plain'] / 1e12:.0f} in fp32.",
            "",
        ]
    columns = [f"{label}, us" for label in CALLS]
    columns += [f"{label} in a graph, us" for label in CALLS]
    lines += [
        f"| operation | tokens | batch | {' | '.join(columns)} | floor, us | kernel's share of it |",
        "|---|---:|---:|" + "---:|" * (len(columns) + 2),
    ]
    for row in result["operations"]:
        cells = [
            "-" if found is None else "{:.1f} ({:.1f}-{:.1f})".format(*found)
            for times in (row["microseconds"], row["work"])
            for found in map(times.get, CALLS)
        ]
        floor = row["floor"].get("measured", row["floor"]["H100"])
        share = row["share"].get("kernel", math.nan)
        lines.append(
            f"| `{row['operation']}` | {row['tokens']:,} | {row['batch']} | {' | '.join(cells)} | "
            f"{floor:.2f} ({row['bound']}) | {share:.0%} |"
        )
    return lines
