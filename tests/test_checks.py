"""Published outputs beside ours: the values of weights/checks.toml, and `vid3d verify MODEL` on checks of our own."""

import dataclasses
import http.server
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from seeded import SeededCase
from serving import serve

from vid3d_cli import checks
from vid3d_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_WEIGHTS, WeightsError
from vid3d_cli.models.clip_model import create_model
from vid3d_cli.models.digests import cache_dir
from vid3d_cli.models.manifest import data_path, find_model, read_labels

SHIPPED = checks.read_checks()
MINI = "s3d_mini.camera_motion"

# The values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", SHIPPED.checks, ids=lambda c: f"{c.models[0]}:{c.stream}")
class TestEveryCheck:
    def test_names_models_and_a_sample_with_its_streams(self, check):
        for entry in map(find_model, check.models):
            assert entry.name in check.models, "a full name"
            assert set(check.streams) <= set(entry.published_streams)
            found = SHIPPED.find(entry, ["rgb", "flow"])
            assert found.count(check) == 1
            assert {other.sample for other in found} == {check.sample}
        assert set(check.streams) <= SHIPPED.samples[check.sample].files.keys()

    def test_has_numbers_in_their_order_and_their_source(self, check):
        values = list(check.top.values())
        assert values == sorted(values, reverse=True)
        assert check.unit in ("logit", "probability")
        assert check.unit == "logit" or 0 < sum(values) <= 1
        assert check.norm is None or check.norm > np.linalg.norm(values)
        assert check.source.startswith("https://github.com/")

    def test_names_classes_of_the_model(self, check):
        for entry in map(find_model, check.models):
            if entry.labels_file is not None:
                assert check.top.keys() <= set(read_labels(entry))


def test_the_page_lists_every_model_with_its_largest_number():
    page = (Path(__file__).parents[1] / "docs" / "verify.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `") and "vid3d" not in line]
    listed = {model: line for line in rows for model in re.findall(r"`([a-z0-9_]+\.[a-z0-9_]+)`", line.split("|")[1])}
    assert listed.keys() == {model for check in SHIPPED.checks for model in check.models}
    for check in SHIPPED.checks:
        if check.stream == "fused" or len(SHIPPED.find(find_model(check.models[0]), ["rgb", "flow"])) == 1:
            largest = next(iter(check.top.values()))
            assert all(f"({largest}" in listed[model] for model in check.models)


@pytest.mark.parametrize("sample", SHIPPED.samples.values(), ids=lambda s: s.name)
def test_samples_have_addresses_that_cannot_change(sample):
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/.*/", sample.address)
    assert any(sample.name == check.sample for check in SHIPPED.checks)
    assert sample.files.keys() <= {"rgb", "flow"}


def test_samples_have_the_files_of_their_repositories():
    """Source: the tree of kylemin/S3D at 539b28a."""
    bike = SHIPPED.samples["bike"].names("rgb")
    assert (bike[0], bike[-1], len(bike)) == ("001.jpg", "100.jpg", 100)


@pytest.mark.parametrize("model", ["i3d.kinetics400", "i3d.kinetics400_scratch"])
def test_the_published_sums_are_sums(model):
    rgb, flow, fused = SHIPPED.find(find_model(model), ["rgb", "flow"])
    shared = rgb.top.keys() & flow.top.keys() & fused.top.keys()
    assert "playing cricket" in shared
    for name in shared:
        assert fused.top[name] == pytest.approx(rgb.top[name] + flow.top[name], abs=2e-4)


def test_kylemins_frames_are_normalised_as_kylemin_does():
    """Source: kylemin/S3D, main.py, `transform`: times 2, minus 255, divided by 255."""
    for model in ("s3d.kinetics400_kylemin", "s3d.kinetics400_drive"):
        facts = find_model(model).streams["rgb"].normalisation
        assert (facts.range, facts.mean, facts.std, facts.channel_order) == ((-1.0, 1.0), None, None, "RGB")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("checks = [1", "cannot be read"),
        ("checks = []", "samples is missing"),
        ('samples = {}\nchecks = [{ models = ["i3d"], stream = 1 }]', "missing|must be of type"),
    ],
)
def test_a_damaged_list_is_one_line(tmp_path, text, problem):
    (tmp_path / "checks.toml").write_text(text)
    with pytest.raises(WeightsError, match=problem) as caught:
        checks.read_checks(tmp_path / "checks.toml")
    assert "\n" not in str(caught.value)


# A model and checks of our own ----------------------------------------------------------------------------------------


