"""Measures the start: seconds from the start of a process to the first clip computed, and the parts of it.

    python benchmarks/start.py [--before TREE] [--rounds N] EXTRACT-OPTIONS
    python benchmarks/start.py --before ../before video.mp4 --model s3d_mini

A tree is a directory that holds another vid3d_cli; the trees run in turn, and the file of each is printed first. Each
process runs `vid3d extract` with the options, until the outputs of its first clip are there, and is then ended. A first
process of each tree downloads, converts and caches what later ones find, and is not counted. Of every column the
fastest round is shown:

    imports    run.local is imported: the command line is parsed, the plan is made next
    networks   `load` has returned: the networks are there, or compile in the background
    clip       the runtime gets the first clip: it is read
    computed   the runtime gives its outputs
    CPU        user and system time of this process until then, without the decoder process
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHILD = """
import importlib.abc, importlib.machinery, json, os, sys, time

started, seconds = float(sys.argv.pop(1)), {}

def mark(name):
    seconds.setdefault(name, time.time() - started)

def watch_load(module):
    load = module.load
    def watched(*args, **options):
        networks = load(*args, **options)
        mark("networks")
        return networks
    module.load = watched

def watch_runtime(module):
    start = module.DeviceRuntime.start
    def watched(runtime, clips):
        mark("clip")
        wait = start(runtime, clips)
        def finish():
            wait()
            mark("computed")
            seconds["CPU"] = sum(os.times()[:2])
            os.write(2, ("\\n" + json.dumps(seconds)).encode())
            os.killpg(0, 9)
        return finish
    module.DeviceRuntime.start = watched

WATCHED = {
    "vid3d_cli.run.local": lambda module: mark("imports"),
    "vid3d_cli.run.load": watch_load,
    "vid3d_cli.runtimes.base": watch_runtime,
}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def watched(module):
            execute(module)
            WATCHED[name](module)
        spec.loader.exec_module = watched
        return spec

sys.meta_path.insert(0, Finder())
sys.path.insert(0, os.environ["PYTHONPATH"])  # before the current directory, which comes first with -c
import vid3d_cli
seconds["file"] = vid3d_cli.__file__
from vid3d_cli.cli import app
app()
"""


def measure(tree: Path, options: list[str], cache: str) -> dict[str, Any]:
    """Return the seconds of each part of one start by name, and the `file` that the package came from."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "VID3D_CACHE": cache}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", CHILD, str(time.time()), "extract", *options, "--out", out, "--overwrite"]
        child = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        parts: dict[str, Any] = json.loads(child.stderr.splitlines()[-1])
    except (IndexError, ValueError):
        sys.exit(f"{tree}: no clip was computed:\n{child.stderr}")
    return parts


def main() -> None:
    """Run the trees in turn and print the fastest time of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="directory of another vid3d_cli to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    arguments, options = parser.parse_known_args()
    trees = {"this tree": Path(__file__).resolve().parents[1]}
    if arguments.before is not None:
        trees = {"before": arguments.before.resolve(), **trees}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(arguments.rounds + 1):
            for name, tree in trees.items():
                parts = measure(tree, options, f"{cache}/{name}")
                if number:
                    rounds[name].append(parts)
                    continue
                print(f"{name}: {parts['file']}")
                if sys.platform == "linux":
                    time.sleep(2)  # a digest is kept on disk once its file is two seconds old
    columns = ("imports", "networks", "clip", "computed", "CPU")
    print(f"{'':12}" + "".join(f"{column:>10}" for column in columns))
    for name, measured in rounds.items():
        print(f"{name:12}" + "".join(f"{min(parts[column] for parts in measured):8.2f} s" for column in columns))


if __name__ == "__main__":
    main()
