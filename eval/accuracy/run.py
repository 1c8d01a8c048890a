"""An accuracy run: methods x retentions over the questions of a suite, in a folder that can go on.

Batches are the outer loop and settings the inner one, so that a run that is stopped has asked nearly
the same questions under all settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.accuracy.runner import Runner, batches
from vtc.eval.common import manifest
from vtc.eval.common.loading import Loaded
from vtc.eval.common.processes import Processes
from vtc.eval.common.records import (
    MANIFEST,
    Answer,
    Lines,
    answer_files,
    read_answers,
    read_manifest,
    write_manifest,
)
from vtc.eval.common.settings import FULL, Setting, create
from vtc.eval.suites.base import Item, Suite
from vtc.several import settings_of

#: entries of a manifest that must be the same for a run to go on
SAME = ("kind", "model", "suite", "settings", "generation")
#: of `manifest.code`
SAME_CODE = ("sources", "python", "packages")


@dataclass
class Run:
    """One model, one suite, all settings, one folder.

    Attributes:
        folder: of the run.
        loaded: the model.
        suite: the questions' suite.
        items: the questions to ask, in order.
        settings: from `vtc.eval.common.settings.plan`.
        defaults: fields of methods that come with the model.
        template, positions: see `Runner`.
        batch_size: questions that go through the model together.
        limit: how many questions the suite was cut to, None for all.
    """

    folder: Path
    loaded: Loaded
    suite: Suite
    items: Sequence[Item]
    settings: Sequence[Setting]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    template: str | None = None
    positions: str = "original"
    batch_size: int = 8
    limit: int | None = None

    def __post_init__(self) -> None:
        self.methods = {
            s.key: create(s, self.defaults) for s in self.settings if s.method != FULL.method
        }
        self.runner = Runner(self.loaded, self.suite, self.methods, self.template, self.positions)

    def prepare(self, group: Processes, command: str, any_code: bool = False) -> Share:
        """Check everything, write the manifest, and say what this process has to ask.

        Args:
            command: the command line, for the manifest.
            any_code: go on although other code or packages began the run.

        Raises:
            VTCError: the model cannot have one of the methods, or the folder holds another run.
        """
        self.runner.check(self.settings)
        facts = self.facts()
        session = {
            "command": command,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "processes": group.count,
            "batch_size": self.batch_size,
            **manifest.machine(self.loaded.device, self.loaded.model),
            "code": facts["code"],
        }
        if (self.folder / MANIFEST).exists():
            before = read_manifest(self.folder)
            same(self.folder, before, facts, any_code)
            known = {entry["key"] for entry in before["settings"]}
            before["settings"] += [e for e in facts["settings"] if e["key"] not in known]
            facts = before
        elif answer_files(self.folder):
            raise no_manifest(self.folder)
        done = {(a.setting, a.item) for a in read_answers(self.folder) if a.error is None}
        group.wait()  # all have read before the first one writes
        facts["sessions"].append(session)
        if group.main:
            write_manifest(self.folder, facts)
        keys = [setting.key for setting in self.settings]
        mine = batches(self.items, self.batch_size, done, keys)[group.rank :: group.count]
        name = "answers.jsonl" if group.count == 1 else f"answers-{group.rank}.jsonl"
        return Share(self, self.folder / name, mine, done, facts)

    def facts(self) -> dict[str, Any]:
        """The manifest of a run that begins."""
        model = self.loaded.model
        return {
            "kind": "accuracy",
            "model": manifest.model(self.loaded.name, model),
            "suite": {
                "name": self.suite.name,
                "metric": self.suite.metric,
                "limit": self.limit,
                "items": len(self.items),
                "facts": manifest.plain(self.suite.facts()),
            },
            "settings": [
                {
                    "key": setting.key,
                    "method": setting.method,
                    "retention": setting.retention,
                    "seed": setting.seed,
                    "options": manifest.plain(setting.options),
                    "fields": self._fields(setting),
                }
                for setting in self.settings
            ],
            "generation": {
                "max_new_tokens": self.suite.max_new_tokens,
                "do_sample": False,
                "num_beams": 1,
                "padding": "left",
                "prompt": self.template or "chat template",
                "positions": self.positions,
            },
            "code": manifest.code(),
            "sessions": [],
        }

    def _fields(self, setting: Setting) -> dict[str, Any]:
        """All hyper-parameters of a setting; of files that were given, name and fingerprint."""
        if setting.key not in self.methods:
            return {}
        made = self.methods[setting.key]
        if len(made) > 1:
            return manifest.plain(settings_of(made))
        given = {**self.defaults.get(setting.method, {}), **setting.options}
        return manifest.plain({**made[0].settings(), **given})


@dataclass
class Share:
    """What one process asks.

    Attributes:
        run: the run it belongs to.
        path: file of this process's answers.
        batches: its batches.
        done: `(setting key, item id)` of answers that were there before.
        facts: the manifest.
        asked: rows written so far.
    """

    run: Run
    path: Path
    batches: Sequence[Sequence[Item]]
    done: set[tuple[str, str]]
    facts: dict[str, Any]
    asked: int = 0

    @property
    def left(self) -> int:
        """Rows to write."""
        keys = [setting.key for setting in self.run.settings]
        return sum((k, item.id) not in self.done for b in self.batches for item in b for k in keys)

    def ask(self, advance: Callable[[int], Any] = lambda count: None) -> None:
        """Ask everything; `advance` is told how many rows came.

        Raises:
            VTCError: an answer cannot be written; nothing that was written is lost.
        """
        began = time.monotonic()
        lines = Lines(self.path)
        try:
            for batch in self.batches:
                for answers in self.run.runner.ask(batch, self.run.settings, self.done):
                    self._write(lines, answers)
                    advance(len(answers))
        finally:
            lines.close()
        self.facts["sessions"][-1]["seconds"] = round(time.monotonic() - began, 1)

    def _write(self, lines: Lines, answers: Sequence[Answer]) -> None:
        try:
            lines.write(*(answer.line() for answer in answers))
        except OSError as error:
            raise VTCError(
                f"output: cannot write {str(self.path)!r}: {error.strerror}; the answers before are "
                "safe, and the same command goes on from there once there is room"
            ) from error
        self.asked += len(answers)


def no_manifest(folder: Path) -> VTCError:
    """The error where answers lie about."""
    return VTCError(
        f"output: {str(folder)!r} has answers but no {MANIFEST} that says what made them; give another "
        "folder"
    )


def same(
    folder: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    any_code: bool | None = None,
) -> None:
    """Whether a run may go on.

    Args:
        any_code: whether other code may go on; None where the command has no such argument.

    Raises:
        VTCError: it was made by something else; the message names the first differences.
    """
    changed = list(manifest.differences(_comparable(before, now), _comparable(now, before)))
    hint = "give another folder, or the same settings"
    if not changed and not any_code:
        changed = list(
            manifest.differences(
                {name: before["code"].get(name) for name in SAME_CODE},
                {name: now["code"][name] for name in SAME_CODE},
                "code.",
            )
        )
        hint = "give another folder" + (", or --any-code to mix them" if any_code is False else "")
    if changed:
        told = "; ".join(_told(*change) for change in changed[:3])
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise VTCError(f"output: {str(folder)!r} holds a run that differs: {told}{more}; {hint}")


def _comparable(facts: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same; of the settings those that both have, since a run may be extended."""
    theirs = {entry["key"] for entry in other.get("settings", [])}
    by_key = {e["key"]: e for e in facts.get("settings", []) if e["key"] in theirs}
    return {**{name: facts.get(name) for name in SAME}, "settings": by_key}


def _told(name: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping):
        return f"{name} is missing now"
    if isinstance(now, Mapping):
        return f"{name} is new"
    return f"{name} was {manifest.short(before)}, is now {manifest.short(now)}"