@pytest.fixture
def write_checks(monkeypatch, tmp_path):
    """Replace the checks of vid3d: write_checks(model, files, top, key=value…)."""
    read = checks.read_checks
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VID3D_OFFLINE", "1")

    def write(model, files, top, stream="rgb", address="https://example.org/data/", sample="", **facts):
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
        listed = [f"{stream} = {json.dumps(name)}" for stream, name in files.items()]
        text = f'[samples.own]\nwhat = "ours"\naddress = "{address}"\nfiles = {{ {", ".join(listed)} }}\n{sample}\n'
        if not (tmp_path / "checks.toml").exists():
            (tmp_path / "checks.toml").write_text(text)
        with (tmp_path / "checks.toml").open("a") as file:
            file.write(f'[[checks]]\nmodels = ["{model}"]\nstream = "{stream}"\nsample = "own"\nsource = "our test"\n')
            file.write("\n".join([*lines, "[checks.top]", *(f"{json.dumps(k)} = {v}" for k, v in top.items()), ""]))

    monkeypatch.setattr(checks, "read_checks", lambda: read(tmp_path / "checks.toml"))
    return write


def top_of(logits, labels, number=5):
    """The largest numbers as an author would print them."""
    return {labels[i]: float(f"{logits[i]:.6g}") for i in np.argsort(logits)[::-1][:number]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint and a sample drawn from seeds, and what torchvision's own network returned for it."""
    case = SeededCase("mc3_18_torchvision_16f")
    directory = tmp_path_factory.mktemp("original")
    torch.save({name: torch.from_numpy(x) for name, x in case.state_dict().items()}, directory / "mc3.pt")
    np.save(directory / "sample.npy", case.clips().transpose(0, 2, 3, 4, 1))
    return directory, case.logits[0], {}


@pytest.fixture
def run_once(monkeypatch, original):
    """Run the seeded network once in all tests."""
    run, results = checks._run, original[2]

    def remember(entry, stream, weights, clip):
        if weights not in results:
            results[weights] = run(entry, stream, weights, clip)
        return results[weights]

    monkeypatch.setattr(checks, "_run", remember)


def printed(result):
    (check,) = json.loads(result.stdout)["checks"]
    return check


@pytest.mark.usefixtures("run_once")
class TestSeededWeights:
    MODEL = "mc3_18.kinetics400"

    def words(self, original):
        directory = original[0]
        return "verify", self.MODEL, "--weights", f"rgb={directory / 'mc3.pt'}", "--sample", directory / "sample.npy"

    def publish(self, write_checks, top, logits):
        norm = float(f"{np.linalg.norm(logits):.6f}")
        write_checks(self.MODEL, {"rgb": "sample.npy"}, top, norm=norm)

    def test_match_what_the_original_returned(self, vid3d, write_checks, original):
        logits = original[1]
        top = top_of(logits, read_labels(find_model(self.MODEL)))
        self.publish(write_checks, top, logits)
        result = vid3d(*self.words(original))
        assert result.exit_code == EXIT_OK, result.stderr
        check = printed(result)
        assert check["matches"] and [n["what"] for n in check["numbers"]] == ["norm", *top]
        assert all(abs(n["difference"]) < 1e-3 < n["max_difference"] for n in check["numbers"])
        assert [n["published"] for n in check["numbers"]][1:] == list(top.values())

    def test_mismatch_where_a_number_differs(self, vid3d, write_checks, original):
        top = top_of(original[1], read_labels(find_model(self.MODEL)))
        name = list(top)[1]
        self.publish(write_checks, {**top, name: top[name] * 0.99}, original[1])
        result = vid3d(*self.words(original))
        assert result.exit_code == EXIT_SOME_FAILED
        assert not printed(result)["matches"]
        table = vid3d(*self.words(original), "--format", "table")
        assert table.exit_code == EXIT_SOME_FAILED
        assert "MISMATCH" in table.stdout and name in table.stdout

    def test_mismatch_where_a_class_differs(self, vid3d, write_checks, original):
        labels = read_labels(find_model(self.MODEL))
        top = top_of(original[1], labels)
        self.publish(write_checks, dict(zip(["jetskiing", *list(top)[1:]], top.values(), strict=True)), original[1])
        result = vid3d(*self.words(original))
        assert result.exit_code == EXIT_SOME_FAILED
        assert [n["your_class"] for n in printed(result)["numbers"]][:3] == [None, next(iter(top)), None]


@pytest.fixture(scope="module")
def mini_sample(tmp_path_factory):
    """A sample of both streams for the network that needs no download, and its logits."""
    directory = tmp_path_factory.mktemp("sample")
    rng = np.random.default_rng(5)
    logits = {}
    for stream, channels in (("rgb", 3), ("flow", 2)):
        clip = rng.uniform(-1, 1, (1, 16, 112, 112, channels)).astype(np.float32)
        np.save(directory / f"{stream}.npy", clip)
        net = create_model(MINI, stream=stream, weights=MINI)
        with torch.inference_mode():
            logits[stream] = net(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).logits[0].numpy()
    return directory, logits


@pytest.fixture
def mini(mini_sample, tmp_path):
    """The logits of the sample, whose files lie in the test's directory."""
    shutil.copytree(mini_sample[0], tmp_path, dirs_exist_ok=True)
    return mini_sample[1]


FILES = {"rgb": "rgb.npy", "flow": "flow.npy"}


def put_into_cache(directory):
    for name in FILES.values():
        (cache_dir() / "samples" / "own").mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / name, cache_dir() / "samples" / "own")


