"""What both command lines share: help in sections, and flags out of settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from settings import variable

UNITS = {"_s": "SECONDS", "_bytes": "BYTES", "_port": "PORT", "_url": "URL", "_host": "HOST"}
TRUTHS = {"true", "false", "yes", "no", "on", "off", "0", "1"}


class Group(click.Group):
    """A group that shows its options in sections, and says that flags take no value."""

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, notes: str = "", **kwargs: Any
    ) -> None:
        """`sections`: the parameters of each section; `notes`: lines below the help, printed as they are."""
        super().__init__(*args, **kwargs)
        self._sections = sections or {}
        self._notes = notes

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands first: there are few of them."""
        self.format_commands(ctx, formatter)
        records = {p.name: record for p in self.get_params(ctx) if (record := p.get_help_record(ctx)) is not None}
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names if name in records], col_max=34)
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()), col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(self._notes and f"\n{self._notes}\n")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0].lower() in TRUTHS and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"{args[0]!r} is no command; flags such as --allow-any-peer take no value", ctx)
        return super().resolve_command(ctx, args)


def flag(cls: type[BaseSettings], name: str) -> click.Option:
    """A setting as an option; the setting itself judges its value."""
    info = cls.model_fields[name]
    dashed = name.replace("_", "-")
    about = f"{info.description}  [{variable(cls, name)}{_default(info)}]"
    if info.annotation is bool:
        return click.Option([f"--{dashed}/--no-{dashed}"], default=None, help=about)
    choices = _choices(info)
    return click.Option(
        [f"--{dashed}"], help=about, metavar=_metavar(name, info), shell_complete=_completer(info, choices)
    )


def environment(cls: type[BaseSettings]) -> str:
    """Settings that are no flags, one below the other."""
    lines = [
        f"  {variable(cls, name)}{_default(info)}\n      {info.description}" for name, info in cls.model_fields.items()
    ]
    return "\n".join(lines)


def _default(info: FieldInfo) -> str:
    if info.default_factory is not None or info.default in (None, ""):
        return ""
    return f"; default {info.default:g}" if isinstance(info.default, float) else f"; default {info.default}"


def _metavar(name: str, info: FieldInfo) -> str:
    if choices := _choices(info):
        return "|".join(choices)
    for ending, unit in UNITS.items():
        if f"_{name}".endswith(ending):
            return unit
    kinds = {info.annotation, *get_args(info.annotation)}
    return "FILE" if Path in kinds else "NUMBER" if kinds & {int, float} else "TEXT"


def _choices(info: FieldInfo) -> tuple[str, ...]:
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else ()


def _completer(info: FieldInfo, choices: Sequence[str]) -> Any:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        if Path in (info.annotation, *get_args(info.annotation)):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]

    return complete
