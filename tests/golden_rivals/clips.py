"""Runners of the clip methods' golden cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc import VisualTokens, create_method
from vtc.batch import ImageBatch
from vtc.tokens import CompressedTokens


def clip(case: Any, **signals: Tensor) -> VisualTokens:
    """The case's frames; where no grid is given a frame is a line of tokens."""
    features, info = case.input("features"), case.info
    frames = info["frames"]
    features = features.reshape(frames, -1, features.shape[-1])
    return VisualTokens(
        features, tuple(info.get("grid", (1, features.shape[1]))), None, None, None, signals
    )


def kept(out: CompressedTokens, tokens: VisualTokens) -> Tensor:
    """Indices over the clip, in the order of the output."""
    return out.tile * tokens.features.shape[1] + out.patch


def evs(case: Any) -> None:
    tokens = clip(case)
    frames, patches = tokens.features.shape[:2]
    # in floating point, and never less than a frame
    count = max(patches, int(frames * patches * (1 - case.info["pruning_rate"])))
    out = create_method("evs", tokens=count).compress(tokens)
    case.expect("keep_idx", kept(out, tokens), need=True)


def vidcom2(case: Any) -> None:
    tokens, retention = clip(case), case.info["retention"]
    official = create_method("vidcom2", retention=retention, count="official")
    score, frames = official.steps(ImageBatch([tokens], [official]))
    case.expect("score", score[0], rtol=1e-4)
    case.expect("frame_budget", frames[0])
    case.expect("keep_idx", kept(official.compress(tokens), tokens), need=True)
    patches = tokens.num_patches
    total = max(len(tokens.features), int(patches * retention))
    budget = (
        {"retention": retention} if int(patches * retention + 1e-9) == total else {"tokens": total}
    )
    exact = create_method("vidcom2", **budget)
    case.expect("keep_idx_exact", kept(exact.compress(tokens), tokens), need=True)


def dycoke(case: Any) -> None:
    tokens = clip(case)
    method = create_method("dycoke", merging_ratio=case.info["merging_ratio"], groups="official")
    case.expect("keep_idx", kept(method.compress(tokens), tokens), need=True)


def fastvid(case: Any) -> None:
    info = case.info
    tokens = clip(
        case,
        pool_attention=case.input("pool_attention"),
        pool_output=case.input("frame_embedding"),
    )
    method = create_method(
        "fastvid",
        retention=info["retention"],
        c=info["DySeg_c"],
        tau=info["DySeg_tau"],
        d=info["STPrune_d"],
        p=info["DTM_p"],
        beta=info["DTM_beta"],
        guide="pool",
        count="official",
    )
    begins = torch.as_tensor(method.begins(ImageBatch([tokens], [method])))
    if info["DTM_p"] > 1:
        case.expect("segments", begins.cumsum(0).bincount()[1:])
    out = method.compress(tokens)
    case.expect("keep_idx", kept(out, tokens), need=True)
    case.expect("out_tokens", out.features, atol=2e-5, rtol=1e-4, need=True)


def prunevid(case: Any) -> None:
    tokens, info = clip(case), case.info
    patches = tokens.features.shape[1]
    method = create_method(
        "prunevid",
        temporal_segment_ratio=info["temporal_segment_ratio"],
        tau=info["tau"],
        cluster_ratio=info["cluster_ratio"],
        k=info["k"],
    )
    batch = ImageBatch([tokens], [method])
    sets, found = method.sets(batch), method.windows(batch)[0]
    case.expect("windows", torch.tensor(found))
    share = torch.as_tensor(sets.share)
    case.expect("static", share[: len(found)])
    dynamic = torch.zeros(len(found), dtype=torch.long)
    dynamic.index_add_(0, torch.as_tensor(sets.window), share[len(found) :])
    case.expect("dynamic", dynamic)

    # officially the order is window by window: static tokens, then frame by frame, by peak score
    out = method.compress(tokens)
    at = {place: nth for nth, place in enumerate(kept(out, tokens).tolist())}
    order: list[int] = []
    members = torch.cat([sets.static, ~sets.static[torch.as_tensor(sets.window)]])
    for window in range(len(found)):
        first = sum(found[:window])
        rows = [(window, first)]
        rows += [(len(found) + first + i, first + i) for i in range(found[window])]
        for row, frame in rows:
            many = members[row].sum() > 14
            ranked = sets.order[row].tolist() if many else range(patches)
            order += [
                at[frame * patches + place]
                for place in ranked
                if members[row, place] and sets.centre[row, place] == place
            ]
    case.expect("out_tokens", out.features[order], atol=2e-5, rtol=1e-4, need=True)


RUNNERS = {"ev_": evs, "vc_": vidcom2, "dy_": dycoke, "fa_": fastvid, "pv_": prunevid}
