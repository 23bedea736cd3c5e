"""`vid3d doctor`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED
from . import machine
from .console import log
from .demo import MODEL
from .formats import ObjectFormat, or_dash, print_record

TIMEOUT_SECONDS = 180.0
"""A part that takes longer hangs."""

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
        _Failed: it crashed, hung, or ended with an error.
    """
    command = [sys.executable, "-c", _RUN.format(module), "\n".join(sys.path), *words]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"no answer in {TIMEOUT_SECONDS:.0f} s", _lines(error.stdout)) from None
    if done.returncode:
        signals = {-number: f"killed by {number.name}" for number in signal.Signals}
        reasons = [line for line in _lines(done.stderr) if "this is a bug" not in line]  # the line before it says why
        why = signals.get(done.returncode) or ["no reason was printed", *reasons][-1]
        raise _Failed(why.removeprefix("vid3d: error: "), _lines(done.stdout))
    return _lines(done.stdout)


def _lines(printed: bytes | None) -> list[str]:
    return (printed or b"").decode("utf-8", "replace").splitlines()


def check_device(device: str) -> list[Facts]:
    """Return the `runtimes.selftest.Check`s of a device; the one during which its process failed is the last."""
    try:
        lines, why = _run("runtimes.selftest", device), None
    except _Failed as error:
        lines, why = error.lines, str(error)
    records = [json.loads(line) for line in lines if line.startswith('{"check"') and line.endswith("}")]
    checks = [record for record in records if "passed" in record]
    return checks if why is None else [*checks, _check(records[-1]["check"] if records else "start", device, why)]


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
    numbers = dict.fromkeys(["precision", "runtime", "difference", "cosine", "same_top1"])
    return {"check": name, "device": device, "passed": error is None, "error": error, **numbers}


def _find_problems(report: Facts) -> Iterator[Facts]:
    """Yield all problems: what is wrong, what to do, and whether the command fails."""
    for check in report["selftest"]:
        if not check["passed"]:
            why = check["error"] or "the outputs differ from float32 on the CPU"
            yield {"what": f"{' on '.join(_names(check))}: {why}", "fix": _advise(check), "fails": True}
    for problem in report["torch"].get("problems", []):
        where = f"{problem['device']}: " if problem["device"] else ""
        yield {"what": where + problem["what"], "fix": problem["fix"], "fails": problem["gives_wrong_numbers"]}
    for name, facts in report.items():
        if "error" in facts:
            what = f"the check of {name} failed: {facts['error']}"
            yield {"what": what, "fix": "report this with the output of vid3d doctor", "fails": name == "torch"}
    for what, fix in machine.find_problems(report):
        yield {"what": what, "fix": fix, "fails": False}


def _advise(check: Facts) -> str:
    if check["check"] == "out of memory":
        return "use a smaller --batch-size, and report this"
    if check["runtime"] == "openvino":
        return "use --runtime torch, and report this"
    if check["precision"] in ("bf16", "fp16"):
        return "use --precision fp32, and report this"
    return "reinstall vid3d and torch" if check["device"] in ("cpu", "auto") else "use --device cpu, and report this"


def _names(check: Mapping[str, Any]) -> tuple[str, str]:
    """Return what was computed, and where."""
    what, on = (check["check"], check["precision"]), (check["device"], check["runtime"])
    return " ".join(filter(None, what)), " ".join(filter(None, on))


def _without_names(value: Any) -> Any:
    """Replace the home directory by ~, and the user's name in paths by USER."""
    if isinstance(value, dict):
        return {name: _without_names(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_names(inner) for inner in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")  # noqa: PTH111  (Path's raises if there is none)
    user = Path(home).name
    if user not in ("", "~"):
        value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
        value = re.sub(rf"(?<=/){re.escape(user)}(?![\w.-])", "USER", value)
    return value


def _print_report(report: Mapping[str, Any]) -> None:
    from rich.text import Text

    from .tables import make_console, make_table

    console = make_console()
    table = make_table("this machine", "")
    for name, facts in report.items():
        if name in ("selftest", "speed", "problems", "works"):
            break
        for title, text in _rows(name, facts):
            table.add_row(title, text)
    console.print(table)
    console.print()
    numbers = ("difference", "cosine", "top-1")
    table = make_table("self-test", "on", *numbers, "result", narrow=(*numbers, "result"))
    for check in report["selftest"]:
        same = {None: "–", True: "same", False: "other"}[check["same_top1"]]
        result = Text("✓ ok", "green") if check["passed"] else Text("✗ failed", "bold red")
        table.add_row(
            *_names(check), or_dash(check["difference"], ".1e"), or_dash(check["cosine"], ".6f"), same, result
        )
    console.print(table)
    if "bound" in report["speed"]:
        speed = report["speed"]
        rates = speed["frames_per_second"]
        console.print(
            f"\n{speed['model']}, {speed['runtime']}, {speed['precision']}: the network takes {rates['network']:.0f} "
            f"frames/s, reading gives {rates['reading']:.0f}. Limited by: {speed['bound']}. To go faster: vid3d bench"
        )
    for problem in report["problems"]:
        mark = ("✗ ", "bold red") if problem["fails"] else ("! ", "bold yellow")
        console.print(Text.assemble("\n", mark, problem["what"]))
        console.print(f"  → {problem['fix']}", soft_wrap=True)  # stays one line to copy
    console.print(
        "\nAll checks passed." if report["works"] else "\nA check failed: do not trust results of this machine."
    )
    console.print("For a bug report: vid3d doctor --format json")


def _rows(title: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the facts of a part in a line, and each inner dict in a line of its own."""
    inner = {name: value for name, value in facts.items() if isinstance(value, dict)}
    for name, value in {title: {name: facts[name] for name in facts if name not in inner}, **inner}.items():
        pairs = [(key.removesuffix("_bytes").replace("_", " "), _format(key, item)) for key, item in value.items()]
        yield name, ", ".join(f"{key} {text}" for key, text in pairs if text) or "none"


def _format(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value) or "none"
    if name.endswith("_bytes") and value is not None:
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
