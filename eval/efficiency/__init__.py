"""What a method costs and saves: times, memory, cache and FLOPs against the uncompressed model.

A run's folder holds `run.json` (kind "efficiency"), `measures.jsonl` with a `lines.Line` a setting,
and `summary.csv`. `docs/efficiency.md` defines every figure.
"""
