"""`vid3d doctor`."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED
from . import machine
from .console import log
from .demo import MODEL
from .formats import ObjectFormat, or_dash, print_record

TIMEOUT_SECONDS = 180.0
"""A process that prints nothing for so long hangs."""

KILL_SECONDS = 5.0

START_FIX = {"fix": "use another --device, and report this"}

_RUN = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from vid3d_cli.{} import main; main()"

Facts = dict[str, Any]


class _Failed(Exception):
    """A process of the self-test failed; `lines` are what it printed before."""

    def __init__(self, why: str, lines: list[str]) -> None:
        super().__init__(why)
        self.lines = lines


def doctor(form: ObjectFormat = None) -> None:
    """Show what vid3d finds on this machine, check its numbers, and say what is wrong and how to mend it.

    It takes about a minute and downloads nothing. It compares networks on every device with float32 on the CPU,
    classifies a rendered video and measures the speed. Exit code 1 means that numbers are wrong or that vid3d cannot
    work here. Add the output of --format json to a bug report; it replaces your name and home directory.

    Example: vid3d doctor
    """
    log.info("checking this machine; this takes about a minute")
    report = _without_names(examine())
    print_record(report, form, _print_report)
    raise typer.Exit(EXIT_OK if report["works"] else EXIT_SOME_FAILED)


def examine() -> Facts:
    """Return the facts of this machine by part, the self-test, the speed and the problems, as plain values."""
    from .bars import Bar

    report: Facts = {}
    with Bar(unit="parts") as bar:

        def add(name: str, describe: Callable[[], Any]) -> None:
            bar.set_description_str(f"{name}: ")
            try:
                report[name] = describe()
            except Exception as error:  # a broken machine is what this command is for
                log.debug("the check of %s failed", name, exc_info=True)
                report[name] = {"error": _one_line(error)}
            bar.update()

        add("install", machine.describe_install)
        add("system", machine.describe_system)
        add("video", machine.describe_video)
        add("cache", machine.describe_cache)
        add("temporary", lambda: machine.describe_directory(Path(tempfile.gettempdir())))
        add("internet", machine.describe_internet)
        add("torch", lambda: json.loads(_run("runtimes.selftest")[-1]))
        devices = report["torch"].get("devices", [])
        add("selftest", lambda: [*chain.from_iterable(map(check_device, devices)), *check_video()])
        add("speed", lambda: json.loads(_run("__main__", "bench", "--format", "json")[-1]))
    problems = [*_find_problems(report)]
    report["torch"].pop("problems", None)
    return report | {"problems": problems, "works": not any(problem["fails"] for problem in problems)}


def _one_line(error: Exception) -> str:
    kind = "" if isinstance(error, _Failed) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _run(module: str, *words: str) -> list[str]:
    """Return the lines that a module's `main` prints in a process of its own, which a broken driver may hang or kill.

    Raises:
        _Failed: it crashed, hung, ended with an error, or could not be started.
    """
    command = [sys.executable, "-c", _RUN.format(module), "\n".join(sys.path), *words]
    try:
        process = Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        raise _Failed(f"no process can be started: {error.strerror}", []) from None
    why, seen, printed, errors = "", None, b"", b""
    try:
        while not why:
            try:
                printed, errors = process.communicate(timeout=TIMEOUT_SECONDS)
                break
            except TimeoutExpired as error:
                seen, printed = printed, error.stdout or b""
                why = f"no answer in {TIMEOUT_SECONDS:.0f} s" if printed == seen else ""
    finally:
        process.kill()
        with suppress(TimeoutExpired):  # a driver may hold it for ever
            process.wait(KILL_SECONDS)
    if process.returncode and not why:
        signals = {-number: f"killed by {number.name}" for number in signal.Signals}
        reasons = [line for line in errors.decode("utf-8", "replace").splitlines() if "this is a bug" not in line]
        why = signals.get(process.returncode) or ["no reason was printed", *reasons][-1].removeprefix("vid3d: error: ")
    lines = printed.decode("utf-8", "replace").splitlines()
    if why:
        raise _Failed(why, lines)
    return lines


def check_device(device: str) -> list[Facts]:
    """Return the `runtimes.selftest.Check`s of a device; the one during which its process failed is the last."""
    try:
        lines, why = _run("runtimes.selftest", device), None
    except _Failed as error:
        lines, why = error.lines, str(error)
    records = [json.loads(line) for line in lines if line.startswith('{"check"') and line.endswith("}")]
    checks = [record for record in records if record["passed"] is not None]
    if why is not None:
        last = records[-1] if records and records[-1]["passed"] is None else _check("start", device, why) | START_FIX
        checks.append(last | {"passed": False, "error": why})
    return checks


def check_video() -> list[Facts]:
    """Return one check: all motions in the demo's video are found, by a decoder process, flow and networks together."""
    from ..video.demo import render

    try:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "camera.mp4"
            truth = [motion.label for motion in render(path)]
            lines = _run("__main__", "classify", str(path), "--model", MODEL, "--segments", "--format", "jsonl")
    except Exception as error:
        return [_check("video", "auto", _one_line(error))]
    found = [record["label"] for record in map(json.loads, lines) if record["stream"] == "fused"]
    why = None if found == truth else f"found {' '.join(found)}, not {' '.join(truth)}"
    return [_check("video", "auto", why)]


