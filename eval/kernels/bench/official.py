"""Methods with official code against stand-ins written in its style."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtc.errors import VTCError
from vtc.eval.common.timing import interleaved, ratio, spread, stopwatch
from vtc.eval.kernels.bench import standins, standins_pairs
from vtc.eval.kernels.bench.selection import Encoded, clock
from vtc.eval.kernels.bench.sizes import LAYOUTS, Sizes
from vtc.functional.budget import apportion
from vtc.functional.recoverable import text_scores, visual_scores
from vtc.registry import create_method
from vtc.tokens import CompressedTokens

#: what keeps a quarter of the patches here
QUARTER = ("globalcom2", "divprune", "mmr", "prunevid")


class Operations(TorchDispatchMode):
    """Counts operations that are no views, and values that are read one by one (`.item()`)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.items = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.items += function is torch.ops.aten._local_scalar_dense.default
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """Operations of a call, and values it reads one by one."""
    with Operations() as operations:
        call()
    return operations.count, operations.items


class Pair(NamedTuple):
    """A method and its stand-in; what both are asked to do alike.

    Attributes:
        ours: gives the compressed image.
        standin: gives what `same` compares it with.
        same: raises AssertionError where the stand-in gave something else.
    """

    ours: Callable[[], list[CompressedTokens]]
    standin: Callable[[], Any]
    same: Callable[[CompressedTokens, Any], None]


def pairs(sizes: Sizes, device: torch.device) -> dict[str, Pair]:
    """One image of a thumbnail and four crops; the signals are given to both."""
    encoded = Encoded.random(LAYOUTS[2880][0], 1, sizes, device, torch.float32)
    free = create_method("recoverable")
    quarter = {name: create_method(name, retention=0.25) for name in QUARTER}
    single = encoded.images(free)
    images = {name: encoded.images(method) for name, method in quarter.items()}
    seen, patches = single[0].signals, sizes.side**2
    flat = encoded.projected.flatten(0, 1)
    budget = quarter["divprune"].budget(images["divprune"][0])
    shares = apportion([patches] * 5, [patches] * 5, budget).tolist()

    def recoverable() -> Tensor:
        keys = seen["keys"]
        visual = visual_scores(seen["cls_query"], keys)
        text = text_scores(seen["patch_embedding"], seen["text_embedding"])
        tiles = zip(single[0].features, visual, text, keys[:, 1:], strict=True)
        return torch.cat([standins.recoverable(*tile) for tile in tiles])

    def globalcom2() -> Tensor:
        logits = images["globalcom2"][0].signals["cls_logits"]
        return standins.globalcom2(encoded.projected, logits, encoded.newline, (2, 2), 0.25)

    def mmr() -> list[int]:
        return standins_pairs.mmr(flat, images["mmr"][0].signals["importance"].flatten(), budget)

    same_places = functools.partial(_places, patches)
    calls: dict[str, tuple[Callable[[], Any], Callable[[CompressedTokens, Any], None]]] = {
        "globalcom2": (globalcom2, lambda ours, theirs: _near(ours.features, theirs)),
        "divprune": (lambda: standins_pairs.divprune(flat, budget), same_places),
        "mmr": (mmr, same_places),
        "prunevid": (
            lambda: standins_pairs.prunevid(encoded.projected, shares),
            functools.partial(_tokens, patches),
        ),
    }
    found = {"recoverable": Pair(lambda: free.compress_all(single), recoverable, _as_many)}
    for name, (standin, same) in calls.items():
        ours = functools.partial(quarter[name].compress_all, images[name])
        found[name] = Pair(ours, standin, same)
    return found


def _as_many(ours: CompressedTokens, theirs: Tensor) -> None:
    """The tests compare the tokens of this one, tile by tile; it knows no newlines."""
    assert int(ours.is_patch.sum()) == len(theirs)


def _near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _sorted(ours: CompressedTokens, patches: int) -> tuple[Tensor, Tensor]:
    """Places of the tokens of patches, ascending, as `tile * N + patch`, and the tokens."""
    real = ours.is_patch
    place = (ours.tile * patches + ours.patch)[real]
    order = place.argsort()
    return place[order], ours.features[real][order]


def _places(patches: int, ours: CompressedTokens, theirs: list[int]) -> None:
    assert _sorted(ours, patches)[0].tolist() == theirs


def _tokens(patches: int, ours: CompressedTokens, theirs: dict[int, Tensor]) -> None:
    place, tokens = _sorted(ours, patches)
    assert place.tolist() == sorted(theirs)
    _near(tokens, torch.stack([theirs[each] for each in sorted(theirs)]))


def official_style(sizes: Sizes, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The methods that have stand-ins against these, round by round.

    Raises:
        VTCError: the two do not give the same.
    """
    rows = []
    watch = functools.partial(stopwatch, device=device, clock=clock(device)[0])
    for name, pair in pairs(sizes, device).items():
        with torch.no_grad():
            ours, theirs = pair.ours()[0], pair.standin()
            try:
                pair.same(ours, theirs)
            except AssertionError as error:
                raise VTCError(
                    f"stand-in of {name!r}: not what the method gives: {error}"
                ) from error
            calls = {"ours": pair.ours, "stand-in": pair.standin}
            counts = {label: counted(call) for label, call in calls.items()}
            cases = {label: functools.partial(watch, call) for label, call in calls.items()}
            times = interleaved(cases, rounds)
        rows.append(
            {
                "method": name,
                "tokens": 5 * sizes.side**2,
                "left": len(theirs),
                "operations and items": counts,
                "seconds": {label: spread(values) for label, values in times.items()},
                "ratio": ratio(times["stand-in"], times["ours"]).__dict__,
            }
        )
    return rows
