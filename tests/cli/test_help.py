"""Help on one screen, errors in one line, completion in the shell."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from vid3d_cli import cli
from vid3d_cli.cli import console
from vid3d_cli.cli.help import MAX_OPTIONS, options_of
from vid3d_cli.flow import METHODS
from vid3d_cli.flow.methods import FLOW_METHODS
from vid3d_cli.models.manifest import model_entries
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.options import MACHINE, Options
from vid3d_cli.presets import preset_names

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import write_docs

COMMANDS = {name: command for name, command in write_docs.find_commands().items() if not hasattr(command, "commands")}


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", write_docs.find_commands())
def test_help_fits_on_one_screen(vid3d, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    result = vid3d(*name.split(), "--help")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert f"Usage:   vid3d {name}".rstrip() in result.stdout
    assert not re.search(r"<\w+|\[x[<>]=|list\[|\{\w", result.stdout)  # Python's types


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_has_every_option(vid3d, name):
    options = options_of(COMMANDS[name])
    short, whole = (vid3d(*name.split(), flag).stdout for flag in ("--help", "--help-all"))
    assert all(f" {option.opts[0]}" in whole and option.help.split()[0] in whole for option in options)
    is_short = [re.search(rf" {option.opts[0]}[\s,]", short) is not None for option in options]
    assert all(is_short) == (len(options) <= MAX_OPTIONS) == ("--help-all" not in short)
    assert sum(is_short) <= MAX_OPTIONS + 1


def test_every_flag_that_a_preset_may_set_can_be_turned_off():
    flags = {field.name for field in fields(Options) if field.type == "bool" and field.metadata["group"] != MACHINE}
    params = [param for param in COMMANDS["extract"].params if param.name in flags]
    assert len(params) == len(flags) == 7
    assert [param.secondary_opts for param in params] == [[f"--no-{param.opts[0][2:]}"] for param in params]


def test_help_wraps_to_the_terminal(vid3d, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, vid3d("extract", "--help-all").stdout.splitlines())) <= 60


@pytest.mark.parametrize("group", [[], ["-v"], ["features"], ["models"]])
def test_groups_have_help_all_too(vid3d, group):
    result = vid3d(*group, "--help-all")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == vid3d(*group, "--help").stdout


def test_groups_without_a_command_print_their_help(vid3d):
    for group in ([], ["features"], ["weights"]):
        result = vid3d(*group)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == vid3d(*group, "--help").stdout


def test_the_methods_in_the_help_are_those_of_the_registry():
    assert list(FLOW_METHODS) == list(METHODS)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extarct", "vid3d has no command 'extarct': did you mean 'extract'?"),
        ("EXTRACT a.mp4", "vid3d has no command 'EXTRACT': did you mean 'extract'?"),
        ("features inf f.npy", "vid3d features has no command 'inf': did you mean 'info'? Choose one of info, get, "),
        ("zzz", "vid3d has no command 'zzz': choose one of demo, "),
        ("-v", "vid3d: missing command: see vid3d --help"),
        ("--formt", "vid3d has no option '--formt': see vid3d --help"),
        ("extract --widow 3", "vid3d extract has no option '--widow': did you mean '--window'?"),
        ("extract --Window 3", "vid3d extract has no option '--Window': did you mean '--window'?"),
        ("extract --helpall", "vid3d extract has no option '--helpall': did you mean '--help-all'?"),
        ("extract -z", "vid3d extract has no option '-z': see vid3d extract --help"),
        ("extract", "vid3d extract needs VIDEO…: see vid3d extract --help"),
        ("extract a.mp4", "vid3d extract needs --out PATH: see vid3d extract --help"),
        ("extract a.mp4 --window", "vid3d extract: option '--window' requires an argument: see vid3d extract --help"),
        ("classify a.mp4 --window 1x", "--window 1x: give a whole number"),
        ("classify a.mp4 --window 0", "--window 0: give 1 or more"),
        ("classify a.mp4 --timeout soon", "--timeout soon: give a number"),
        ("classify a.mp4 --tail Pad", "--tail Pad: did you mean 'pad'? Choose one of pad, drop, loop"),
        ("probe a.mp4 --format tabel", "--format tabel: did you mean 'table'? Choose one of table, json, jsonl"),
        ("flow a.mp4 --out f.npz --start 1:75", "--start 1:75: give seconds (90, 1.5), 1:30 or 1:02:03.5"),
        ("flow a.mp4 --out f.npz --start -1", "--start -1: give 0 s or more"),
        (
            "probe -dash.mp4",
            "vid3d probe has no option '-d': see vid3d probe --help; for a file name that begins with a dash, "
            "write ./-…",
        ),
        ("models shw i3d", "vid3d models has no command 'shw': did you mean 'show'?"),
        ("models lst", "no model has 'lst' in its name: did you mean 'list'?"),
        ("classify a.mp4 -o x.txt", "x.txt: the suffix names no format"),
        ("classify a.mp4 --out x.txt", "x.txt: the suffix names no format"),
        ("classify a.mp4 --model s3d_mini --labels no.txt", "no.txt: no such file"),
        ("classify a.mp4 --window 1000000000", "--window: a window of 1000000000 frames needs more than 602,112 GB"),
        ("models show i3d s3d", "vid3d models show: unexpected extra argument s3d: see vid3d models show --help"),
        ("flow a.mp4 --out -", "flow cannot go to standard output: name a directory, .npz, a video"),
        ("features merge a.npy --out -", "features cannot go to standard output: name a file"),
        ("extract a.mp4 --model s3d_mini --out f.npyy", "cannot write features to 'f.npyy': did you mean '.npy'?"),
        ("weights inflate a.pth --to i3D --out a.safetensors", "--to i3D: did you mean 'i3d'?"),
    ],
)
def test_errors_are_one_line(vid3d, words, message):
    result = vid3d(*words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"vid3d: error: {re.escape(message)}[^\n]*\n", result.stderr)
    (line,) = vid3d("--log-json", *words.split()).stderr.splitlines()
    assert json.loads(line)["message"].startswith(message)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_arguments_of_a_message_may_be_a_mapping(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console.set_verbosity(verbose=False, quiet=False)
    console.log.info("%(name)s has %(clips)d clips", {"name": "a\x1b.mp4", "clips": 12})
    assert sys.stderr.getvalue() == "vid3d: a\\x1b.mp4 has 12 clips\n"


@pytest.mark.parametrize(
    ("stderr", "no_color", "prefix"),
    [(Terminal, "", "\x1b[31m\x1b[1merror:\x1b[0m"), (Terminal, "1", "error:"), (io.StringIO, "", "error:")],
)
def test_prefixes_are_coloured_on_a_terminal(monkeypatch, stderr, no_color, prefix):
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setenv("NO_COLOR", no_color)
    with pytest.raises(SystemExit):
        cli.app(["extarct"], prog_name="vid3d")
    console.log.info("12 clips")
    assert sys.stderr.getvalue().startswith(f"vid3d: {prefix} vid3d has no command")
    assert sys.stderr.getvalue().endswith("\nvid3d: 12 clips\n")


# Completion ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def complete(vid3d, monkeypatch):
    """What bash gets when the user presses tab after some words, the last of which may be unfinished."""

    def run(words):
        monkeypatch.setenv("_VID3D_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"vid3d {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(f"vid3d {words}x".split()) - 1))
        return vid3d().stdout.split()

    return run


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("extract --tail ", ["pad", "drop", "loop"]),
        ("extract --device c", ["cpu", "cuda"]),
        ("extract --flow dis-", ["dis-ultrafast", "dis-fast", "dis-medium"]),
        ("classify -m s3d_m", ["s3d_mini", "s3d_mini.camera_motion"]),
        ("models show c3d.", ["c3d.ucf101", "c3d.sports1m"]),
        ("extract --model s3d_mini.camera_motion --layer Mixed_5", ["Mixed_5b", "Mixed_5c"]),
        ("extract --layer Conv3d_1", ["Conv3d_1a_7x7"]),
        ("extract --model p3d199 --variant ", [*BACKBONES["p3d199"].variants]),
        ("extract --win", ["--window"]),
        ("features c", ["check", "convert", "compare"]),
        ("extract --fps n", ["native"]),
        ("probe --format j", ["json", "jsonl"]),
        ("models ", ["list", "show"]),
        ("extract v", []),  # then the shell completes file names
        ("extract --out ", []),
    ],
)
def test_values_complete(complete, words, values):
    assert complete(words) == values


def test_all_models_complete(complete):
    assert set(model_entries()) | set(BACKBONES) == set(complete("extract --model "))


def run_process(*words, **environment):
    script = "import sys; from vid3d_cli.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    in_a_shell = ["bash", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", script, *words]
    return subprocess.run(in_a_shell, capture_output=True, text=True, env={**os.environ, **environment})


def test_all_presets_complete(complete):
    assert complete("extract --preset ") == complete("presets show ") == preset_names()


def test_completion_imports_no_torch():
    asked = {"_VID3D_COMPLETE": "complete_bash", "COMP_WORDS": "vid3d extract --model i3d", "COMP_CWORD": "3"}
    names = run_process(**asked).stdout.split()
    assert (names[:2], names[-1]) == (["i3d", "i3d_r50"], "False")


def test_completion_that_cannot_be_installed_is_one_line(tmp_path):
    (tmp_path / "home").write_text("a file")
    done = run_process("--install-completion", HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert re.fullmatch(r"vid3d: error: .* cannot be written: .*'vid3d --show-completion'.*\n", done.stderr)