def publish_mini(write_checks, logits, **facts):
    labels = read_labels(find_model(MINI))
    for stream, x in {**logits, "fused": logits["rgb"] + logits["flow"]}.items():
        write_checks(MINI, FILES, top_of(x, labels, 3), stream, **facts)


def test_streams_are_summed(vid3d, write_checks, mini, tmp_path):
    publish_mini(write_checks, mini)
    result = vid3d("verify", MINI, "--sample", tmp_path)
    assert result.exit_code == EXIT_OK, result.stderr
    assert [check["stream"] for check in json.loads(result.stdout)["checks"]] == ["rgb", "flow", "fused"]
    table = vid3d("verify", MINI, "--sample", tmp_path, "--format", "table").stdout
    assert table.count("\nmatch; ") == 3


def test_one_stream_needs_one_file(vid3d, write_checks, mini, tmp_path):
    publish_mini(write_checks, mini)
    own = data_path() / "s3d_mini.camera_motion.flow.safetensors"
    for words in (["--streams", "flow"], ["--weights", f"flow={own}"]):
        result = vid3d("verify", MINI, "--sample", tmp_path / "flow.npy", *words)
        assert result.exit_code == EXIT_OK, result.stderr
        assert printed(result)["stream"] == "flow"


def test_images_are_read_as_rgb_in_their_order(vid3d, write_checks, tmp_path):
    entry = find_model(MINI)
    rng = np.random.default_rng(6)
    frames = rng.integers(0, 256, (16, 112, 112, 3), np.uint8)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{i + 8:02}.png"), frame[..., ::-1])
    facts = entry.streams["rgb"].normalisation
    low, high = facts.range
    mean, std = np.array(facts.mean or 0.0), np.array(facts.std or 1.0)
    x = ((frames / 255 * (high - low) + low - mean) / std).astype(np.float32)
    with torch.inference_mode():
        net = create_model(MINI, stream="rgb", weights=MINI)
        probabilities = net(torch.from_numpy(x).permute(3, 0, 1, 2)[None]).logits.softmax(1)[0].numpy()
    top = top_of(probabilities, read_labels(entry), 3)
    write_checks(MINI, {"rgb": "{:02}.png"}, top, sample="numbers = [8, 23]", unit="probability")
    result = vid3d("verify", MINI, "--sample", tmp_path)
    assert result.exit_code == EXIT_OK, result.stdout
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header))
    for content in (huge, b"", b"text"):
        (tmp_path / "09.png").write_bytes(content)
        result = vid3d("verify", MINI, "--sample", tmp_path)
        assert result.exit_code == EXIT_USAGE and "09.png of the sample: it is no image, or too large" in result.stderr


def compare(check, logits):
    """Return what `run_checks` would for these logits of a model."""
    return checks.Verdict(check, SHIPPED.samples["bike"], tuple(checks._compare(check, logits, find_model(MINI))))


