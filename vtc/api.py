"""Put compression on a model and take it off: the entry points that users call.

The plug-in for the model's library (`vtc.plugins.backends`) is imported on first use, so that importing
`vtc` needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.config import CompressionConfig
from vtc.errors import VTCError

if TYPE_CHECKING:
    from vtc.plugins.backends import Handle, Plan


def apply(
    model: Any,
    method: Plan,
    *,
    processor: Any = None,
    positions: str | None = None,
    **options: Any,
) -> Handle:
    """Compress the visual tokens of `model` until `handle.remove()` or `vtc.remove(model)`.

    Applying again replaces the patch that is there.

    Args:
        model: a Hugging Face vision-language model.
        method: name, `Method` instance, or `CompressionConfig`; or a list of methods that work one
            behind the other, at places of their own, by name `"a+b"`. Options that are not given are
            those that the model brings, see `model_defaults`; of an instance, fields that are None.
        processor: processor or tokenizer; text-guided methods read the question with it. By default
            the one beside the model's weights.
        positions: `"original"` keeps every token's position (default), `"contiguous"` numbers the
            short prompt afresh, `"regrid"` closes the gaps, with M-RoPE on every axis by itself.
        options: the method's hyper-parameters, e.g. `retention=0.25` or `tokens=160`, when `method` is
            a name; of `"resize+b"` those of `resize`, whose budget is that of both.

    Returns:
        A handle with `reports` (one `Report` a prefill), `compaction` (from the last short prompt to the
        long one) and `remove()`.

    Raises:
        VTCError: unknown method or option, value out of range, unsupported model or signal; the model
            is left as it was.
    """
    from vtc.plugins.backends import backend_for

    return backend_for(model).apply(
        model, method, processor=processor, positions=positions, **options
    )


def compress(
    model: Any,
    method: Plan,
    *,
    processor: Any = None,
    positions: str | None = None,
    **options: Any,
) -> Handle:
    """Compress inside a with-block; arguments and errors as `apply`.

        with vtc.compress(model, "globalcom2", retention=0.25) as run:
            out = model.generate(**inputs)
        print(run.reports[-1])

    The model is touched when the block is entered. A patch that it had before is put back behind the
    block. Blocks on one model may overlap: the settings of each hold for the code that entered it and
    for the threads that it starts, so a server can give every request its own.

    Raises also:
        VTCError: in a thread that was started while several blocks were open on the model, since it
            may belong to any of them; enter the block in the thread, or start it with
            `threading.Thread(target=contextvars.copy_context().run, args=(model.generate,))`.
    """
    from vtc.plugins.backends import backend_for

    return backend_for(model).plan(
        model, method, processor=processor, positions=positions, **options
    )


def remove(model: Any) -> None:
    """Take any compression off `model`: it is exactly as before. Safe when there is none."""
    from vtc.plugins.backends import backend_for

    backend_for(model).remove(model)


def model_defaults(model: Any) -> dict[str, dict[str, Any]]:
    """Options of methods that come with a model, by method.

    They are read beside its weights: from `vtc_defaults.json`, e.g.
    `{"tokenflex": {"projector": "./projector"}}` with paths from `./` on, and from the folders that
    methods look for, e.g. `tokenflex` with what `TokenFlexProjector.save` wrote. `apply` and `compress`
    take them by themselves; options that a caller gives go before them.

    Raises:
        VTCError: the file cannot be read, or gives a budget, which is the caller's.
    """
    from vtc.plugins.hf import defaults

    return defaults.model_defaults(model)


def apply_from_config(
    model: Any, config: CompressionConfig, *, processor: Any = None
) -> Handle | None:
    """`apply` what a `CompressionConfig` says; with method `"none"` the model is left untouched.

    Returns:
        The handle, or None when nothing was applied.
    """
    if not isinstance(config, CompressionConfig):
        raise VTCError(f"config: got {config!r}, expected a CompressionConfig")
    if config.method == "none":
        return None
    return apply(model, config, processor=processor)
