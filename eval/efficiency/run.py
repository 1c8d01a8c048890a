"""A whole run: count every setting, then time all of them round by round, side by side."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import vtc
from vtc.errors import VTCError
from vtc.eval.common import manifest
from vtc.eval.common.memory import free_memory, out_of_memory
from vtc.eval.common.records import Lines, write_manifest, write_whole
from vtc.eval.common.settings import FULL, Setting, create
from vtc.eval.common.timing import turns
from vtc.eval.efficiency.figures import Series, measures, noisy
from vtc.eval.efficiency.flops import encoder_flops, language_flops
from vtc.eval.efficiency.lines import LINES, Line, write_summary
from vtc.eval.efficiency.memory import weight_bytes
from vtc.eval.efficiency.passes import Counted, counted, embeddings, encoder_peak, timed
from vtc.eval.efficiency.stretches import Stretches, at_depth, inside, stretches
from vtc.eval.efficiency.subject import Subject
from vtc.methods.base import Method
from vtc.methods.layer_method import LayerMethod
from vtc.plugins.hf.adapters import adapter_for
from vtc.registry import method_class
from vtc.several import names_of

#: a count may differ from its formula by this share before a note says so
CLOSE = 1e-3


@dataclass
class Case:
    """What is measured: a setting under an attention implementation, or the language model alone.

    Attributes:
        setting, attention: as it says.
        cuts: the layers between cuts inside the language model.
        alone: tokens that enter each layer of the language model alone, none for a setting.
        series: what was measured, None before.
        error: why it failed; no more rounds then.
        counts: of tokens, fields of `Line`.
        notes: what a reader should know.
    """

    setting: Setting
    attention: str
    cuts: Stretches
    alone: tuple[int, ...] = ()
    series: Series | None = None
    error: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For progress and `rounds.jsonl`."""
        if not self.alone:
            return self.setting.key
        return f"language model alone@{'-'.join(map(str, dict.fromkeys(self.alone)))}"

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What a setting shares with the language model alone that it is compared with."""
        lengths = self.counts.get("lengths")
        return None if lengths is None else (self.attention, lengths, self.cuts)


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        subject: the model.
        cases: the settings; the uncompressed model is the first under each attention.
        ideals: `Case.key` -> the language model alone.
        positions: position policy of compressed prompts.
        rounds: finished rounds.
        wanted: rounds that were asked for.
        warnings: what casts doubt on the times.
        held: text encoders by setting, which would be loaded anew in every round.
    """

    subject: Subject
    cases: list[Case]
    positions: str = "original"
    ideals: dict[tuple[Any, ...], Case] = field(default_factory=dict)
    rounds: int = 0
    wanted: int = 0
    warnings: list[str] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[Line]:
        """A line a setting."""
        return [self._line(case) for case in self.cases]

    def full(self, attention: str) -> Case:
        """The uncompressed model under an attention implementation."""
        return next(c for c in self.cases if c.setting == FULL and c.attention == attention)

    def _line(self, case: Case) -> Line:
        setting = case.setting
        line = Line(
            setting=setting.key,
            method=setting.method,
            retention=setting.retention,
            seed=setting.seed,
            options=manifest.plain(setting.options),
            attention=case.attention,
            **case.counts,
            partial=self.rounds < self.wanted,
            error=case.error,
            notes=tuple(case.notes),
        )
        if case.series is None:
            return line
        series, full = case.series, self.full(case.attention).series
        # of several uncompressed models the first is what the others are compared with
        baseline = self.full(self.cases[0].attention).series if setting == FULL else full
        ideal = None if case.key is None else self.ideals.get(case.key)
        alone = None if ideal is None else ideal.series
        found = measures(series, baseline, alone, full)
        deeper = {}
        if self.subject.depth != self.subject.true_depth:
            deeper = measures(series, baseline, alone, full, true_depth=True)
        if noisy(found):
            line = _replace(line, notes=(*line.notes, f"{NOISY} {', '.join(noisy(found))}"))
        return _replace(line, rounds=len(series.rounds), measures=found, extrapolated=deeper)


#: how the note on wide quartiles begins
NOISY = "quartiles far apart:"


def _replace(line: Line, **changes: Any) -> Line:
    return Line(**{**line.__dict__, **changes})


