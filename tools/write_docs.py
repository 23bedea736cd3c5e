"""Write the parts of docs/ that come from the code: the command reference, the tables of models and presets.

    python tools/write_docs.py           write them
    python tools/write_docs.py --check   exit with 1 if they are out of date

tests/test_docs.py runs the check.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vid3d_cli.cli.help import describe_default, describe_metavar, options_of

DOCS = Path(__file__).parents[1] / "docs"

_GENERATED = "<!-- Written by `python tools/write_docs.py`. Do not edit. -->"

_PREFACE = """`vid3d COMMAND --help` shows the common options of a command, `--help-all` all of them.
Commands that print records print a table on a terminal and JSON in a pipe; `--format` chooses.
A name that is mistyped is answered with the closest one. `vid3d --install-completion` completes commands, options,
models, layers and other values in your shell; `--show-completion` prints the script instead."""


# Commands ------------------------------------------------------------------------------------------------------------


def find_commands() -> dict[str, Any]:
    """Return every command of `vid3d` by its name, as in "features info"; groups come before their commands."""
    from vid3d_cli.cli import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for child, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                full_name = f"{name} {child}".strip()
                yield full_name, inner
                yield from below(full_name, inner)

    root = typer.main.get_command(app)
    return {"": root, **dict(below("", root))}


def write_commands() -> str:
    """Return docs/commands.md."""
    commands = find_commands()
    shared = _find_shared_options(commands)
    parts = ["# Commands", _GENERATED, _PREFACE]
    for name, command in commands.items():
        parts += _describe_command(name, command, shared)
    if shared:
        parts += ["## Shared options", "Several commands take these."]
        for panel, rows in shared.items():
            parts += [f"### {panel}", _table("option", rows)]
    return "\n\n".join(parts) + "\n"


def _describe_command(name: str, command: Any, shared: dict[str, list[list[str]]]) -> Iterator[str]:
    yield f"## vid3d {name}".rstrip()
    text, _, example = (command.help or "").partition("Example: ")
    yield from (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    children = [child for child, inner in getattr(command, "commands", {}).items() if not inner.hidden]
    words = ["vid3d", name, "COMMAND" if children else "", "[OPTIONS]", *map(describe_metavar, arguments)]
    usage = f"usage:    {' '.join(filter(None, words))}"
    yield "\n".join(["```text", usage, *([f"example:  {' '.join(example.split())}"] if example else []), "```"])
    if children:
        names = [f"{name} {child}".strip() for child in children]
        yield "Commands: " + ", ".join(f"[`{full}`](#vid3d-{full.replace(' ', '-')})" for full in names) + "."
    if arguments:
        yield _table("argument", [_row(argument) for argument in arguments])
    all_rows = [_row(param) for param in options_of(command)]
    has_all = {panel: all(row in all_rows for row in rows) for panel, rows in shared.items()}
    own, panels = [], []
    for param in options_of(command):
        row, panel = _row(param), param.rich_help_panel
        if has_all.get(panel) and row in shared[panel]:
            panels.append(panel)
        else:
            own.append(row)
    if own:
        yield _table("option", own)
    if command.epilog:
        yield str(command.epilog)
    if panels:
        yield "Also: " + ", ".join(f"[{p}](#{p.lower().replace(' ', '-')})" for p in dict.fromkeys(panels)) + "."


def _find_shared_options(commands: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return by panel of the help the options that are the same in all commands with most of the panel, if several."""
    panels: dict[str, list[list[list[str]]]] = {}
    for command in commands.values():
        rows: dict[str, list[list[str]]] = {}
        for param in options_of(command):
            if param.rich_help_panel:
                rows.setdefault(param.rich_help_panel, []).append(_row(param))
        for panel, its_rows in rows.items():
            panels.setdefault(panel, []).append(its_rows)
    shared = {}
    for panel, its in panels.items():
        most = [rows for rows in its if 2 * len(rows) > max(map(len, its))]
        if len(most) > 1:
            shared[panel] = [row for row in most[0] if all(row in rows for rows in most)]
    return {panel: rows for panel, rows in shared.items() if rows}


