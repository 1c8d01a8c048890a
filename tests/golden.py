"""Golden vectors: `python -m tests.golden DIR [--only PREFIX]`.

Every case is `NAME.json` (hyper-parameters, meaning of each tensor) and `NAME.safetensors`. A
runner feeds the tensors marked INPUT to the public methods and functions, and hands what comes out
to the case for comparison; a runner never sees an expected tensor. One line a family of cases, with
the first difference of every failing case under it; exit status 1 if there is any.

A new family needs one function and one line in `RUNNERS`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import golden_discrete, golden_rivals
from vtc import VisualTokens, create_method
from vtc.functional import globalcom2 as gc2
from vtc.functional import recoverable as rc
from vtc.functional import sampling
from vtc.functional import token_correlation as tcc
from vtc.kernels.cls_attention import cls_attention
from vtc.kernels.segmented_topk import segmented_topk


class Mismatch(Exception):
    """A result differs from what the case expects."""


class Case:
    """One golden case; expected tensors can be compared with but not read.

    Attributes:
        name: file name without ending.
        info: the JSON.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.folder = path.stem, path.parent
        self.info: dict[str, Any] = json.loads(path.read_text())
        for name, about in self.info.get("tensors", {}).items():
            if isinstance(about, list):  # the discrete cases mark inputs by name
                mark = "INPUT" if name.startswith(("in.", "w.")) else "EXPECTED"
                shaped = {"meaning": mark, "dtype": about[0], "shape": about[1]}
                self.info["tensors"][name] = shaped
        self._tensors = load_file(path.with_suffix(".safetensors"))
        self._compared: set[str] = set()

    def input(self, name: str) -> Tensor:
        """The tensor `name`, which must be marked INPUT where the JSON describes it."""
        if name not in self._tensors:
            raise Mismatch(f"{name}: not in the file")
        meaning = self.info.get("tensors", {}).get(name, {}).get("meaning", "INPUT")
        if not meaning.startswith("INPUT"):
            raise Mismatch(f"{name}: is no input of this case")
        return self._tensors[name]

    def names(self, suffix: str) -> list[str]:
        """Names of tensors that end in `suffix`, without it."""
        return sorted(n[: -len(suffix)] for n in self._tensors if n.endswith(suffix))

    def expect(
        self, name: str, got: Tensor, *, atol: float = 0.0, rtol: float = 0.0, need: bool = False
    ) -> None:
        """Compare `got` with the expected tensor `name`; without it only a `need`ed one fails.

        Integer and boolean tensors, and floats with both tolerances 0, must be equal.
        """
        if name not in self._tensors:
            if need:
                raise Mismatch(f"{name}: not in the file")
            return
        self._compared.add(name)
        want, got = self._tensors[name], got.detach().cpu()
        if got.shape != want.shape:
            raise Mismatch(f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if want.is_floating_point():
            a, b = got.double(), want.double()
            good = (a - b).abs() <= atol + rtol * b.abs()
            good |= (a == b) | (a.isnan() & b.isnan())
        else:
            a, b = got.long(), want.long()
            good = a == b
        if not bool(good.all()):
            index = tuple((~good).nonzero()[0].tolist())
            place = f"[{', '.join(map(str, index))}]" if index else ""
            raise Mismatch(f"{name}{place}: got {a[index].item()}, expected {b[index].item()}")

    def expect_sets(self, name: str, got: Tensor) -> None:
        """Compare rows as sets; entries of -1 in `got` stand for nothing."""
        if name not in self._tensors:
            return
        self._compared.add(name)
        want = self._tensors[name].long().tolist()
        rows = [set(row) - {-1} for row in got.tolist()]
        if len(rows) != len(want):
            raise Mismatch(f"{name}: {len(rows)} rows, expected {len(want)}")
        for i, (a, b) in enumerate(zip(rows, want, strict=True)):
            if a != set(b):
                raise Mismatch(f"{name}[{i}]: got {sorted(a)}, expected {sorted(b)}")

    def expect_value(self, name: str, got: float, want: float | None, slack: float = 0) -> None:
        """Compare a number from the JSON, None for one that is not there."""
        if want is not None and not abs(got - want) <= slack:
            raise Mismatch(f"{name}: got {got}, expected {want}")

    def differs(self, name: str, got: Tensor) -> bool:
        """Whether `got` is unlike the expected tensor `name`."""
        self._compared.add(name)
        want = self._tensors[name]
        return got.shape != want.shape or not torch.equal(got.to(want.dtype), want)

    def unread(self) -> list[str]:
        """Expected tensors that no comparison asked for."""
        described = self.info.get("tensors", {})
        return sorted(
            name
            for name, about in described.items()
            if "INPUT" not in about.get("meaning", "")
            and name in self._tensors
            and name not in self._compared
        )


def square(patches: int) -> tuple[int, int]:
    """A grid for `patches`: the square one, or a line where there is none."""
    side = round(patches**0.5)
    return (side, side) if side * side == patches else (1, patches)


# -- GlobalCom2 ----------------------------------------------------------------------------------


def gc2_image(case: Case, index: int) -> tuple[VisualTokens, Any]:
    """Image `index` of a case and the method with the official choices."""
    info = case.info
    first = sum(info["tiles"][:index])
    rows = slice(first, first + info["tiles"][index])
    cols, lines = info["grid_wh"][index]
    width, height = info["image_size_wh"][index]
    logits = info.get("score_kind", "logits") == "logits"
    tokens = VisualTokens(
        features=case.input("features")[rows],
        patch_grid=(info["side"], info["side"]),
        tile_grid=(lines, cols) if info["tiles"][index] > 1 else None,
        image_size=(height, width),
        newline=case.input("image_newline"),
        signals={"cls_logits" if logits else "cls_attention": case.input("cls_scores")[rows]},
        unpad="official",
    )
    method = create_method(
        "globalcom2",
        retention=info["retention_ratio"],
        tau=info.get("temperature", 10.0),
        score="logits" if logits else "probabilities",
        placement="official",
        newline_rows="all",
        single_tile="official",
    )
    return tokens, method


def gc2_steps(tokens: VisualTokens, method: Any) -> dict[str, Tensor]:
    """The steps on the way to GlobalCom2's output, named and laid out as in the golden files."""
    if tokens.tile_grid is None:
        return {}
    chosen = method.choose(tokens)
    valid = tokens.valid[1:]
    extents = gc2.crop_extents(tokens.patch_grid, tokens.tile_grid, method.region(tokens))
    compact = gc2.compact_index(valid)
    counts = chosen.counts[1:]
    taken = torch.arange(valid.shape[1]) < counts[:, None]
    return {
        "thumb_idx": chosen.order[0, : int(chosen.counts[0])],
        "crop_ratios": chosen.ratios,
        "crop_dims_wh": extents.flip(1),
        "valid_mask": valid,
        "global_scores_split": chosen.view[valid],
        "global_scores_len": valid.sum(1),
        "topk_compact_idx": compact.gather(1, chosen.order[1:])[taken],
        "topk_len": counts,
    }


def gc2_full(case: Case) -> None:
    images = len(case.info["tiles"])
    known_bug = "KNOWN_BUG" in case.name
    for index in range(images):
        tokens, method = gc2_image(case, index)
        out = method.compress(tokens)
        prefix = f"img{index}." if images > 1 else ""
        if known_bug and index > 0:
            alone = create_method("globalcom2", **method.settings()).compress(tokens)
            if not torch.equal(alone.features, out.features):
                raise Mismatch(f"{prefix}out_tokens: not what the image gives alone")
            if not case.differs(f"{prefix}out_tokens", out.features):
                raise Mismatch(f"{prefix}out_tokens: reproduces the official batch defect")
            continue
        if tokens.tile_grid is not None:
            top, bottom, left, right = method.region(tokens)
            want = case.info.get(f"{prefix}unpadded_grid_wh")
            for axis, got in enumerate((right - left, bottom - top)):
                case.expect_value(f"{prefix}unpadded_grid_wh[{axis}]", got, want and want[axis])
        for name, value in gc2_steps(tokens, method).items():
            # another CPU's bilinear differs by 2e-6 where scores are near 0
            tolerance = {"crop_ratios": (1e-12, 0.0), "global_scores_split": (1e-5, 1e-5)}
            atol, rtol = tolerance.get(name, (0.0, 0.0))
            case.expect(prefix + name, value, atol=atol, rtol=rtol)
        case.expect(f"{prefix}out_tile", out.tile)
        case.expect(f"{prefix}out_patch", out.patch)
        case.expect(f"{prefix}out_tokens", out.features, need=True)


def gc2_attn(case: Case) -> None:
    heads, width = case.info["heads"], case.info["head_dim"]
    hidden = case.input("hidden")

    def project(x: Tensor, name: str) -> Tensor:
        y = torch.nn.functional.linear(x, case.input(f"{name}_weight"), case.input(f"{name}_bias"))
        return y.view(*x.shape[:-1], heads, width)

    query = project(hidden[:, 0], "q")
    keys = project(hidden, "k").transpose(1, 2)
    logits, _ = cls_attention(query, keys, width**-0.5)
    case.expect("cls_scores", logits[:, 1:], rtol=1e-5, atol=1e-6, need=True)


# -- Recoverable Compression ---------------------------------------------------------------------


def rc_full(case: Case) -> None:
    features = case.input("features")
    patches = len(features)
    method = create_method(
        "recoverable",
        variant="union" if case.info.get("variant") == "union" else "sequential",
        cluster=case.info.get("cluster_k", 32),
        text_weight=case.info.get("text_weight", 50),
    )
    in_text_space = case.input("last_hidden") @ case.input("visual_projection").T
    tokens = VisualTokens(
        features=features[None],
        patch_grid=square(patches),
        signals={
            "cls_query": case.input("q_cls")[None],
            "keys": case.input("keys")[None],
            "patch_embedding": in_text_space[None],
            "text_embedding": case.input("text_feature"),
        },
    )
    plan = method.recover(tokens)
    case.expect("cls_attn", plan.visual[0], rtol=1e-5)
    case.expect("similarity", plan.text[0], rtol=1e-5, atol=1e-6)
    case.expect("similarity_for_lof", plan.text_seen[0], rtol=1e-5, atol=1e-6)

    stages = {"vision": plan.factor_visual, "text": plan.factor_text, "rest": plan.factor_rest}
    among = {"vision": torch.ones(patches, dtype=torch.bool), "rest": plan.rest[0]}
    counts = {}
    for stage, factor in stages.items():
        values = factor[0, among.get(stage, among["vision"])]
        case.expect(f"lof_{stage}", values, rtol=1e-3)
        counts[stage] = int((values < rc.OUTLIER).sum())
    for about in case.info.get("lof", ()):
        slack = 1 if about.get("tie_sensitive") else 0
        stage = about["stage"]
        case.expect_value(f"lof {stage} outliers", counts[stage], about["outliers"], slack)

    visual, text = int(plan.counts.visual), int(plan.counts.text)
    centres = plan.centre_order[0, : int(plan.counts.centre)]
    case.expect("idx_vision", plan.visual_order[0, :visual])
    case.expect("idx_text", plan.text_order[0, :text])
    case.expect("main_idx", plan.main[0].nonzero().squeeze(1))
    case.expect("rest_idx", plan.rest[0].nonzero().squeeze(1))
    position = gc2.compact_index(plan.rest)[0]  # place in the rest list
    case.expect("center_rest_idx", position[centres])
    members = plan.members[0]
    members = torch.where(members >= 0, position[members.clamp(min=0)], -1)
    case.expect_sets("cluster_rest_idx", members)

    out = method.compress(tokens)
    kept = case.info.get("kept", {})
    case.expect_value("main tokens", int(plan.main.sum()), kept.get("main"))
    case.expect_value("tokens", len(out), kept.get("out"))
    case.expect("out_tokens", out.features, atol=1e-5, need=True)


def rc_lof(case: Case) -> None:
    vectors = case.info.get("vectors", {})
    for name in case.names(".x"):
        about = vectors.get(name, {})
        if "k" not in about:
            raise Mismatch(f"{name}: the JSON gives no k")
        values = case.input(f"{name}.x")[None]
        factor, found = rc.outliers(values, about["k"], torch.ones_like(values, dtype=torch.bool))
        ties = bool(about.get("tie_sensitive"))
        slack = 1 if ties else 0
        size = torch.tensor([values.shape[1]])
        case.expect_value(f"{name} outliers", int(found), about.get("outliers"), slack)
        floor = int(rc.share(size, found, size, "official"))
        case.expect_value(f"{name} floor", floor, about.get("floor_n_times_ratio"), slack)
        if not ties:
            case.expect(f"{name}.nof", factor[0], rtol=1e-3)


# -- token correlation ---------------------------------------------------------------------------


def tcc_unofficial(case: Case) -> None:
    info = case.info
    keys, low = case.input("keys_low")[None], case.input("attn_low")[None]
    deep = case.input("attn_deep")[None]
    patches = keys.shape[1]
    valid = torch.ones(1, patches, dtype=torch.bool)

    count = tcc.neighbour_count(keys, info["alpha"])
    redundant = tcc.redundant_patches(count, info["beta"], valid)
    number = tcc.sampling_number(redundant, valid)
    density = 1 - float(redundant.double().mean())
    fence = tcc.iqr_fence(deep, valid)
    outlier = deep > fence[:, 2:]
    case.expect("neighbour_count", count[0])
    case.expect("redundant", redundant[0])
    case.expect_value("information_density", density, info.get("information_density"), 1e-9)
    case.expect_value("n_sample", int(number), info.get("n_sample"))
    case.expect("iqr", fence[0], rtol=1e-5, atol=1e-8)
    case.expect("global_idx", outlier[0].nonzero().squeeze(1))
    case.expect_value("n_global", int(outlier.sum()), info.get("n_global"))

    race = sampling.exponential_race(low, case.input("exp_noise")[None])
    for name, score in (("sampled", race), ("top", low)):
        order, local = segmented_topk(score, number)
        case.expect(f"local_idx_{name}", order[0, : int(number)])
        case.expect(f"keep_{name}", (local | outlier)[0].nonzero().squeeze(1))

    tokens = VisualTokens(
        features=keys,
        patch_grid=square(patches),
        signals={"shallow_keys": keys, "shallow_attention": low, "deep_attention": deep},
    )
    method = create_method("token_correlation", alpha=info["alpha"], beta=info["beta"])
    case.expect("keep_top", method.compress(tokens).patch, need=True)


# ------------------------------------------------------------------------------------------------

RUNNERS: dict[str, Callable[[Case], None]] = {
    "gc2_full": gc2_full,
    "gc2_attn": gc2_attn,
    "rc_full": rc_full,
    "rc_lof": rc_lof,
    "tcc_unofficial": tcc_unofficial,
    **golden_discrete.RUNNERS,
    **golden_rivals.RUNNERS,
}


def family(name: str) -> str:
    """The family of a case: the longest known prefix, otherwise all before `_p01` or `__`."""
    known = [prefix for prefix in RUNNERS if name.startswith(prefix)]
    return max(known, key=len) if known else re.split(r"_p\d+|__", name)[0]


def run(folder: Path, only: str = "") -> bool:
    """Run the cases of `folder` whose names start with `only`; print a line a family.

    Returns:
        True when every case passed and there was at least one.
    """
    families: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(only):
            families.setdefault(family(path.stem), []).append(path)
    if not families:
        print(f"no cases in {folder}" + (f" with prefix {only}" if only else ""))
        return False
    good = True
    for prefix, paths in families.items():
        if prefix not in RUNNERS:
            print(f"{prefix} 0/{len(paths)}: no runner for this prefix")
            good = False
            continue
        failures = []
        for path in paths:
            try:
                case = Case(path)
                RUNNERS[prefix](case)
            except Mismatch as error:
                failures.append(f"  {path.stem}: {error}")
            except Exception as error:  # a crash is a failed case, the others still run
                failures.append(f"  {path.stem}: {type(error).__name__}: {error}")
        print(f"{prefix} {len(paths) - len(failures)}/{len(paths)}")
        print(*failures, sep="\n", end="\n" if failures else "")
        good = good and not failures
    return good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder with NAME.json and NAME.safetensors")
    parser.add_argument("--only", default="", metavar="PREFIX", help="cases that start with this")
    options = parser.parse_args(arguments)
    if not options.dir.is_dir():
        parser.error(f"{options.dir} is not a folder")
    return 0 if run(options.dir, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
