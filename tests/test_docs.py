"""README.md and docs/: their commands and Python run, their links resolve, and their tables match the code.

The commands run the real networks of `s3d_mini.camera_motion`, which comes with vid3d: other weights are not on disk.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

import vid3d_cli
from vid3d_cli.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED, EXIT_TERMINATED, EXIT_USAGE, EXIT_WEIGHTS
from vid3d_cli.flow.methods import FLOW_METHODS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import write_docs  # noqa: E402

PAGES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
LINKING = [path for folder in (".", "docs", "benchmarks", "weights") for path in (ROOT / folder).glob("*.md")]
MODEL = "s3d_mini.camera_motion"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def each(found):
    """Parameters (page, text): those of the README run in the quick tests, the others in the exhaustive ones."""
    return [
        pytest.param(page, text, id=f"{page}-{i}", marks=[] if page == "README.md" else pytest.mark.exhaustive)
        for i, (page, text) in enumerate(found)
    ]


COMMANDS = [
    (page, line)
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if re.search(r"\bvid3d \w", line) and "vid3d demo" not in line
]
PYTHON = [(page, block) for page in PAGES for block in blocks(page, "python")]


# Text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", write_docs.write_docs(), ids=lambda path: path.name)
def test_generated_pages_are_up_to_date(path):
    assert path.read_text("utf-8") == write_docs.write_docs()[path], "run: python tools/write_docs.py"


@pytest.mark.parametrize("name", write_docs.find_commands())
def test_every_command_has_help_and_is_documented(name):
    command = write_docs.find_commands()[name]
    assert len(command.help.splitlines()[0]) > 20
    assert all(param.help for param in command.params), [param.name for param in command.params if not param.help]
    assert f"\n## vid3d {name}".rstrip() + "\n" in PAGES["commands.md"]


def test_every_option_that_a_page_names_exists():
    params = [param for command in write_docs.find_commands().values() for param in command.params]
    known = {name for param in params for name in [*param.opts, *param.secondary_opts]}
    known |= {"--help", "--help-all", "--array", "--gres", "--cpus-per-task", "--requeue"}  # sbatch's
    for page, text in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"\]\([^)]*\)", "", text)))
        assert not named - known, page


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.name)
def test_links_resolve(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not link.startswith("https://"):
            target, _, anchor = link.partition("#")
            found = path.parent / target if target else path
            assert found.exists(), link
            assert not anchor or anchor in anchors(found.read_text("utf-8")), link


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 130


def test_the_table_of_exit_codes_lists_them_all():
    codes = [EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_WEIGHTS, EXIT_INTERRUPTED, EXIT_TERMINATED]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PAGES["README.md"], re.MULTILINE)] == codes


def test_the_table_of_flow_methods_lists_them_all():
    table = re.search(r"<!-- flow:.*?<!-- /flow -->", PAGES["video.md"], re.DOTALL)[0]
    assert re.findall(r"^\| ([a-z0-9-]+) \|", table, re.MULTILINE)[2:] == list(FLOW_METHODS)


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """video.mp4 and a folder of two videos, each of 40 frames."""
    directory = tmp_path_factory.mktemp("films")
    video = write_video(directory / "video.mp4", num_frames=40)
    (directory / "videos" / "b").mkdir(parents=True)
    for copy in ("a.mp4", "b/c.mp4"):
        shutil.copy2(video, directory / "videos" / copy)
    (directory / "labels.csv").write_text("video,label\na,shake\nb/c,static\n")
    return directory


@pytest.fixture
def home(films, tmp_path, monkeypatch):
    """What a reader has: the current directory with the videos."""
    shutil.copytree(films, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    return tmp_path


def with_embedded_model(words):
    """Have a command that names no model run the one that needs no download."""
    if words[1] in ("classify", "extract", "eval", "bench"):
        words = [*words, *([] if "--model" in words else ["--model", MODEL]), "--runtime", "torch", "--threads", "1"]
    if "--against" in words:
        words = [*words, "--model", MODEL, "--threads", "1"]
    return words


def make(vid3d, *outs, options=()):
    for out in outs:
        words = ["vid3d", "extract", "--out", out, "videos/", *options]
        assert vid3d(*with_embedded_model(words)[1:]).exit_code == 0


def prepare(words, vid3d, home):
    """Make what earlier steps have left: features, shards, own checkpoints."""
    if words[1] == "features":
        if "merge" in words:
            for shard in ("1/2", "2/2"):
                make(vid3d, "feats.npy", options=["--shard", shard])
        else:
            make(vid3d, words[3])
        if "published.npy" in words:
            np.save(home / "published.npy", np.load(home / "feats.npy"))
    if "annotations" in words:
        (home / "classes.txt").write_text("Diving\n")
        make(vid3d, "feats/", options=["--preset", "actionformer-thumos"])
    if "mine.toml" in words:
        (home / "mine.toml").write_text(blocks("presets.md", "toml")[0])
    if "--against" in words:
        make(vid3d, "published.npy")
        np.save(home / "published.npy", np.load(home / "published.npy")[:2])  # those of the first video
    if "--weights" in words:
        backbone, classes = ("r3d_18", 400) if "r3d_18" in words else ("s3d_mini", 10)
        (home / "my_classes.txt").write_text("".join(f"my class {i}\n" for i in range(classes)))
        for stream in [word.partition("=")[0] for word in words if word.endswith(".pt")]:
            save_checkpoint(vid3d_cli.create_model(backbone, stream=stream, num_classes=classes), f"my_{stream}.pt")
    if "inflate" in words:
        from torchvision.models import googlenet

        save_checkpoint(googlenet(weights=None, init_weights=False), "googlenet-1378be20.pth")


def save_checkpoint(net, name):
    import torch

    torch.save(net.state_dict(), name)


@pytest.mark.parametrize(("page", "command"), each(COMMANDS))
def test_commands_run(page, command, home, vid3d):
    stdin = b"videos/a.mp4\0videos/b/c.mp4\0" if command.startswith("find") else None
    command = command.removeprefix("find videos -name '*.mp4' -print0 | ").split(" | ")[0]
    words = with_embedded_model(shlex.split(command, comments=True))
    prepare(words, vid3d, home)
    words = [name for word in words for name in sorted(map(str, Path().glob(word))) or [word]]
    result = vid3d(*words[1:], stdin=stdin)
    assert result.exit_code == 0, result.stderr
    if "--shard" in words:
        assert list(home.glob("feats.shard-?-of-2.npy"))
    elif (out := next((word for word in ("--out", "-o") if word in words), None)) and "--dry-run" not in words:
        assert (home / words[words.index(out) + 1]).exists()
    elif "convert" in words:
        assert (home / words[-1]).exists()
    else:
        assert result.stdout


def printed_after(page, block):
    """Return what a page says a block prints, or None: the text block that follows it at once."""
    found = re.match(r"```\n\n```text\n(.*?)^```$", PAGES[page].split(block, 1)[1], re.MULTILINE | re.DOTALL)
    return found and found[1]


def rounded(text):
    """Text with fractions cut to one digit: another CPU rounds differently."""
    return re.sub(r"(\.\d)\d+", r"\1", text)


@pytest.mark.parametrize(("page", "block"), each(PYTHON))
def test_python_runs(page, block, home, vid3d, capsys):
    for module in ("fiftyone", "h5py", "pandas", "pyarrow"):
        if module.replace("pyarrow", "read_parquet") in block:
            pytest.importorskip(module)
    for out in re.findall(r'"(feats[\w.]*/?)', block):
        if f'out="{out}"' not in block and not (home / out).exists():
            make(vid3d, out)
    names = {}
    capsys.readouterr()
    exec(block, names)
    printed, shown = capsys.readouterr().out, printed_after(page, block)
    assert shown is not None or page != "python.md", printed
    assert shown is None or rounded(printed) == rounded(shown)
    if "one" in names:
        assert names["one"].shape == (2, 512)
        assert len(names["index"]) == 4


def test_the_slurm_script_runs(home, vid3d, monkeypatch):
    (script,) = blocks("batch-jobs.md", "bash")
    (line,) = [line for line in script.splitlines() if "vid3d" in line]
    for task in (1, 2):
        for name, value in {"ID": task, "MIN": 1, "MAX": 2, "COUNT": 2, "STEP": 1}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        result = vid3d(*with_embedded_model(shlex.split(line)[1:])[1:])
        assert result.exit_code == 0, result.stderr
    assert len(list((home / "feats").rglob("*.npz"))) == 2


@pytest.mark.exhaustive
def test_the_readme_shows_what_the_demo_prints(home, vid3d):
    def words(line):
        return re.sub(r"\d+(\.\d+)?", "0", line).split()

    shown = [words(line) for line in blocks("README.md", "text")[0].splitlines() if "…" not in line]
    result = vid3d("demo")
    printed = [words(line) for line in result.stdout.splitlines()]
    assert [line for line in shown if line not in printed and set(line[0]) != {"─"}] == []
    assert Path("vid3d-demo/feats.npy").exists()
