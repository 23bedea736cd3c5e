"""What `--compile` needs, checked before the run, and its errors in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..device_memory import is_out_of_memory
from ..errors import UsageError, Vid3dError


def check_compiler(device: str) -> None:
    """Check that torch can compile networks: for a GPU with Triton, else with a C++ compiler.

    Args:
        device: kind of device: "cpu", "cuda" or "mps".

    Raises:
        UsageError: a compiler or one of its parts is missing; the message says what to install.

    Source: `triton/runtime/build.py`, and TorchInductor, which looks for g++ on Linux and macOS.
    """
    variable, names, language = ("CC", ("gcc", "clang"), "C") if device == "cuda" else ("CXX", ("g++",), "C++")
    given = os.environ.get(variable)
    if not any(map(shutil.which, [given] if given else names)):
        raise UsageError(
            f"--compile needs a {language} compiler, and {given or names[0]} was not found: install one, or set "
            f"{variable} to its path"
        )
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UsageError("--compile on a GPU needs Triton, which is not installed: pip install triton")
        header = Path(sysconfig.get_paths()["include"], "Python.h")
        if not header.exists():
            raise UsageError(f"--compile on a GPU needs {header}: install python3-dev (Fedora: python3-devel)")


@contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Turn the errors of torch's compilers into one line.

    Raises:
        Vid3dError: a network cannot be compiled.
    """
    try:
        yield
    except Exception as error:
        is_compilers = type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))
        if not is_compilers or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).splitlines()[:2]).strip()  # of the backend, and of its error
        raise Vid3dError(f"the network cannot be compiled ({reason}): leave out --compile") from error
