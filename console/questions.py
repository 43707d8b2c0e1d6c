"""Ask the questions of `init`: by flags, and on a terminal by prompts. The settings themselves check every answer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click

from common.errors import printable
from common.settings import Settings, SettingsError, load, variable, without_password
from console.dotenv_file import merged, read, values, write

DOTENV = Path(".env")
NONE = "-"  # typed for "no value", since Enter takes the default
NOT_SHOWN = "(not shown)"


class Question(NamedTuple):
    """A setting, the text that asks for it, and an example of a right answer."""

    setting: str
    text: str
    example: str

    @property
    def flag(self) -> str:
        return f"--{self.setting.replace('_', '-')}"


@dataclass
class Answers:
    """Collects the answers, from flags, from what is typed, and from the environment and `.env`."""

    cls: type[Settings]
    given: Mapping[str, Any]
    interactive: bool
    wanted: dict[str, Any] = field(default_factory=dict)
    """The answers by setting; None if the setting is to be unset."""
    missing: list[Question] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted |= self.given

    def ask(
        self,
        question: Question,
        default: str = "",
        *,
        needed: bool = False,
        meanwhile: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Ask for a setting; return the answer, empty for none. Raises click.UsageError.

        `meanwhile` gives values to settings that are asked for later, so that this answer can be checked on its own.
        """
        if self.interactive and question.setting not in self.given:
            answer = self._typed(question, self.present(question.setting) or default, needed, meanwhile)
        else:
            answer = self._given(question, default, needed, meanwhile)
        self.wanted[question.setting] = answer or None
        return answer

    def present(self, setting: str) -> str:
        """Return the present value from the environment or `.env`; the environment wins, as when settings load."""
        name = variable(self.cls, setting)
        here = {key.upper(): value for key, value in os.environ.items()}
        return here.get(name) or values(read(DOTENV)).get(name) or ""

    def changes(self) -> dict[str, str | None]:
        """Check all answers together; return the variables to write. Raises click.UsageError, naming missing flags."""
        if self.missing:
            lacking = "\n".join(f"  {q.flag} {q.example}    {q.text}" for q in self.missing)
            raise click.UsageError(f"there is no terminal to ask on; add these flags, for example:\n{lacking}")
        if problems := self._problems({}):
            raise click.UsageError("\n".join([*problems, f"{DOTENV} was not changed."]))
        return {variable(self.cls, name): _text(value) for name, value in self.wanted.items()}

    def _given(self, question: Question, default: str, needed: bool, meanwhile: Mapping[str, Any]) -> str:
        if question.setting in self.given:
            answer = str(self.given[question.setting])
            answer = "" if answer == NONE else answer
        else:
            answer = self.present(question.setting) or ("" if needed else default)
        if needed and not answer:
            self.missing.append(question)
        elif problem := self._problem(question, answer, meanwhile):
            named = problem if problem.startswith(question.flag) else f"{question.flag}: {problem}"
            raise click.UsageError(named)
        return answer

    def _typed(self, question: Question, default: str, needed: bool, meanwhile: Mapping[str, Any]) -> str:
        hint = f" ({NONE}: none)" if default and not needed else ""
        shown = without_password(default)
        while True:
            typed = click.prompt(f"{question.text}{hint}", default=shown, show_default=bool(default)).strip()
            answer = default if typed == shown else "" if typed == NONE else typed
            problem = self._problem(question, answer, meanwhile)
            if needed and not answer:
                problem = f"this is needed, for example {question.example}"
            if problem is None:
                return answer
            click.echo(f"  {problem}", err=True)

    def _problem(self, question: Question, answer: str, meanwhile: Mapping[str, Any]) -> str | None:
        """Return the problems that this answer adds, with an example of a right one; None if it adds none."""
        name = question.setting
        before = self._problems({**meanwhile, name: None})
        new = [line for line in self._problems({**meanwhile, name: answer or None}) if line not in before]
        return f"{'; '.join(new).rstrip('.')}. For example: {question.flag} {question.example}" if new else None

    def _problems(self, more: Mapping[str, Any]) -> list[str]:
        fields = self.cls.model_fields
        flags = {
            name: fields[name].unset() if value is None else value for name, value in {**self.wanted, **more}.items()
        }
        try:
            load(self.cls, flags)
        except SettingsError as error:
            return str(error).splitlines()
        return []


def _text(value: Any) -> str | None:
    return value if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def agreed(changes: Mapping[str, str | None], *, interactive: bool) -> None:
    """Show what will change in `.env`, and ask on a terminal. Raises click.Abort if declined, or DotenvUnusable."""
    text = read(DOTENV)
    before = values(text)
    merged(text, changes)
    different = {name: value for name, value in changes.items() if before.get(name) != value}
    for name, value in different.items():
        click.echo(f"{name}: {_shown(name, before.get(name))} → {_shown(name, value)}")
    if different and interactive:
        click.confirm(f"Write this to {DOTENV}?", default=True, abort=True)


def save(changes: Mapping[str, str | None]) -> None:
    """Write the changes to `.env`. It is read again first, since answering took a while."""
    before = read(DOTENV)
    after = merged(before, changes)
    write(DOTENV, after)
    told = "written" if after != before else "not changed"
    click.echo(f"{DOTENV.absolute()} {told}, readable by its owner only (0600)")
    for name, value in changes.items():
        if name in os.environ and os.environ[name] != (value or ""):
            click.echo(
                f"warning: {name} is also set in the environment, which wins over {DOTENV}: remove it there", err=True
            )


def _shown(name: str, value: str | None) -> str:
    if not value:
        return "-"
    return NOT_SHOWN if name.endswith("API_KEY") else printable(without_password(value))
