"""The parts of both command lines: help in sections, and options made from settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from common.kinds import Setting
from common.settings import Settings, variable
from common.version import version

TRUTHS = {"true", "false", "yes", "no", "on", "off", "0", "1"}


class Group(click.Group):
    """A program's top-level command: options in sections, --version, and an error for a flag that is given a value."""

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, notes: str = "", **kwargs: Any
    ) -> None:
        """Set up the group. `sections` maps titles to parameter names; `notes` are printed unchanged below the help."""
        super().__init__(*args, **kwargs)
        click.version_option(version(), prog_name="series-gateway", message="%(prog)s %(version)s")(self)
        self._sections = sections or {}
        self._notes = notes
        _tell_whole(self)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the few commands first, then the options by section."""
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
            raise click.UsageError(f"{args[0]!r} is not a command; flags such as --allow-any-peer take no value", ctx)
        return super().resolve_command(ctx, args)


def _tell_whole(group: click.Group) -> None:
    """Use the first paragraph of each command's help in lists and Tab completion; click would cut it off."""
    for command in group.commands.values():
        command.short_help = " ".join((command.help or "").partition("\n\n")[0].split())
        if isinstance(command, click.Group):
            _tell_whole(command)


def flag(cls: type[Settings], name: str) -> click.Option:
    """Return a setting as an option. Its value is checked by the setting itself, not by click."""
    setting = cls.model_fields[name]
    dashed = name.replace("_", "-")
    about = f"{setting.description}  [{variable(cls, name)}{_default(setting)}]"
    if setting.is_flag:
        return click.Option([f"--{dashed}/--no-{dashed}"], default=None, help=about)
    return click.Option([f"--{dashed}"], help=about, metavar=setting.unit, shell_complete=_completer(setting))


def environment(cls: type[Settings]) -> str:
    """Return help text that lists settings that have no flags, one below the other."""
    lines = [
        f"  {variable(cls, name)}{_default(setting)}\n      {setting.description}"
        for name, setting in cls.model_fields.items()
    ]
    return "\n".join(lines)


def _default(setting: Setting) -> str:
    default = setting.default
    if default in (None, ""):
        return ""
    return f"; default {default:g}" if isinstance(default, float) else f"; default {default}"


def _completer(setting: Setting) -> Any:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        if setting.unit == "FILE":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(choice) for choice in setting.choices if choice.startswith(incomplete)]

    return complete
