"""READ: similarity of image tokens to the segmentation token, and points of the map."""

from __future__ import annotations

import math
from typing import Any

from tests.golden_discrete.common import Result, runner
from vtc.functional.similarity import similarity_points, token_similarity


@runner("read__similarity")
def similarity(case: Any) -> Result:
    tokens = case.input("in.image")
    return {
        "out.sim": token_similarity(tokens, case.input("in.seg")),
        "out.sim_multi": token_similarity(tokens, case.input("in.segs")),
    }


@runner("read__points")
def points(case: Any) -> Result:
    a, sim = case.info["args"], case.input("in.similarity")
    cells = (math.isqrt(len(sim)) // a["down_sample"]) ** 2
    count = min(a["num_points"], cells)  # the official code is content with fewer
    place, labels = similarity_points(
        sim, tuple(a["shape"]), count, a["t_pos"], a["t_neg"], a["down_sample"]
    )
    return {"out.points_xy": place, "out.labels": labels}