def measure(
    subject: Subject,
    settings: Sequence[Setting],
    attentions: Sequence[str],
    rounds: int,
    new_tokens: int,
    folder: Path,
    positions: str = "original",
    facts: Mapping[str, Any] | None = None,
    step: Callable[[str], Any] = lambda text: None,
) -> Measurement:
    """Measure all settings and write the run's folder, which is whole after every round.

    Args:
        settings: from `vtc.eval.common.settings.plan`.
        attentions: attention implementations, the baseline's first.
        rounds: timed rounds.
        new_tokens: tokens to decode in each, at least 2.
        folder: empty or new.
        positions: position policy of compressed prompts.
        facts: what else goes into the manifest.
        step: called before every measured call with what it is, `steps(...)` times at most.

    Raises:
        VTCError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise VTCError(f"output: {str(folder)!r} is not empty; times of two runs do not mix")
    cases = [
        Case(setting, attention, _cuts(subject, setting))
        for attention in attentions
        for setting in settings
    ]
    run = Measurement(subject, cases, positions, wanted=rounds)
    details = {
        "kind": "efficiency",
        "settings": [manifest.plain(asdict(setting)) for setting in settings],
        "attentions": list(attentions),
        "positions": positions,
        "rounds": rounds,
        "new_tokens": new_tokens,
        "layers": asdict(subject.depth),
        "published_layers": asdict(subject.true_depth),
        **subject.facts,
        **(facts or {}),
        "code": manifest.code(),
        "model": manifest.model(subject.name, subject.model),
        "machine": manifest.machine(subject.device, subject.model),
        "load_average": [os.getloadavg()[0]],
    }
    write_manifest(folder, details)
    raw = Lines(folder / "rounds.jsonl")
    serial = itertools.count()
    try:
        _count(run, serial, step)
        for _ in _rounds(run, new_tokens, serial, step, raw):
            _save(run, folder)
    finally:
        raw.close()
        details["load_average"].append(os.getloadavg()[0])
        run.warnings = _warnings(run, max(details["load_average"]))
        write_manifest(folder, {**details, "finished_rounds": run.rounds, "warnings": run.warnings})
        _save(run, folder)
    return run


def steps(settings: int, attentions: int, rounds: int) -> int:
    """How often `measure` calls its `step` at most."""
    return 2 * settings * attentions * (rounds + 2)


# -- the parts of a run --------------------------------------------------------------------------


def _count(run: Measurement, serial: Iterator[int], step: Callable[[str], Any]) -> None:
    """What is the same every time, of settings and ideals; warms up what is timed later."""
    subject, peaks = run.subject, {}
    for case in run.cases:
        step(f"counting {case.name}")
        inputs = subject.inputs(next(serial))
        with _marking(case), _prepared(run, case) as handle:
            brought = [] if handle is None else _brought(handle)
            weights = subject.weights + weight_bytes(brought)
            found = counted(subject, inputs, weights, case.cuts)
            _describe(case, subject, inputs, found, handle)
            if case.setting == FULL and found.encoder is not None:
                peaks[case.attention] = subject.weights + encoder_peak(subject, found.encoder)
            case.series = Series(found)
    for case in run.cases:
        key = case.key
        if case.series is None or key is None or key in run.ideals or case.attention not in peaks:
            continue
        lengths = case.counts["lengths"]
        ideal = run.ideals[key] = Case(FULL, case.attention, case.cuts, alone=lengths)
        step(f"counting {ideal.name}")
        with _marking(ideal), _prepared(run, ideal):
            prompt = embeddings(subject, lengths[0])
            found = counted(subject, prompt, subject.weights, case.cuts, lengths)
            # the ideal has an encoder as well, and needs what the hungrier of both does
            more = max(peaks[case.attention] - found.figures["peak_memory"], 0)
            found.figures["peak_memory"] += more
            found.extrapolated["peak_memory"] += more
            ideal.series = Series(found)


def _rounds(
    run: Measurement, new_tokens: int, serial: Iterator[int], step: Callable[[str], Any], raw: Lines
) -> Iterator[None]:
    """Time everything once a round; what fails takes no further part."""
    subject = run.subject
    # on a GPU the kernels of the decoding steps are loaded when they are first called
    warm = int(subject.device.type == "cuda")
    everything = [*run.cases, *run.ideals.values()]
    for turn, order in turns(everything, run.wanted + warm):
        counts, found = turn >= warm, []
        for case in order:
            if case.series is None or case.error is not None:
                continue
            step(f"round {turn + 1 - warm} of {run.wanted}: {case.name}")
            fed = case.alone or None
            inputs = embeddings(subject, fed[0]) if fed else subject.inputs(next(serial))
            with _marking(case), _prepared(run, case):
                one = timed(subject, inputs, new_tokens, case.cuts, fed)
                found.append((case.series, one))
                if counts:
                    entry = {"round": turn - warm, "setting": case.name}
                    figures = {"attention": case.attention, "figures": one.figures}
                    raw.write(json.dumps({**entry, **figures}))
        if counts:
            for series, one in found:
                series.rounds.append(one)
            run.rounds += 1
            yield


@contextmanager
def _marking(case: Case) -> Iterator[None]:
    """An expected failure in the block marks the case, and the run goes on."""
    try:
        yield
    except VTCError as error:
        case.error = str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        case.error = "out of memory"
        free_memory()


@contextmanager
def _prepared(run: Measurement, case: Case) -> Iterator[Any]:
    """Attention and method of a case on the model; yields the handle, None without a method.

    Raises:
        VTCError: one of them does not work on this model.
    """
    subject = run.subject
    if subject.model.config._attn_implementation != case.attention:
        try:
            subject.model.set_attn_implementation(case.attention)
        except (ImportError, ValueError) as error:
            raise VTCError(f"attention: cannot use {case.attention!r} here: {error}") from None
    on: AbstractContextManager[Any] = nullcontext()
    if case.setting != FULL:
        methods = _methods(subject, case.setting)
        on = vtc.compress(
            subject.model, methods, processor=subject.processor, positions=run.positions
        )
    with on as handle:
        if handle is not None:
            run.held[case.setting.key] = handle.text_encoder
        yield handle


def _methods(subject: Subject, setting: Setting) -> list[Method]:
    """The methods of a setting, made for this model."""
    made = create(setting, {name: subject.options(name) for name in names_of(setting.method)})
    depth, published = subject.depth.language, subject.true_depth.language
    return [
        at_depth(method, published)
        if isinstance(method, LayerMethod) and depth != published
        else method
        for method in made
    ]


def _cuts(subject: Subject, setting: Setting) -> Stretches:
    """The layers between the cuts of a setting; one that cannot be had is refused later."""
    ran, published = subject.depth.language, subject.true_depth.language
    if any(method_class(name).where == "layers" for name in names_of(setting.method)):
        with suppress(VTCError):
            return stretches(inside(_methods(subject, setting)), ran, published)
    return stretches(None, ran, published)


def _brought(handle: Any) -> list[Any]:
    """What may hold weights that methods bring along: a text encoder, a projector."""
    holders = [handle.text_encoder, *handle.methods]
    return [value for holder in holders for value in getattr(holder, "__dict__", {}).values()]


def _describe(
    case: Case, subject: Subject, inputs: Mapping[str, Any], found: Counted, handle: Any
) -> None:
    """Counts of tokens, and a note where figures are not what their formulas say."""
    ids, config = inputs["input_ids"], subject.model.config
    placeholder = adapter_for(subject.model).token_id(config, "image")
    tokens = int((ids == placeholder).sum())
    counts: dict[str, Any] = {"tokens": tokens, "tokens_full": tokens}
    counts.update(prompt=ids.shape[1], prompt_full=ids.shape[1])
    if handle is not None and handle.reports:
        report = handle.reports[-1]
        counts["tokens"] = report.total("tokens_entering")
        counts["prompt"] += counts["tokens"] - tokens
        counts["patches"] = sum(int((image.patch >= 0).sum()) for image in report.images)
        counts["patches_full"] = report.total("patches_before")
        case.notes += report.notes
    text = counts["prompt"] - counts["tokens"]
    counts["lengths"] = found.lengths
    counts["average_tokens"] = round(case.cuts.mean(found.lengths) - text, 3)
    case.counts = counts
    figures = found.figures
    by_formula = language_flops(config.get_text_config(), found.lengths)
    checked = {
        "vision_flops": (figures["vision_flops"], encoder_flops(config, inputs, found.layers)),
        # what cuts read and choose is in no formula
        "prefill_flops": (figures["prefill_flops"] - figures["inside_flops"], by_formula),
    }
    for name, (counted_value, value) in checked.items():
        if value is None:
            case.notes.append(f"{name}: counted, not checked: no formula for this family")
        elif abs(counted_value - value) > CLOSE * value:
            case.notes.append(f"{name}: counted {counted_value:.4g}, by formula {value:.4g}")


def _warnings(run: Measurement, load: float) -> list[str]:
    out = []
    cores = os.cpu_count() or 1
    if load > cores:
        out.append(f"load average {load:.1f} on {cores} cores: other programs ran beside")
    wide = [x.setting for x in run.lines() if any(note.startswith(NOISY) for note in x.notes)]
    if wide:
        out.append(f"quartiles far apart: {', '.join(dict.fromkeys(wide))}")
    if run.rounds < run.wanted:
        out.append(f"interrupted after {run.rounds} of {run.wanted} rounds")
    return out


def _save(run: Measurement, folder: Path) -> None:
    """`measures.jsonl` and `summary.csv`, each whole or not at all."""
    lines = run.lines()
    write_whole(folder / LINES, "".join(line.line() + "\n" for line in lines))
    draft = folder / "summary.csv.new"
    write_summary(draft, lines)
    draft.replace(folder / "summary.csv")
