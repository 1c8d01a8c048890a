"""The parser of the commands: an unknown flag or word is met with the one that was meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from vtc.errors import nearest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose error for an unknown flag, command or choice names the nearest one;
    where a command is missing it tells them all, where an argument is missing the unknown flags."""

    #: what the parser was last given, without the command in front
    given: Sequence[str] = ()

    def parse_args(  # type: ignore[override]  # one signature for all overloads of the base class
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As the base class does."""
        given = sys.argv[1:] if args is None else list(args)
        if not given and self._subparsers is not None:
            self.print_help(sys.stderr)
        found, rest = self.parse_known_args(given, namespace)
        if rest:
            flags = list(_flags(self, given))
            unknown = next((word for word in rest if word.startswith("-")), rest[0])
            meant = nearest(unknown.partition("=")[0], flags, "--")
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return found

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As the base class does."""
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """As the base class does. What is required may be there, under a name that is misspelt."""
        if "required" in message:
            flags = list(_flags(self, self.given))
            for word in self.given:
                name = word.partition("=")[0]
                if name.startswith("--") and not any(flag.startswith(name) for flag in flags):
                    message += f"; unrecognized: {name}{nearest(name, flags, '--')}"
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += nearest(value, map(str, action.choices or ()))
            raise


def _flags(parser: argparse.ArgumentParser, given: Sequence[str]) -> Iterator[str]:
    """The flags of a parser and of its sub-commands that are named in what was given."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                if name in given:
                    yield from _flags(inner, given)
