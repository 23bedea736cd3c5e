"""The notebooks in examples/ run, and show what their stored outputs show."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def outputs(notebook):
    """What each cell shows, kind by kind; numbers in texts count as equal, and pictures too."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {output.get("name"): output.get("text")})
            text = data.get("text/plain") or data.get("stdout")
            shown.append((output.output_type, sorted(data), re.sub(r"[\d.-]+|\s+", " ", text)))
    return shown


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_its_outputs(path, monkeypatch):
    for module in ("ipykernel", "matplotlib", "nbclient", "pandas"):
        pytest.importorskip(module)
    import nbformat
    from run_examples import run

    monkeypatch.setenv("VID3D_OFFLINE", "1")
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    expected = outputs(stored)
    assert len(expected) >= 8
    assert any("text/html" in kinds and "VideoResult" in text for _, kinds, text in expected)
    assert outputs(run(stored)) == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_stored_notebook_is_small_and_names_no_path_of_its_author(path):
    text = path.read_text("utf-8")
    assert len(text) < 200_000
    assert "/tmp" not in text
    assert "/home" not in text
    assert '"output_type": "error"' not in text
    assert '"name": "stderr"' not in text
