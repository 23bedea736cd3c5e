"""The wheel holds the package, its types, the licence and the data, and works outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from the source distribution, as an index would serve it."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    folder = tmp_path_factory.mktemp("dist")
    checkout = folder / "checkout"
    names = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "vid3d_cli", "weights", "tests", "benchmarks"]
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            checkout.mkdir(exist_ok=True)
            shutil.copy(source, checkout / name)
    run("-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=checkout)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=unpacked)
    return next(folder.glob("*.whl"))


def test_what_the_wheel_holds(built):
    names = set(zipfile.ZipFile(built).namelist())
    assert {"vid3d_cli/py.typed", "vid3d_cli/data/manifest.toml", "vid3d_cli/data/labels/kinetics400.txt"} <= names
    presets = {f"vid3d_cli/data/presets/{path.name}" for path in (ROOT / "weights/presets").glob("*.toml")}
    assert presets and presets <= names
    assert {f"vid3d_cli/predictions/report/{name}" for name in ("page.html", "page.js", "style.css")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"vid3d_cli"}


def test_the_wheel_works_outside_the_checkout(built, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(built).extractall(site)
    code = "import sys; sys.argv[0] = 'vid3d'; from vid3d_cli.__main__ import main; main()"
    outside = {"cwd": tmp_path, "PYTHONPATH": str(site)}
    # PYTHONPATH comes before an editable install of the checkout.
    where = run("-c", "import vid3d_cli; print(vid3d_cli.__file__)", **outside).strip()
    assert Path(where).parent == site / "vid3d_cli"
    models = [json.loads(line) for line in run("-c", code, "models", **outside).splitlines()]
    assert "i3d.kinetics400" in {row["model"] for row in models}
    assert "classify" in run("-c", code, "--help", **outside)
