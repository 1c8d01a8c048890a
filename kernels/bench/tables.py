"""The tables of a result, for the terminal and the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtc.kernels.bench.operations import CALLS
from vtc.kernels.bench.sizes import LAYERS
from vtc.kernels.floors import CARDS


def milliseconds(values: Sequence[float]) -> str:
    """Median and quartiles of seconds."""
    middle, low, high = (1e3 * value for value in values)
    return f"{middle:,.1f} ({low:,.1f}-{high:,.1f})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result, for the docs."""
    about = result["about"]
    lines = [
        f"Measured on {about['machine']}, {about['threads']} thread(s), {about['dtype']}, torch "
        f"{about['torch']}, load {about['load']:.1f} before the run; {about['layers']} of {LAYERS} "
        f"layers run and scaled, retention {about['retention']:.0%}, {about['rounds']} rounds, "
        "median (quartiles).",
        "",
        "| method | tokens | batch | selection, ms | prefill, ms | selection / prefill |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["selections"]:
        if "ratio" not in row:
            lines.append(f"| - | {row['tokens']:,} | {row['batch']} | - | - | {row['why']} |")
            continue
        share = "{median:.3%} ({low:.3%}-{high:.3%})".format(**row["ratio"])
        lines.append(
            f"| `{row['method']}` | {row['tokens']:,} | {row['batch']} | "
            f"{milliseconds(row['selection'])} | {milliseconds(row['prefill'])} | {share} |"
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
                f"| `{row['method']}` | {row['tokens']:,} | {row['left'][0]} | "
                f"{milliseconds(times['ours'])} | {milliseconds(times['stand-in'])} | {share} | "
                + " | ".join("{:,}, {:,}".format(*pair) for pair in counts.values())
                + " |"
            )
    if result.get("operations"):
        lines += [
            "",
            "| operation | features | kernel, us | twin, us | compiled twin, us | "
            + " | ".join(f"{card} floor, us" for card in CARDS)
            + " |",
            "|---|---|" + "---:|" * (3 + len(CARDS)),
        ]
        for row in result["operations"]:
            found = [row["microseconds"].get(label) for label in CALLS]
            cells = ["-" if v is None else "{:.1f} ({:.1f}-{:.1f})".format(*v) for v in found]
            cells += [f"{value:.2f}" for value in row["floor"].values()]
            lines.append(f"| `{row['operation']}` | {row['dtype']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