def _row(param: Any) -> list[str]:
    """Return name, help and default of an option or argument."""
    default = describe_default(param)
    default = default if isinstance(param.show_default, str) or not default else _code(default)
    if param.param_type_name == "argument":
        return [_code(describe_metavar(param)), _text(param.help), default]
    names = " / ".join(", ".join(map(_code, opts)) for opts in (param.opts, param.secondary_opts) if opts)
    metavar = "" if param.is_flag else " " + _code(describe_metavar(param))
    return [names + metavar, _text(param.help), "required" if param.required else default]


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _table(first: str, rows: list[list[str]]) -> str:
    """Return a table without the columns that are empty in all rows."""
    rows = [[first, "what it does", "default"], ["---"] * 3, *rows]
    keeps = [any(row[i] for row in rows[2:]) for i in range(3)]
    return "\n".join(_line(cell for cell, keep in zip(row, keeps, strict=True) if keep) for row in rows)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


# Models --------------------------------------------------------------------------------------------------------------

_MODEL_COLUMNS = {
    "model": "---",
    "streams": "---",
    "frames": "---",
    "input px": "---",
    "parameters": "---:",
    "multiply-adds": "---:",
    "features": "---:",
    "classes": "---:",
    "top-1 %": "---",
    "licence": "---",
}


def write_model_table() -> str:
    """Return the table of docs/models.md."""
    from vid3d_cli.models.manifest import model_entries

    rows = [list(_MODEL_COLUMNS), list(_MODEL_COLUMNS.values()), *map(_model_row, model_entries().values())]
    return "\n".join(map(_line, rows))


def _model_row(entry: Any) -> list[str]:
    from vid3d_cli.cli import models

    row = models.model_row(entry)
    scores, on = models.describe_accuracy(row)
    missing = [f"{stream}: no public weights" for stream in row["unpublished"]] if row["streams"] else []
    return [
        _code(row["model"]) + (" (default)" if row["default"] else ""),
        "; ".join([", ".join(row["streams"]) or "own weights", *missing]),
        models.describe_clip(row),
        _describe_input(row),
        *_describe_size(row),
        str(row["feature_dim"]),
        models.describe_classes(row),
        f"{scores} ({on})" if on else scores,
        row["licence"].split(" (")[0] if row["streams"] else "–",
    ]


def _describe_input(row: Any) -> str:
    """Return the pixels of the resized frame (shorter side, or height × width) and of its crop: "256→224"."""
    resized, crop = row["input"]["resize_px"], row["input"]["crop_px"]
    return f"{resized if isinstance(resized, int) else '×'.join(map(str, resized))}→{crop}"


def _describe_size(row: Any) -> tuple[str, str]:
    """Return parameters and multiply-adds of the rgb network: ("12.7 M", "111.2 G")."""
    stream = next(iter(row["parameters"]))
    return f"{row['parameters'][stream] / 1e6:.1f} M", f"{row['multiply_adds'][stream] / 1e9:.1f} G"


# Presets -------------------------------------------------------------------------------------------------------------


def write_preset_table() -> str:
    """Return the table of docs/presets.md."""
    from vid3d_cli.cli.presets import describe_windows, plan_of, preset_row
    from vid3d_cli.presets import find_preset, preset_names

    columns = ["preset", "programs", "network", "window/stride @ fps", "file", "shape", "middle of row i", "values"]
    rows = [columns, ["---"] * len(columns)]
    for preset in map(find_preset, preset_names()):
        row = preset_row(preset, plan_of(preset))
        network = f"{_code(row['model'])} {', '.join(row['streams'])}"
        shape = f"({', '.join(map(str, row['shape']))}) {row['dtype']}"
        file = _code(row["file"])
        rows.append([_code(row["preset"]), _text(row["programs"]), network, describe_windows(row)])
        rows[-1] += [file, shape, row["row_centre"], row["values"]]
    return "\n".join(map(_line, rows))


def replace_part(text: str, name: str, part: str) -> str:
    """Return a text with another part between `<!-- name: … -->` and `<!-- /name -->`."""
    pattern = rf"(<!-- {name}:[^\n]*\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{part}\n{match[2]}", text, flags=re.DOTALL)


# Files ---------------------------------------------------------------------------------------------------------------


def write_docs() -> dict[Path, str]:
    """Return the text that each generated file should have."""
    models, presets = DOCS / "models.md", DOCS / "presets.md"
    return {
        DOCS / "commands.md": write_commands(),
        models: replace_part(models.read_text("utf-8"), "models", write_model_table()),
        presets: replace_part(presets.read_text("utf-8"), "presets", write_preset_table()),
    }


def main() -> int:
    """Write the files, or with --check, report those that differ."""
    stale = [path for path, text in write_docs().items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is out of date: run python tools/write_docs.py", file=sys.stderr)
        return bool(stale)
    texts = write_docs()
    for path in stale:
        path.write_text(texts[path], "utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