def _check(name: str, device: str, error: str | None) -> Facts:
    """Return a record like `runtimes.selftest.Check`, without numbers."""
    return {"check": name, "device": device, "passed": error is None, "error": error}


def _find_problems(report: Facts) -> Iterator[Facts]:
    """Yield all problems: what is wrong, what to do, and whether the command fails."""
    for check in report["selftest"]:
        if not check["passed"]:
            why = check["error"] or "the outputs differ from float32 on the CPU: do not trust its results"
            yield {"what": f"{' on '.join(_names(check))}: {why}", "fix": check.get("fix"), "fails": True}
    for problem in report["torch"].get("problems", []):
        where = f"{problem['device']}: " if problem["device"] else ""
        yield {"what": where + problem["what"], "fix": problem["fix"], "fails": problem["gives_wrong_numbers"]}
    for name, facts in report.items():
        if "error" in facts:
            what = f"the check of {name} failed: {facts['error']}"
            yield {"what": what, "fix": "report this with the output of vid3d doctor", "fails": name == "torch"}
    for what, fix in machine.find_problems(report):
        yield {"what": what, "fix": fix, "fails": False}


def _names(check: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was computed, and where."""
    for names in (("check", "precision"), ("device", "runtime")):
        yield " ".join(check[name] for name in names if check.get(name))


def _without_names(value: Any) -> Any:
    """Replace the home directory by ~, and the user's name in paths by USER."""
    if isinstance(value, dict):
        return {name: _without_names(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_names(inner) for inner in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")  # noqa: PTH111  (Path's raises if there is none)
    names = {Path(home).name, os.environ.get("USER"), os.environ.get("SUDO_USER")} - {None, "", "~"}
    with suppress(KeyError):  # this user has no name
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    if len(home) > 1:
        value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
    pattern = "|".join(re.escape(name) for name in sorted(filter(None, names), key=len, reverse=True))
    return re.sub(rf"(?<=[/._-])({pattern})(?![A-Za-z0-9])", "USER", value) if pattern else value


def _print_report(report: Mapping[str, Any]) -> None:
    from rich.text import Text

    from .tables import make_console, make_table

    console = make_console()
    for part in list(report)[:-4]:
        for name, value in report[part].items():
            if value is not None:
                console.print(f"{part} {name.replace('_', ' ')}: {_show(value)}", soft_wrap=True)
    console.print()
    numbers = ("difference", "cosine", "top-1")
    table = make_table("self-test", "on", *numbers, "result", narrow=(*numbers, "result"))
    for check in report["selftest"]:
        same = {None: "–", True: "same", False: "other"}[check.get("same_top1")]
        result = Text("✓ ok", "green") if check["passed"] else Text("✗ failed", "bold red")
        difference, cosine = or_dash(check.get("difference"), ".1e"), or_dash(check.get("cosine"), ".6f")
        table.add_row(*_names(check), difference, cosine, same, result)
    console.print(table)
    if "bound" in report["speed"]:
        speed = report["speed"]
        rates = [f"{name} {rate:.0f}" for name, rate in speed["frames_per_second"].items() if rate]
        console.print(f"\nframes/s of {speed['model']}, {speed['runtime']}, {speed['precision']}: {', '.join(rates)}")
        console.print(f"Limited by: {speed['bound']}. To go faster: {[*speed['advice'], 'vid3d bench'][0]}")
    for problem in report["problems"]:
        mark = ("✗ ", "bold red") if problem["fails"] else ("! ", "bold yellow")
        console.print(Text.assemble("\n", mark, problem["what"]))
        if problem["fix"]:
            console.print(f"  → {problem['fix']}", soft_wrap=True)  # stays one line to copy
    console.print("\nAll checks passed." if report["works"] else "\nA check failed.")
    console.print("For a bug report: vid3d doctor --format json")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "–" if value is None else f"{value:.0f}" if isinstance(value, float) and value > 100 else str(value)
