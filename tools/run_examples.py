"""Runs the notebooks in examples/ and stores their outputs: python tools/run_examples.py.

tests/test_examples.py runs them in the same way.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells; it runs in an empty directory.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        client = NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": directory}})
        return client.execute()


if __name__ == "__main__":
    for path in NOTEBOOKS:
        done = run(nbformat.read(path, as_version=4))
        done.metadata = {"kernelspec": done.metadata.kernelspec, "language_info": {"name": "python"}}
        nbformat.write(done, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