@pytest.mark.parametrize("index", range(5))
def test_every_published_probability_decides(index):
    """A rounding of the published numbers matches; one that differs by a tenth does not, however small it is."""
    (kylemins,) = SHIPPED.find(find_model("s3d.kinetics400_kylemin"), ["rgb"])
    values, labels = np.array(list(kylemins.top.values())), read_labels(find_model(MINI))
    check = dataclasses.replace(kylemins, top=dict(zip(labels[:5], values.tolist(), strict=True)))
    rest = np.full(5, (1 - values.sum()) / 5)
    assert compare(check, np.log([*values, *rest]).astype(np.float32)).matches
    values[index] *= 0.9
    numbers = compare(check, np.log([*values, 1 - values.sum(), *rest[1:]]).astype(np.float32)).numbers
    assert not numbers[index].matches


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_null(vid3d, write_checks, mini, monkeypatch, tmp_path, bad):
    logits = mini["rgb"].copy()
    labels = read_labels(find_model(MINI))
    for unit, norm in (("logit", {"norm": 9.0}), ("probability", {})):
        write_checks(MINI, FILES, {labels[1]: 0.9, labels[0]: 0.1}, unit=unit, **norm)
    logits[3] = bad
    monkeypatch.setattr(checks, "_run", lambda *_: logits)
    result = vid3d("verify", MINI, "--sample", tmp_path / "rgb.npy", "--streams", "rgb")
    assert result.exit_code == EXIT_SOME_FAILED and "NaN" not in result.stdout and "Infinity" not in result.stdout
    for check in json.loads(result.stdout)["checks"]:
        assert {(n["yours"], n["difference"], n["your_class"]) for n in check["numbers"]} == {(None, None, None)}
    table = vid3d("verify", MINI, "--sample", tmp_path / "rgb.npy", "--streams", "rgb", "--format", "table")
    assert table.exit_code == EXIT_SOME_FAILED
    assert table.stdout.count("your outputs are NaN or infinite") == 2


@pytest.mark.exhaustive
def test_i3d_gives_the_numbers_of_the_original_for_both_streams(vid3d, write_checks, tmp_path):
    """As DeepMind's sample would be checked: arrays and checkpoints drawn from seeds, numbers of piergiaj's network."""
    labels, logits, words = read_labels(find_model("i3d")), {}, []
    for stream in FILES:
        case = SeededCase(f"i3d_{stream}_piergiaj_64f")
        torch.save({name: torch.from_numpy(x) for name, x in case.state_dict().items()}, tmp_path / f"{stream}.pt")
        np.save(tmp_path / f"{stream}.npy", case.clips().transpose(0, 2, 3, 4, 1))
        logits[stream] = case.logits[0]
        words += ["--weights", f"{stream}={tmp_path / f'{stream}.pt'}"]
    for stream, x in {**logits, "fused": logits["rgb"] + logits["flow"]}.items():
        norm = float(f"{np.linalg.norm(x):.6f}")
        write_checks("i3d.kinetics400", FILES, top_of(x, labels), stream, norm=norm)
    result = vid3d("verify", "i3d", "--sample", tmp_path, *words)
    assert result.exit_code == EXIT_OK, result.stdout
    assert [check["stream"] for check in json.loads(result.stdout)["checks"]] == ["rgb", "flow", "fused"]


# What is missing ------------------------------------------------------------------------------------------------------


def test_a_missing_sample_says_what_to_fetch_and_where_to_put_it(vid3d, write_checks, mini, tmp_path):
    publish_mini(write_checks, mini)
    result = vid3d("verify", MINI)
    assert result.exit_code == EXIT_WEIGHTS
    for name in FILES.values():
        assert f"https://example.org/data/{name}" in result.stderr
    assert str(cache_dir() / "samples" / "own") in result.stderr and "VID3D_OFFLINE is set" in result.stderr
    put_into_cache(tmp_path)
    assert vid3d("verify", MINI).exit_code == EXIT_OK, "where the message says"


def test_missing_weights_and_a_missing_sample_are_one_message(vid3d, monkeypatch, tmp_path):
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    for words in ([], ["i3d"]):
        result = vid3d("verify", *words)
        assert result.exit_code == EXIT_WEIGHTS
        assert result.stderr.count("error:") == 1
        for name in (
            "rgb_imagenet.pt",
            "flow_imagenet.pt",
            "v_CricketShot_g04_c01_rgb.npy",
            "v_CricketShot_g04_c01_flow",
        ):
            assert name in result.stderr
        assert "s3d_mini" not in result.stderr, "no numbers were published for it"
    result = vid3d("verify", "s3d.kinetics400_kylemin")
    assert re.search(r"/sample/001\.jpg\n  …\n  https://.*/sample/100\.jpg\n", result.stderr)


def test_own_weights_leave_only_the_sample_to_fetch(vid3d, monkeypatch, tmp_path):
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    (tmp_path / "own.pt").write_bytes(b"read later")
    result = vid3d("verify", "i3d", "--weights", "rgb=own.pt")
    assert result.exit_code == EXIT_WEIGHTS
    assert "_rgb.npy" in result.stderr
    assert "imagenet.pt" not in result.stderr and "_flow.npy" not in result.stderr


