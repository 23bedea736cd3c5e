"""The form of all commands: help, choices and completion by metavar, errors of the parser in our words.

What the declaration of an option says:

    typer.Option(metavar="pad|drop|loop")     a choice: checked, completed, shown in the help
    typer.Option(metavar="MODEL")             completed with names, see `_values`
    typer.Option(rich_help_panel="Machine")   not a common option: shown by --help-all, in this group
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import EXIT_USAGE
from ..flow import METHODS
from ..suggest import check_known, did_you_mean
from .help import HELP_ALL, describe_metavar, write_help

ParserError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base class of all errors of the parser; Typer has no public name for it."""


class App(typer.Typer):
    """A Typer app whose commands have our form."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": Group, "rich_markup_mode": None, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Return the decorator that adds a command."""
        add = super().command(name, cls=Command, **settings)
        return lambda function: add(_completing(function))


class Command(TyperCommand):
    """A command with `--help-all`, whose choices are checked."""

    def get_help(self, ctx: Any) -> str:
        """Return the help, in plain text."""
        return write_help(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; print all options if asked; raise UsageError for a value that is none of the choices."""
        if HELP_ALL in (args[: args.index("--")] if "--" in args else args) and not ctx.resilient_parsing:
            typer.echo(write_help(self, ctx, all_options=True))
            raise typer.Exit
        try:
            rest = super().parse_args(ctx, args)
        except ParserError as error:
            vars(error)["ctx"] = ctx  # the parser does not always name the command
            raise
        for param in self.params:
            value, words = ctx.params.get(param.name), choices_of(param.metavar)
            if value is not None and words and not ctx.resilient_parsing:
                check_known(str(value), words, f"{param.opts[0]} {value}")
        return rest


class Group(TyperGroup):
    """A group of commands; without arguments it prints its help, or runs the command `default`."""

    default = ""

    def get_help(self, ctx: Any) -> str:
        """Return the help, in plain text."""
        return write_help(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a group with a default command runs it if no other command is named."""
        if ctx.resilient_parsing:  # for completion
            return super().parse_args(ctx, args)
        if self.default and (not args or args[0] not in (*self.commands, *ctx.help_option_names)):
            args = [self.default, *args]
        if not args:
            typer.echo(self.get_help(ctx), err=True)
            raise typer.Exit(EXIT_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names."""
        if not ctx.resilient_parsing:
            check_known(args[0], self.commands, f"{ctx.command_path} has no command '{args[0]}'")
        return super().resolve_command(ctx, args)


# Choices and completion ----------------------------------------------------------------------------------------------


def choices_of(metavar: str | None) -> list[str]:
    """Return the values that a metavar such as "clip|video" lists; [] if it stands for others too, as in "native|N"."""
    words = (metavar or "").split("|")
    return words if len(words) > 1 and all(re.fullmatch(r"[a-z0-9_]+", word) for word in words) else []


def _values(metavar: str, ctx: Any) -> Iterable[str]:
    """Return the values of a metavar; none for files, whose names shells complete."""
    from ..models.manifest import model_entries
    from ..models.registry import BACKBONES
    from ..predictions.formats import FORMATS
    from ..presets import preset_names

    if "|" in metavar:
        return [re.sub(r"\[.*", "", word) for word in metavar.split("|") if word.islower()]
    backbone = BACKBONES.get((ctx.params.get("model") or "i3d").split(".")[0])
    names: dict[str, Iterable[str]] = {
        "MODEL": [*BACKBONES, *model_entries()],
        "BACKBONE": BACKBONES,
        "LAYER": getattr(backbone, "layers", ()),
        "VARIANT": getattr(backbone, "variants", ()),
        "METHOD": METHODS,
        "PRESET": preset_names(),
        "FORMAT": ("table", *FORMATS),
    }
    return names.get(metavar.strip("[]…"), ())


def _completing(function: Any) -> Any:
    """Return the function of a command; its options and arguments now complete in the shell."""
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        function.__annotations__[parameter.name] = parameter.annotation  # evaluated once, so that Typer sees the change
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if metavar := getattr(info, "metavar", None):
                info.autocompletion = _completion(metavar)
    return function


def _completion(metavar: str) -> Callable[[Any], Iterable[str]]:
    return lambda ctx: _values(metavar, ctx)  # Typer knows the parameter by its name


# Errors --------------------------------------------------------------------------------------------------------------

_WANTED = {
    r"valid int": "give a whole number",
    r"valid (number|float)": "give a number",
    r"(?:greater than or equal to |x>=)(\d+(?:\.\d+)?)": "give {} or more",
    r"(?:less than or equal to |x<=)(\d+(?:\.\d+)?)": "give {} or less",
}
"""What to say when the parser's message about a value matches."""


def describe_parser_error(error: Any) -> str:
    """Return what the parser could not read, and what to type next, in one line."""
    path = error.ctx.command_path if error.ctx else "vid3d"
    see, param = f"see {path} --help", getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        known = [name for p in error.ctx.command.get_params(error.ctx) for name in (*p.opts, *p.secondary_opts)]
        hint = did_you_mean(error.option_name, known)
        see += "; for a file name that begins with a dash, write ./-…" if len(error.option_name) == 2 else ""
        return f"{path} has no option '{error.option_name}': {hint or see}"
    if param is not None and hasattr(error, "param_type"):
        name = param.opts[0] if param.param_type_name == "option" else ""
        return f"{path} needs {f'{name} {describe_metavar(param)}'.strip()}: {see}"
    if param is not None:
        name = param.opts[0] if param.param_type_name == "option" else describe_metavar(param)
        faults: list[Any] = getattr(error.__cause__, "errors", list)()
        # Before Typer 0.29, only the message has the value.
        values = [fault["input"] for fault in faults] or re.findall(r"^'?(.*?)'? is not ", error.message)
        value = f" {values[0]}" if values else ""
        for pattern, advice in _WANTED.items():
            if found := re.search(pattern, error.message):
                return f"{name}{value}: {advice.format(*found.groups())}"
        return f"{name}{value}: {error.message}"
    message = re.sub(r"^Got (unexpected extra argument)(?:\(s\))? \((.*)\)", r"\1 \2", error.message).rstrip(".")
    return f"{path}: {message[:1].lower()}{message[1:]}: {see}"
