"""Turns the fields of `Options` into command line options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import UsageError
from ..options import MACHINE, Options


def out_option(help: str) -> Any:  # noqa: A002  (as Typer calls it)
    """Return the required option that names the output of a command."""
    return typer.Option("--out", "--output", "-o", metavar="PATH", help=help, show_default=False)


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with an option for every field of `Options`.

    The command receives them as one parameter `options`. A field with `commands` belongs only to these commands.
    """
    taken = inspect.signature(command, eval_str=True).parameters
    own = [parameter for name, parameter in taken.items() if name not in ("options", "context")]
    shared = [_parameter(field) for field in _fields_of(command.__name__)]

    @wraps(command)
    def wrapper(context: typer.Context, **values: Any) -> None:
        from ..presets import with_preset  # late, so that --help is fast

        picked = {parameter.name: values.pop(parameter.name) for parameter in shared}
        picked["weights"] = parse_weights(picked["weights"] or [])
        if "context" in taken:
            values["context"] = context
        command(**values, options=with_preset({name: picked[name] for name in picked if is_given(context, name)}))

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared))]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line, or a variable of the environment, gives a parameter."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _fields_of(command: str) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(Options) if command in f.metadata.get("commands", (command,))]


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Return a field as a parameter of a Typer command."""
    facts = field.metadata
    kind = facts.get("type") or get_type_hints(Options)[field.name]
    name = field.name.replace("_", "-")
    # --no-… overrides a preset, which decides nothing about the machine
    is_switch = kind is bool and facts["group"] != MACHINE
    flags = facts.get("flags") or (f"--{name}/--no-{name}" if is_switch else f"--{name}",)
    extra = {name: facts[name] for name in ("metavar", "min") if name in facts}
    if "shown" in facts:
        extra["show_default"] = facts["shown"]
    default = None if field.default is dataclasses.MISSING else field.default
    option = typer.Option(
        *flags, help=facts["help"], rich_help_panel=None if facts.get("common") else facts["group"], **extra
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def parse_weights(values: list[str]) -> dict[str, str]:
    """Return checkpoints by stream: ["rgb=a.pt", "flow=b.pt"] → {"rgb": "a.pt", "flow": "b.pt"}.

    Raises:
        UsageError: a value is not rgb=FILE or flow=FILE.
    """
    parsed = {}
    for value in values:
        stream, equals, path = value.partition("=")
        if stream not in ("rgb", "flow") or not equals or not path:
            raise UsageError(f"--weights {value}: write rgb=FILE or flow=FILE")
        parsed[stream] = path
    return parsed
