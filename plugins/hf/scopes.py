"""Whose settings hold for a call: what a patched model carries, and how a call finds its block.

One model may serve several requests at a time, each in a with-block of its own. The hooks are hung on
the model once; what they do is decided anew for every call. A call belongs to

1. the block that was entered from the innermost function that is still on the call's stack (this is
   right for generators and coroutines that take turns in one thread, which share their context), then
2. the last block that was entered in the call's context, then
3. in a thread that was started inside a block, and so has an empty context, that block, as long as
   only one was open when the thread began; with several, nobody can tell which is meant.

Outside of all blocks the patch of `vtc.apply` holds, or none.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import nn

from vtc.errors import VTCError
from vtc.plugins.hf.typing import Model

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch
    from vtc.plugins.hf.stages.base import Stage
    from vtc.plugins.model.compaction import Compaction
    from vtc.report import Report

#: with-statements that enter on somebody's behalf
_GO_BETWEENS = frozenset({"contextlib", __name__, "vtc.plugins.hf.handle"})


class Call:
    """What `with handle.call() as call` collects: the reports of the calls made inside it.

    Attributes:
        reports: one `Report` for every prefill with images.
        compaction: how the last prompt was shortened, see `Handle.compaction`.
    """

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.compaction: Compaction | None = None

    @property
    def report(self) -> Report:
        """The last report.

        Raises:
            VTCError: no prompt with images was read inside the block.
        """
        if not self.reports:
            raise VTCError("report: there is none, the model read no images inside this block")
        return self.reports[-1]


class Scope:
    """A patch and the call that its results go to, if any."""

    def __init__(self, patch: Patch | None, call: Call | None = None) -> None:
        self.patch, self.call = patch, call


class Block(Scope):
    """An open with-block.

    Attributes:
        frame: of the code that entered it, None when it is closed.
        stack: that frame and those that had called it, by identity.
        before: threads that were running already and so cannot have been started inside.
        suspended: a patch of `vtc.apply` that was removed inside and comes back behind it.
    """

    def __init__(self, patch: Patch, call: Call | None, frame: FrameType) -> None:
        super().__init__(patch, call)
        self.frame: FrameType | None = frame
        self.stack = {id(f): f for f in _stack(frame)}
        here = threading.current_thread()
        self.before = weakref.WeakSet(t for t in threading.enumerate() if t is not here)
        self.suspended: Patch | None = None

    def could_hold(self, thread: threading.Thread) -> bool:
        """Whether a thread may have been started inside."""
        return thread is not threading.main_thread() and thread not in self.before

    def close(self) -> None:
        """Let go of the code that entered it."""
        self.frame, self.stack = None, {}

    def __reduce__(self) -> Any:
        return _no_block, ()  # blocks end with the process, and are none of a copied model


def _no_block() -> None:
    return None


#: blocks entered in this context, of all models; None where none ever was
_ENTERED: ContextVar[tuple[Block, ...] | None] = ContextVar("vtc_entered", default=None)
#: inside our `generate`: the model and the scope that it runs under
RUNNING: ContextVar[tuple[nn.Module, Scope | None] | None] = ContextVar("vtc_running", default=None)
#: held while patches come and go
LOCK = threading.RLock()


class State:
    """What a patched model carries as `_vtc`.

    Attributes:
        patch: of `vtc.apply`, None when there are only blocks.
        blocks: open blocks, in the order in which they were entered.
        held: patches of calls under way, whose block may have ended meanwhile.
        attached: patches that the model carries what they need for.
        stages: by name, what may have put something on the model.
        own_generate: a `generate` that the instance had before, else None.
    """

    def __init__(self, patch: Patch | None = None) -> None:
        self.patch = patch
        self.blocks: list[Block] = []
        self.held: list[Patch] = []
        self.attached: list[Patch] = []
        self.stages: dict[str, Stage] = {}
        self.own_generate: Any = None

    @property
    def patches(self) -> list[Patch]:
        """Every patch that a call may come under."""
        every = [self.patch, *(block.patch for block in self.blocks), *self.held]
        return list(dict.fromkeys(patch for patch in every if patch is not None))

    def own_block(self) -> Block | None:
        """The open block that this code is in, by its stack or its context."""
        if not self.blocks:
            return None
        entered = _ENTERED.get() or ()
        # A block belongs to the function that entered it, in whatever context, and in its own context
        # to those that had called that one: it may have handed back control, as a context manager does
        owner: dict[int, Block] = {}
        for block in self.blocks:
            if block in entered:
                owner.update(dict.fromkeys(block.stack, block))
            owner[id(block.frame)] = block
        for frame in _stack(sys._getframe(1)):
            if id(frame) in owner:
                return owner[id(frame)]
        mine = [block for block in entered if block in self.blocks]
        return mine[-1] if mine else None

    def current(self, fetched: Block | None = None) -> Scope | None:
        """The scope of a call that is being made.

        Args:
            fetched: the one block that was open when the called function was taken from the model.

        Raises:
            VTCError: the thread may belong to several blocks.
        """
        block = self.own_block()
        if block is not None:
            return block
        base = None if self.patch is None else Scope(self.patch)
        thread = threading.current_thread()
        if _ENTERED.get() is not None:
            return base  # this context enters its own blocks, and is outside of them now
        if fetched is not None and fetched.could_hold(thread):
            return fetched
        around = [block for block in self.blocks if block.could_hold(thread)]
        if len(around) > 1:
            raise VTCError(
                f"thread: {thread.name!r} was started while {len(around)} vtc.compress blocks were open "
                "on this model, and inherits none; open the block in the thread itself, or start it "
                "with Thread(target=contextvars.copy_context().run, args=(model.generate, ...))"
            )
        if around:
            return around[0]
        if self.blocks and base is None and thread is not threading.main_thread():
            warnings.warn(
                f"thread {thread.name!r} ran before the vtc.compress block that is open was entered, so "
                "its call is not compressed; if it should be, open the block in the thread",
                stacklevel=4,
            )
        return base

    # a copied or unpickled model is patched as the original was for whoever copied it

    def __getstate__(self) -> dict[str, Any]:
        scope = self.own_block() or Scope(self.patch)
        return {
            "patch": scope.patch,
            "blocks": [],
            "held": [],
            "attached": [] if scope.patch is None else [scope.patch],
            "stages": self.stages,
            "own_generate": self.own_generate,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _stack(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def caller() -> FrameType:
    """The frame of the with-statement that is being entered."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") in _GO_BETWEENS and frame.f_back is not None:
        frame = frame.f_back
    return frame


def state_of(model: Model) -> State | None:
    """The state of a patched model, None for a bare one."""
    return vars(model).get("_vtc")


def current(model: Model, fetched: Block | None = None) -> Scope | None:
    """The scope that a call of `model` runs under, None where it runs bare; see `State.current`."""
    running = RUNNING.get()
    if running is not None and running[0] is model:
        return running[1]
    state = state_of(model)
    if state is None:
        if fetched is not None and fetched.could_hold(threading.current_thread()):
            return fetched
        return None
    scope = state.current(fetched)
    return None if scope is None or scope.patch is None else scope


def note_entered(block: Block) -> None:
    """Remember in this context that `block` was entered."""
    _ENTERED.set((*(_ENTERED.get() or ()), block))


def note_left(block: Block) -> None:
    """Forget it; another context may be the one that leaves."""
    _ENTERED.set(tuple(each for each in _ENTERED.get() or () if each is not block))
