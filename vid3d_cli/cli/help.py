"""Writes the help of a command, in plain text: the common options, or all of them in their groups."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import Any

HELP_ALL = "--help-all"

MAX_OPTIONS = 12
"""Commands with more options show only those without a group, unless asked for all."""

_MAX_COLUMNS, _MAX_LABEL = 100, 34


def options_of(command: Any) -> list[Any]:
    """Return the options that the help shows, without --help."""
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden and "--help" not in p.opts]


def write_help(command: Any, ctx: Any, *, all_options: bool = False) -> str:
    """Return the help of a command: what it does, usage, example, arguments, options, commands."""
    text, _, example = (command.help or "").partition("Example: ")
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    children = {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}
    words = [ctx.command_path, "[OPTIONS]", *map(describe_metavar, arguments), "COMMAND" if children else ""]
    usage = f"Usage:   {' '.join(filter(None, words))}" + (f"\nExample: {' '.join(example.split())}" if example else "")
    parts = [*map(_fill, re.split(r"\n\s*\n", text.strip())), usage]
    parts += _list("Arguments", {describe_metavar(param): _describe(param) for param in arguments})
    parts += _list("Commands", {name: re.split(r"(?<=[.])\s", child.help)[0] for name, child in children.items()})
    groups: dict[str, dict[str, str]] = {"Options": {}}
    options = options_of(command)
    for param in options:
        group = param.rich_help_panel if len(options) > MAX_OPTIONS else None
        groups.setdefault(group or "Options", {})[describe_names(param)] = _describe(param)
    groups["Options"]["-h, --help"] = "Print this help."
    for name, rows in groups.items():
        if all_options or name == "Options":
            parts += _list(name, rows)
    if len(groups) > 1 and not all_options:
        parts.append(f"All options: {ctx.command_path} {HELP_ALL}")
    return "\n\n".join([*parts, *([_fill(command.epilog)] if command.epilog else [])])


def _list(title: str, rows: dict[str, str]) -> list[str]:
    """Return a part of the help with a label and a text per row; nothing without rows."""
    if not rows:
        return []
    indent = 4 + min(max(map(len, rows)), _MAX_LABEL)
    lines = [f"{title}:"]
    for label, text in rows.items():
        head = f"  {label:{indent - 4}}  " if len(label) + 4 <= indent else f"  {label}\n{' ' * indent}"
        lines.append(head + _fill(text, indent).lstrip())
    return ["\n".join(lines)]


def _fill(text: str, indent: int = 0) -> str:
    columns = max(min(shutil.get_terminal_size().columns, _MAX_COLUMNS), indent + 20)
    whole = re.sub(r"\[default: \S+\]", lambda match: match[0].replace(" ", "\xa0"), " ".join(text.split()))
    return textwrap.indent(textwrap.fill(whole, columns - indent, break_on_hyphens=False), " " * indent).replace(
        "\xa0", " "
    )


def _describe(param: Any) -> str:
    if param.required and param.param_type_name == "option":
        return f"{param.help} [required]"
    default = describe_default(param)
    return f"{param.help} [default: {default}]" if default else str(param.help)


def describe_names(param: Any) -> str:
    """Return an option as the help lists it: "-o, --out PATH", "    --concat / --no-concat"."""
    names = ", ".join(sorted(param.opts, key=len))
    names = names if len(min(param.opts, key=len)) == 2 else f"    {names}"
    if param.secondary_opts:
        names += f" / {', '.join(param.secondary_opts)}"
    return names if param.is_flag else f"{names} {describe_metavar(param)}"


def describe_metavar(param: Any) -> str:
    """Return the word that stands for a value: "FILE", "N"; "[FILE]" for an argument that may be left out."""
    is_number = isinstance(param.default, int | float)
    metavar = str(param.metavar or ("N" if is_number else "TEXT"))
    is_optional = param.param_type_name == "argument" and not param.required
    return f"[{metavar.strip('[]')}]" if is_optional else metavar


def describe_default(param: Any) -> str:
    """Return the default in words; "" if there is none to show."""
    if isinstance(param.show_default, str):
        return param.show_default.strip("()")
    if param.param_type_name == "argument" or param.default is None or param.default is False or not param.show_default:
        return ""
    if param.default is True:
        return str(param.opts[0]) if param.secondary_opts else "on"
    return f"{param.default:g}" if isinstance(param.default, float) else str(param.default)
