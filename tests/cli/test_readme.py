"""The README's commands run, its Python runs, and its tables say what the code says.

`python tests/test_readme.py` writes the table of models anew.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import googlenet

from vid3d_cli.cli.models import (
    describe_accuracy,
    describe_classes,
    describe_clip,
    describe_input,
    describe_size,
    model_row,
)
from vid3d_cli.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED, EXIT_TERMINATED, EXIT_USAGE, EXIT_WEIGHTS
from vid3d_cli.flow.methods import FLOW_METHODS
from vid3d_cli.models.manifest import model_entries

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if "vid3d" in line]
COMMANDS.remove("vid3d demo")  # runs in test_demo.py, with its real model


def model_table():
    headers = ["model", "streams", "frames", "input px", "parameters", "multiply-adds", "features", "classes"]
    headers += ["top-1 %", "licence"]
    rows = [headers, ["---", "---", "---", "---", "---:", "---:", "---:", "---:", "---", "---"]]
    for entry in model_entries().values():
        row = model_row(entry)
        streams = ", ".join(row["streams"]) or "own weights"
        missing = [f"{stream}: no public weights" for stream in row["unpublished"]] if row["streams"] else []
        scores, on = describe_accuracy(row)
        rows.append(
            [
                f"`{row['model']}`" + (" (default)" if row["default"] else ""),
                "; ".join([streams, *missing]),
                describe_clip(row),
                describe_input(row),
                *describe_size(row),
                str(row["feature_dim"]),
                describe_classes(row),
                f"{scores} ({on})" if on else scores,
                row["licence"].split(" (")[0] if row["streams"] else "–",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def part(name):
    return re.search(rf"<!-- {name}:[^\n]*\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)[1].strip()


def test_the_table_of_models_is_the_manifests():
    assert part("models") == model_table()


def test_the_table_of_flow_methods_has_them_all():
    assert re.findall(r"^\| ([a-z0-9-]+) \|", part("flow"), re.MULTILINE)[2:] == list(FLOW_METHODS)


def test_the_table_of_exit_codes_is_the_codes():
    codes = [EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_WEIGHTS, EXIT_INTERRUPTED, EXIT_TERMINATED]
    table = TEXT.split("## Exit codes")[1].split("## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == codes


@pytest.fixture
def home(tmp_path, tiny_model, video):
    """What the README's reader has: video.mp4 and a folder of videos."""
    (tmp_path / "videos" / "b").mkdir(parents=True)
    (tmp_path / "labels.csv").write_text("video,label\na,zumba\nb/c,abseiling\n")
    (tmp_path / "videos" / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "videos" / "b" / "c.mp4").write_bytes(video.read_bytes())
    for stream in ("rgb", "flow"):
        os.link(tiny_model, tmp_path / f"my_{stream}.pt")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, home, vid3d, monkeypatch):
    from conftest import TinyNet

    import vid3d_cli.models.clip_model

    monkeypatch.setattr(
        vid3d_cli.models.clip_model, "create_model", lambda name, *, stream, **_: TinyNet(stream).eval()
    )
    stdin = None
    (home / "my_classes.txt").write_text("\n".join(f"class of mine {i}" for i in range(400)))
    if "inflate" in command:
        torch.save(googlenet(weights=None, init_weights=False).state_dict(), home / "googlenet-1378be20.pth")
    if command.startswith("find"):
        stdin, command = b"videos/a.mp4\0videos/b/c.mp4\0", command.split(" | ")[1]
    words = shlex.split(command.split(" | ")[0])
    if words[1] == "features":
        make_features(vid3d, home, "feats/" if "feats/" in words else "feats.npy")
    if "merge" in words:
        make_shards(vid3d)
        words = [found for word in words for found in sorted(map(str, Path().glob(word))) or [word]]
    result = vid3d(*words[1:], stdin=stdin)
    assert result.exit_code == 0, result.stderr
    if "--shard" in words:
        assert list(home.glob("feats.shard-?-of-2.npy"))
    elif "convert" in words:
        assert (home / words[-1]).exists()
    elif "--out" in words and "--dry-run" not in words:
        assert (home / words[words.index("--out") + 1]).exists()
    else:
        assert result.stdout


def make_features(vid3d, home, *outs):
    """What earlier commands of the README have made."""
    for out in outs:
        assert vid3d("extract", "--out", out, "videos/").exit_code == 0
    if "feats.npy" in outs:
        np.save(home / "published.npy", np.load(home / "feats.npy"))


def make_shards(vid3d):
    for shard in ("1/2", "2/2"):
        assert vid3d("extract", "--out", "feats.npy", "videos/", "--shard", shard).exit_code == 0


@pytest.mark.parametrize("block", blocks("python"), ids=["formats", "api"])
def test_python_runs(block, home, vid3d, monkeypatch):
    from conftest import TinyNet

    import vid3d_cli

    if "pandas" in block:
        for module in ("h5py", "pandas", "pyarrow"):
            pytest.importorskip(module)
        make_features(vid3d, home, "feats.npz", "feats.h5", "feats.parquet", "feats/")
    make_features(vid3d, home, "feats.npy")

    def create_model(name, *, stream, weights=None, num_classes=400, variant=None):
        torch.manual_seed(0)
        return TinyNet(stream, num_classes).eval()

    monkeypatch.setattr(vid3d_cli.models.clip_model, "create_model", create_model)
    monkeypatch.chdir(home)
    names = {}
    exec(block, names)
    if "one" in names:
        assert len(names["rows"]) == len(names["table"]) == 2
        assert names["one"].shape == (1, 15)


def test_the_slurm_script_runs(home, vid3d, monkeypatch):
    (script,) = blocks("bash")
    (line,) = [line for line in script.splitlines() if "vid3d" in line]
    for task in (1, 2):
        for name, value in {"ID": task, "MIN": 1, "MAX": 2, "COUNT": 2, "STEP": 1}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        result = vid3d(*shlex.split(line)[2:])
        assert result.exit_code == 0, result.stderr
    assert len(list((home / "feats").rglob("*.npz"))) == 2


if __name__ == "__main__":
    pattern = r"(<!-- models:[^\n]*\n).*?(<!-- /models -->)"
    README.write_text(re.sub(pattern, lambda m: f"{m[1]}{model_table()}\n{m[2]}", TEXT, flags=re.DOTALL), "utf-8")