def test_a_cache_that_cannot_be_written_is_named_with_the_address(vid3d, write_checks, mini, monkeypatch, tmp_path):
    publish_mini(write_checks, mini)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "file"))
    result = vid3d("verify", MINI)
    assert result.exit_code == EXIT_WEIGHTS
    assert "cannot be written" in result.stderr and "https://example.org/data/rgb.npy" in result.stderr


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        data = self.server.pages.get(self.path)
        self.send_response(404 if data is None else 200)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_):
        pass


def test_a_sample_is_downloaded_once(vid3d, write_checks, mini, monkeypatch, tmp_path):
    monkeypatch.delenv("VID3D_OFFLINE")
    with serve(_Files) as server:
        publish_mini(write_checks, mini, address=f"{server.url}/data/")
        server.pages["/data/rgb.npy"] = (tmp_path / "rgb.npy").read_bytes()
        result = vid3d("verify", MINI)
        assert result.exit_code == EXIT_WEIGHTS and "download: the server answered HTTP 404" in result.stderr
        assert "rgb.npy" not in result.stderr
        server.pages["/data/flow.npy"] = (tmp_path / "flow.npy").read_bytes()
        assert vid3d("verify", MINI).exit_code == EXIT_OK
        assert vid3d("verify", MINI).exit_code == EXIT_OK
        assert server.requests == ["/data/rgb.npy", "/data/flow.npy", "/data/flow.npy"]


def test_a_download_has_a_limit(vid3d, write_checks, mini, monkeypatch, tmp_path):
    monkeypatch.delenv("VID3D_OFFLINE")
    monkeypatch.setattr(checks, "MAX_SAMPLE_BYTES", 1000)
    with serve(_Files) as server:
        publish_mini(write_checks, mini, address=f"{server.url}/data/")
        server.pages["/data/rgb.npy"] = bytes(2000)
        result = vid3d("verify", MINI)
    assert result.exit_code == EXIT_WEIGHTS and "sends more than 1000 bytes" in result.stderr
    assert list((cache_dir() / "samples" / "own").iterdir()) == []


def bad_samples():
    yield "text", b"<html>not found</html>", "not rgb.npy"
    yield "a pickle", None, "not rgb.npy"
    yield "empty", b"", "not rgb.npy"
    yield "integers", np.zeros((1, 16, 112, 112, 3), np.uint8), "floating-point"
    yield "one pixel", np.zeros((1, 1, 1, 1, 3), np.float32), "rgb.npy: not rgb.npy of the sample: s3d needs clips"
    yield "channels", np.zeros((1, 16, 112, 112, 2), np.float32), r"its shape is \(1, 16, 112, 112, 2\)"


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in bad_samples()], ids=[c[0] for c in bad_samples()]
)
def test_a_file_that_is_not_the_sample_is_one_line(vid3d, write_checks, mini, tmp_path, content, message):
    publish_mini(write_checks, mini)
    path = tmp_path / "rgb.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.array([print], object) if content is None else content)
    given = vid3d("verify", MINI, "--streams", "rgb", "--sample", path)
    assert given.exit_code == EXIT_USAGE and re.search(message, given.stderr)
    assert given.stderr.count("\n") == 1
    put_into_cache(tmp_path)
    cached = vid3d("verify", MINI, "--streams", "rgb")
    assert cached.exit_code == EXIT_WEIGHTS and "delete it" in cached.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s3d.kinetics400"], "no numbers of an input were published for s3d.kinetics400; there are some for: i3d"),
        (["i3d.kinetics600", "--streams", "flow"], "are of rgb: not of flow"),
        (["i3d", "--streams", "rgb", "--weights", "flow=x.pt"], "weights were given for 'flow'"),
        (["i3d", "--sample", "nowhere"], "nowhere: no such file or directory"),
        (["i3d", "--sample", "file"], "give the directory that has v_CricketShot_g04_c01_rgb.npy to"),
        (["i3d", "--sample", "."], "has no v_CricketShot_g04_c01_rgb.npy"),
        (["s3d.kinetics400_kylemin", "--sample", "file"], "give the directory that has 001.jpg to 100.jpg"),
        (["i3dd"], "'i3dd' is neither a model nor a file: .*did you mean 'i3d'"),
        (["file"], "file is a file: to compare it with published features, add --against"),
        (["i3d", "--window", "16"], "--window needs a video and --against"),
        (["i3d", "--key", "x"], "--key needs a video and --against"),
        (["--model", "i3d"], "--model needs a video"),
    ],
)
def test_usage_errors_are_one_line(vid3d, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    result = vid3d("verify", *words)
    assert result.exit_code == EXIT_USAGE
    assert re.search(message, result.stderr) and result.stderr.count("\n") == 1
