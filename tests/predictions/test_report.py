"""The HTML report: what the files hold, and, where Chromium is found, how the pages behave in it."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import socket
import time
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import cv2
import numpy as np
import pytest
from serving import serve
from videos import read_index, write_video

from vid3d_cli import errors
from vid3d_cli.fusion import Fusion, pool_video
from vid3d_cli.predictions.colours import class_colours
from vid3d_cli.predictions.formats import Choices
from vid3d_cli.predictions.outputs import open_outputs
from vid3d_cli.predictions.report import page as pages
from vid3d_cli.predictions.report.thumbnails import MAX_THUMBNAILS, read_thumbnails
from vid3d_cli.recipe import Recipe, StreamRecipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.segments import SegmentRule
from vid3d_cli.video.process import Decoders

HOSTILE = '</script><script>alert("x")</script><b>&amp; --> \u2028\u202e\n😀 שלום \ud800'
LABELS = ("walking", "running", "<b>jumping</b>", HOSTILE)


def make_result(video, best=(0, 1, 2, 1), streams=("rgb", "flow"), labels=LABELS, seconds=0.5, lost=0, start=0.0):
    """A result whose clips do not overlap, each of one label."""
    clips = []
    for i, k in enumerate(best):
        logits = np.full(len(labels), -1, np.float32)
        logits[k] = 2
        span = ClipSpan(i, 12 * i, 12, start + seconds * i, start + seconds * (i + 1))
        clips.append(ClipOutput(span, dict.fromkeys(streams, np.zeros(2, np.float32)), dict.fromkeys(streams, logits)))
    fused, pooled = pool_video(clips, Fusion.parse("1:1", "logits"))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return VideoResult(str(video), fused, pooled, tuple(labels), 25.0, 50, lost, recipe, ("it is HDR: convert it",))


class Page(HTMLParser):
    """What a parser that we did not write sees in a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], {}
        self.feed(Path(path).read_text("utf-8"))
        self.video = next((dict(a) for tag, a in self.attributes if tag == "video"), None)
        data = [text for (tag, kind), text in self.texts.items() if kind == "application/json"]
        self.data = json.loads(data[0]) if data else None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, attrs))

    def handle_data(self, text):
        if self.tags:
            key = (self.tags[-1], dict(self.attributes[-1][1]).get("type"))
            self.texts[key] = self.texts.get(key, "") + text

    @property
    def links(self):
        return [value for _, attrs in self.attributes for name, value in attrs if name in ("src", "href", "srcset")]


@pytest.fixture(scope="module")
def two_seconds(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", num_frames=50)


@pytest.fixture
def film(two_seconds, tmp_path):
    return Path(shutil.copy(two_seconds, tmp_path))


# What the files hold -------------------------------------------------------------------------------------------------


def test_segments_and_curves_are_those_of_the_result(film, tmp_path):
    result = make_result(film)
    result.save(tmp_path / "r.html")
    data = Page(tmp_path / "r.html").data
    assert [stream["name"] for stream in data["streams"]] == ["fused", "rgb", "flow"]
    shown = [
        (stream["name"], data["labels"][label], start / 1000, end / 1000)
        for stream in data["streams"]
        for start, end, label, _ in stream["segments"]
    ]
    expected = [(s.stream, s.label, s.start_seconds, s.end_seconds) for s in result.segments()]
    assert shown == [*expected[8:], *expected[:8]]  # fused comes first
    seen_first = list(class_colours([label for stream, label, *_ in shown if stream == "fused"]))
    assert data["labels"][: len(seen_first)] == seen_first  # the colour of a label is its place: equal in all outputs
    fused = data["streams"][0]
    assert fused["segments"][0][3] == round(1000 * result.segments()[-1].score)
    curves = result.curves("fused")
    assert fused["bounds"] == [0, 500, 1000, 1500, 2000]
    for label, curve in zip(data["labels"], fused["curves"], strict=False):
        np.testing.assert_allclose(curve, 1000 * curves.scores[:, LABELS.index(label)], atol=0.5)


def test_one_stream_is_shown_once(film, tmp_path):
    make_result(film, streams=("rgb",)).save(tmp_path / "r.html")
    assert [stream["name"] for stream in Page(tmp_path / "r.html").data["streams"]] == ["rgb"]
    assert "Whole video<" in (tmp_path / "r.html").read_text()
    make_result(film).save(tmp_path / "both.html")
    assert "Whole video, fused<" in (tmp_path / "both.html").read_text()


def test_lost_frames_warnings_and_recipe_are_said(film, tmp_path):
    make_result(film, lost=3).save(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    for words in ("3 frames were lost to damage", "It is HDR: convert it.", "<dt>resize</dt>", "vid3d 0.1"):
        assert words in text


def test_the_recipe_is_grouped_and_its_rate_is_a_number(film, tmp_path):
    result = make_result(film)
    streams = {stream: StreamRecipe(f"{stream}.pt", "4a", "RGB to [-1, 1]") for stream in ("rgb", "flow")}
    recipe = dataclasses.replace(result.recipe, fps="25/2", streams=streams)
    dataclasses.replace(result, recipe=recipe, fps=12.5).save(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert '<dt>fps</dt><dd dir="auto">12.5</dd>' in text
    terms = re.findall(r"<dt.*?>(.+?)</dt>", text)
    stream = ["weights", "weights_sha256", "normalisation"]
    assert terms[-9:] == ["numerics", "streams.rgb", *stream, "streams.flow", *stream]


@pytest.mark.parametrize("name", ["a b#c?d%20&<b>\"'.mp4", b"caf\xe9.mp4".decode("utf-8", "surrogateescape")])
def test_hostile_names_and_labels_are_inert(film, tmp_path, name):
    video = tmp_path / "in put" / name
    video.parent.mkdir()
    film.rename(video)
    make_result(video, best=(3, 2, 3)).save(tmp_path / "reports" / "r.html")
    page = Page(tmp_path / "reports" / "r.html")
    assert page.tags.count("script") == 2  # its data and its code
    assert page.tags.count("b") == 3  # the best classes of the video
    assert page.data["labels"][0].startswith('</script><script>alert("x")')
    assert "\u202e" not in (tmp_path / "reports" / "r.html").read_text("utf-8")
    url = urlsplit(urljoin((tmp_path / "reports" / "r.html").as_uri(), page.video["src"]))
    assert (url.query, url.fragment) == ("", "")
    assert Path(unquote(url.path, errors="surrogateescape")) == video


def test_no_address_but_that_of_the_video(film, tmp_path):
    make_result(film).save(tmp_path / "r.html")
    assert Page(tmp_path / "r.html").links == ["film.mp4"]
    policy = re.search(r'Content-Security-Policy" content="(.+?)"', (tmp_path / "r.html").read_text())[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_embed_holds_the_video(film, tmp_path):
    make_result(film).save(tmp_path / "r.html", embed=True)
    kind, _, data = Page(tmp_path / "r.html").video["src"].partition(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data) == film.read_bytes()


def test_embed_refuses_what_no_browser_plays(film, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MAX_EMBEDDED_BYTES", 1000)
    with pytest.raises(errors.TooLarge, match=r"film\.mp4: .*leave out --embed"):
        make_result(film).save(tmp_path / "r.html", embed=True)
    assert not (tmp_path / "r.html").exists()


def test_a_video_that_is_gone_has_a_report(tmp_path, caplog):
    make_result(tmp_path / "gone.mp4").save(tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert (page.video, page.data["thumbnails"], len(page.data["streams"][0]["segments"])) == (None, [], 4)
    text = (tmp_path / "r.html").read_text()
    assert "The video is gone, or is no file that can be read again, so this page has no player." in text
    assert "It has no thumbnails either." in text
    assert re.search(r"gone\.mp4: .*; its report has no thumbnails", caplog.text)


def test_a_video_that_is_gone_cannot_be_embedded(tmp_path):
    with pytest.raises(errors.VideoNotFound):
        make_result(tmp_path / "gone.mp4").save(tmp_path / "r.html", embed=True)
    assert not (tmp_path / "r.html").exists()


def test_a_playlist_is_read_as_the_video_was(film, tmp_path):
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile film.mp4\n")
    for name, allow_playlists, num_thumbnails in (("no.html", False, 0), ("yes.html", True, 8)):
        make_result(tmp_path / "list.ffconcat").save(tmp_path / name, allow_playlists=allow_playlists)
        assert len(Page(tmp_path / name).data["thumbnails"]) == num_thumbnails


def test_a_server_that_says_nothing_holds_a_report_for_the_timeout_only(caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/film.mp4"
        writer = pages.Report(io.StringIO(), Choices(SegmentRule(), timeout=1.0), None)
        writer.write(make_result(url), "film")
    assert "no progress for 1 s" in caplog.text
    assert "It has no thumbnails either." in writer.stream.getvalue()


def test_a_pipe_is_not_read_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    make_result(tmp_path / "pipe").save(tmp_path / "r.html")
    assert Page(tmp_path / "r.html").data["thumbnails"] == []
    assert "The video is gone, or is no file that can be read again" in (tmp_path / "r.html").read_text()


@pytest.mark.exhaustive
def test_a_url_has_thumbnails_and_no_player(film, tmp_path):
    with serve(partial(SimpleHTTPRequestHandler, directory=film.parent)) as server:
        make_result(f"{server.url}/film.mp4?password=secret").save(tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert (page.video, page.links, len(page.data["thumbnails"])) == (None, [], 8)
    assert "so this page has no player" in (tmp_path / "r.html").read_text()
    assert "secret" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("rotation", "seek_from"), [(0, 600.0), (90, 0.0)])
def test_thumbnails_show_the_frames_of_their_times(tmp_path, monkeypatch, rotation, seek_from):
    monkeypatch.setattr("vid3d_cli.predictions.report.thumbnails.SEEK_FROM_SECONDS", seek_from)
    path = write_video(tmp_path / "v.mp4", num_frames=200, width=132, height=176, rotation_degrees=rotation)
    with Decoders() as decoders:
        info, thumbnails = read_thumbnails(decoders, str(path), 5.5, 8.0)
    assert (info.width, info.height) == (132, 176)
    assert len(thumbnails) == 10
    assert thumbnails[0][0] == pytest.approx(5.5, abs=0.25)
    for seconds, jpeg in thumbnails:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (160, 120, 3)
        assert read_index(image) == int(seconds * 25 + 1e-6)


def test_a_frame_that_several_seeks_find_is_stored_once(tmp_path, monkeypatch):
    monkeypatch.setattr("vid3d_cli.predictions.report.thumbnails.SEEK_FROM_SECONDS", 0.0)
    path = write_video(tmp_path / "gap.mkv", times_seconds=[0.0, 0.04, 2.0, 2.04])
    with Decoders() as decoders:
        _, thumbnails = read_thumbnails(decoders, str(path), 0.0, 2.0)
    assert len(thumbnails) == len({seconds for seconds, _ in thumbnails}) > 1


@pytest.mark.exhaustive
def test_a_page_of_ten_hours_is_below_a_megabyte(film, tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    jpeg = noise.bytes(300_000 // MAX_THUMBNAILS)
    with Decoders() as decoders:
        info, _ = read_thumbnails(decoders, str(film), 0, 1)
    monkeypatch.setattr(pages, "read_thumbnails", lambda *_: (info, [(0, jpeg)] * 40))
    best = noise.integers(0, 4, 14_000)
    make_result(film, best=best, seconds=2.56).save(tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 1_000_000
    fused = Page(tmp_path / "r.html").data["streams"][0]
    assert len(fused["segments"]) == 2000 < fused["num_segments"]
    assert len(fused["curves"][0]) == len(fused["bounds"]) - 1 == 1000


def write_reports(folder, results, names=None, **choices):
    names = names or [Path(result.video).stem for result in results]
    videos = dict.fromkeys(names, "x.mp4")
    with open_outputs([folder], ["html"], Choices(SegmentRule(), **choices), videos) as outputs:
        for result, name in zip(results, names, strict=False):
            outputs.write(result, name)


def test_an_overview_lists_and_links_all_reports(film, tmp_path):
    out = tmp_path / "out"
    names = ["sub/a & <b>#1", "b", "never reached"]
    write_reports(out, [make_result(film), make_result(film, best=(1, 1), lost=2)], names)
    page = Page(out / "index.html")
    links = [out / unquote(row["href"]) for row in page.data["rows"]]
    assert links == [out / "sub/a & <b>#1.html", out / "b.html"]
    assert all(link.is_file() for link in links)
    assert [row["cells"] for row in page.data["rows"]] == ["1" * 30 + "0" * 30 + "2" * 30 + "0" * 30, "0" * 120]
    assert [page.data["labels"][row["label"]] for row in page.data["rows"]] == ["running", "running"]
    assert "never reached" in (out / "index.html").read_text()
    assert "other</li>" not in (out / "index.html").read_text()
    assert [Page(link).links[0] for link in links] == ["../index.html", "index.html"]
    assert page.tags.count("b") == 0


def test_the_grey_of_an_overview_is_in_its_legend(film, tmp_path):
    write_reports(tmp_path, [make_result(film, best=range(9), labels=[f"l{k}" for k in range(9)])])
    assert 'class="other"><span class="dot"></span>other</li>' in (tmp_path / "index.html").read_text()


def test_an_overview_is_written_after_an_interrupt(film, tmp_path):
    videos = {"a": "a.mp4", "b": "b.mp4"}
    with (
        pytest.raises(KeyboardInterrupt),
        open_outputs([tmp_path / "o"], ["html"], Choices(SegmentRule()), videos) as outputs,
    ):
        outputs.write(make_result(film), "a")
        raise KeyboardInterrupt
    assert [row["href"] for row in Page(tmp_path / "o" / "index.html").data["rows"]] == ["a.html"]


def test_a_video_named_like_the_overview_is_refused(tmp_path):
    with (
        pytest.raises(errors.UsageError, match=r"^in/index\.mp4: .*index\.html, the overview .*: rename the video"),
        open_outputs([tmp_path / "o"], ["html"], Choices(SegmentRule()), {"a": "in/a.mp4", "index": "in/index.mp4"}),
    ):
        pass


# In Chromium ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if program is None:
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page; at the end, there were no messages of the console and no requests to a network."""
    complaints, contexts = [], []

    def open_page(path, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_remote(request.url) else None)
        page.goto(Path(path).as_uri())
        return page

    def is_remote(url):
        return urlsplit(url).scheme not in ("file", "data", "blob")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def report(tmp_path):
    """Four seconds, in which the label changes every half second; Chromium plays VP8 everywhere."""
    film = write_video(tmp_path / "film.webm", num_frames=100, width=320, height=240)
    make_result(film, best=(0, 1, 2, 1, 0, 1, 3, 0)).save(tmp_path / "r.html")
    return tmp_path / "r.html"


def wait_until(page, condition):
    """As `page.wait_for_function`, which needs the eval that the page's policy forbids."""
    give_up = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < give_up, condition
        page.wait_for_timeout(20)


def video_seconds(page):
    wait_until(page, "!document.querySelector('video').seeking")
    return page.evaluate("document.querySelector('video').currentTime")


def wait_for_player(page):
    wait_until(page, "document.querySelector('video').readyState >= 2")
    page.wait_for_timeout(50)  # for its event


@pytest.mark.exhaustive
def test_clicks_seek_and_the_label_follows(open_page, report):
    page = open_page(report)
    wait_for_player(page)
    rows = page.locator("#rows tr")
    assert rows.count() == 8
    rows.nth(2).click()
    assert video_seconds(page) == pytest.approx(1.0, abs=0.1)
    assert page.locator("#label").inner_text() == "<b>jumping</b>"
    assert rows.nth(2).get_attribute("aria-current") == "true"
    for part, y in {"strip": 10, "lanes": 90, "curves": 180}.items():
        for share in (0.2, 0.8):
            box = page.locator("#time").bounding_box()
            page.locator("#time").click(position={"x": share * box["width"], "y": y})
            assert video_seconds(page) == pytest.approx(4 * share, abs=0.1), part
            assert page.locator("#playhead").bounding_box()["x"] == pytest.approx(
                box["x"] + share * box["width"], abs=9
            )
    page.evaluate("document.querySelector('video').currentTime = 3.2")
    wait_until(page, "document.querySelector('#label').textContent.startsWith('</script>')")


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", ["webm", "mkv"])
@pytest.mark.parametrize("first", [0.0, 0.6])
def test_the_frame_of_a_segment_is_shown(open_page, tmp_path, first, suffix):
    """Also where the first frame is late: the player counts from the start of the file, vid3d from the first frame."""
    times = [first + i / 25 for i in range(50)]
    sound = {"with_audio": True} if suffix == "mkv" else {}
    film = write_video(tmp_path / f"f.{suffix}", times_seconds=times, width=320, height=240, codec="libvpx", **sound)
    make_result(film).save(tmp_path / "r.html", embed=True)  # a script may read the pixels of an embedded video
    page = open_page(tmp_path / "r.html")
    wait_for_player(page)
    for row in (2, 1, 3):
        page.locator("#rows tr").nth(row).click()
        assert video_seconds(page) == pytest.approx(0.5 * row + first, abs=0.1)
        pixels = page.evaluate(
            """() => {
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [320, 240];
                const context = canvas.getContext("2d");
                context.drawImage(document.querySelector("video"), 0, 0);
                return Array.from(context.getImageData(0, 0, 320, 240).data);
            }"""
        )
        shown = read_index(np.reshape(np.array(pixels, np.uint8), (240, 320, 4))[..., :3])
        assert shown == pytest.approx(12.5 * row, abs=1)


@pytest.mark.exhaustive
def test_the_label_follows_playback(open_page, report):
    page = open_page(report)
    wait_for_player(page)
    page.evaluate(
        """() => {
            window.seen = [];
            const video = document.querySelector("video");
            const label = document.querySelector("#label");
            const note = () => window.seen.push([label.textContent, video.currentTime]);
            new MutationObserver(note).observe(label, {childList: true});
            video.muted = true;
            return video.play();
        }"""
    )
    wait_until(page, "document.querySelector('video').currentTime > 1.2")
    seen = {}
    for label, seconds in page.evaluate("window.seen"):
        seen.setdefault(label, seconds)
    assert list(seen) == ["walking", "running", "<b>jumping</b>"]
    assert seen["running"] == pytest.approx(0.5, abs=0.3)  # a busy machine draws few frames
    assert seen["<b>jumping</b>"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.exhaustive
def test_the_page_is_drawn_once_a_frame(open_page, report):
    """However often the player says that its time has changed."""
    page = open_page(report)
    wait_for_player(page)
    page.evaluate(
        """() => {
            const video = document.querySelector("video");
            video.muted = video.loop = true;
            return video.play();
        }"""
    )
    for event in ["timeupdate", "seeked", "play"] * 3:
        page.evaluate(f"document.querySelector('video').dispatchEvent(new Event('{event}'))")
    calls = page.evaluate(
        """() => new Promise((resolve) => {
            let calls = 0;
            const ask = window.requestAnimationFrame.bind(window);
            window.requestAnimationFrame = (call) => ask((time) => {
                calls += 1;
                call(time);
            });
            ask(() => ask(() => {
                calls = 0;
                ask(() => resolve(calls));
            }));
        })"""
    )
    assert calls <= 1


@pytest.mark.exhaustive
def test_an_early_scrub_moves_no_label(open_page, report):
    """After a seek before the first frame, the player's time does not say when the first frame is."""
    page = open_page(report)
    wait_for_player(page)
    page.evaluate(
        """() => {
            const video = document.querySelector("video");
            video.addEventListener("loadedmetadata", () => (video.currentTime = 2.7), {once: true});
            video.load();
        }"""
    )
    wait_for_player(page)
    wait_until(page, "document.querySelector('#clock').textContent.startsWith('0:02.7')")
    page.locator("#rows tr").nth(2).click()
    assert video_seconds(page) == pytest.approx(1.0, abs=0.1)


@pytest.mark.exhaustive
def test_the_keyboard_plays_and_seeks(open_page, report):
    page = open_page(report)
    wait_for_player(page)
    page.evaluate("document.querySelector('video').muted = true")
    for key, seconds in [("j", 0.5), ("j", 1.0), ("k", 0.5), ("ArrowRight", 1.5), ("ArrowLeft", 0.5)]:
        page.keyboard.press(key)
        assert video_seconds(page) == pytest.approx(seconds, abs=0.1), key
    page.keyboard.press("Space")
    wait_until(page, "!document.querySelector('video').paused")
    page.keyboard.press("Space")
    wait_until(page, "document.querySelector('video').paused")
    page.locator("#time").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert video_seconds(page) == pytest.approx(0.5, abs=0.1)
    assert page.locator("#time").get_attribute("aria-valuetext").endswith("running")


@pytest.mark.exhaustive
def test_a_stream_is_chosen(open_page, report):
    page = open_page(report)
    page.get_by_role("button", name="flow").click()
    assert page.locator("#count").inner_text() == "8, flow"
    assert page.get_by_role("button", name="flow").get_attribute("aria-pressed") == "true"


@pytest.mark.exhaustive
def test_classes_that_overlap_do_not_hide_each_other(open_page, report):
    assert open_page(report).locator(".lane.chosen").bounding_box()["height"] < 30
    make_result(report.parent / "film.webm").save(report, multi_label=True, threshold=0.002, overwrite=True)
    page = open_page(report)
    parts = page.locator(".lane.chosen div")
    boxes = [part.bounding_box() for part in parts.all()]
    assert len(boxes) == 4  # each class, all the time
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            is_beside = a["x"] >= b["x"] + b["width"] - 1 or b["x"] >= a["x"] + a["width"] - 1
            assert is_beside or abs(a["y"] - b["y"]) >= a["height"] - 0.1
    assert all(parts.all_inner_texts())


@pytest.mark.exhaustive
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740), (844, 390)])
def test_the_player_is_in_sight_wherever_one_clicks_and_plays(open_page, report, width, height):
    page = open_page(report, viewport={"width": width, "height": height})
    wait_for_player(page)
    page.locator("#rows tr").last.click()
    is_seen = """() => {
        const box = document.querySelector("video").getBoundingClientRect();
        const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
        return box.top >= 0 && box.height > 100 && document.elementFromPoint(x, y)?.id === "video";
    }"""
    assert page.evaluate("scrollY") > 0
    assert page.evaluate(is_seen)
    assert page.locator("#rows tr").last.evaluate("row => row.getBoundingClientRect().bottom <= innerHeight")
    page.evaluate("document.querySelector('details').open = true")
    page.evaluate("scrollTo(0, 1e6)")
    assert page.evaluate(is_seen)


@pytest.mark.exhaustive
def test_a_report_without_segments_says_why(open_page, report):
    make_result(report.parent / "film.webm").save(report, min_seconds=100, overwrite=True)
    page = open_page(report)
    assert page.locator("#count").inner_text() == "No segment: lower --min-seconds or --threshold"
    assert not page.get_by_role("columnheader").first.is_visible()


@pytest.mark.exhaustive
def test_hebrew_stands_beside_its_swatch(open_page, report):
    make_result(report.parent / "film.webm", labels=("שלום", "b", "c", "d")).save(report, overwrite=True)
    page = open_page(report)
    for place in ("#classes .name", "#label"):
        gap = page.evaluate(
            f"""() => {{
                const element = document.querySelector("{place}");
                const range = document.createRange();
                range.selectNodeContents(element);
                return range.getBoundingClientRect().left - element.getBoundingClientRect().left;
            }}"""
        )
        assert gap < 5, place


@pytest.mark.exhaustive
def test_hostile_labels_are_text(open_page, report):
    page = open_page(report)
    assert page.locator("#rows tr").nth(6).inner_text().count("<script>") == 1
    assert page.evaluate("document.scripts.length") == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_screen_scrolls_sideways(open_page, report, scheme, width):
    write_reports(report.parent / "out", [make_result(report.parent / "film.webm")])
    for path in (report, report.parent / "out" / "index.html"):
        page = open_page(path, viewport={"width": width, "height": 740}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")


@pytest.mark.exhaustive
def test_an_embedded_video_plays(open_page, report):
    folder = report.parent / "elsewhere"
    make_result(report.parent / "film.webm").save(folder / "r.html", embed=True)
    (report.parent / "film.webm").unlink()
    page = open_page(folder / "r.html")
    wait_for_player(page)
    page.locator("#rows tr").nth(3).click()
    assert video_seconds(page) == pytest.approx(1.5, abs=0.1)


@pytest.mark.exhaustive
def test_thumbnails_stand_in_for_a_codec_that_cannot_play(open_page, tmp_path):
    film = write_video(tmp_path / "film.avi", num_frames=50, width=320, height=240)
    make_result(film).save(tmp_path / "r.html")
    page = open_page(tmp_path / "r.html")
    page.wait_for_selector("#viewer", state="visible")
    sentence = page.locator("#no-player").inner_text()
    assert "codec mpeg4" in sentence and "convert it to H.264" in sentence
    assert not page.locator("video").is_visible()
    for share, row in [(0.1, 0), (0.6, 2)]:
        page.locator("#time").click(position={"x": share * page.locator("#time").bounding_box()["width"], "y": 20})
        source = page.locator("#still").get_attribute("src")
        image = cv2.imdecode(np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
        assert read_index(image) / 25 == pytest.approx(2 * share, abs=0.3)
        assert page.locator("#rows tr").nth(row).get_attribute("aria-current") == "true"
    other = write_video(tmp_path / "converted.webm", num_frames=50, width=320, height=240)
    page.locator("#file").set_input_files(other)
    wait_for_player(page)
    assert page.locator("video").is_visible()


@pytest.mark.exhaustive
def test_the_overview_sorts_and_links(open_page, film, tmp_path):
    names = ["b", "a", "c"]
    results = [make_result(film, best=(0,) * n, lost=n) for n in (2, 4, 1)]
    write_reports(tmp_path / "out", results, names)
    page = open_page(tmp_path / "out" / "index.html")

    def shown():
        return page.locator("#videos td:first-child").all_inner_texts()

    assert shown() == ["b", "a", "c"]
    for button, expected in [("Video", "abc"), ("Video", "cba"), ("Length", "abc"), ("Length", "cba"), ("Lost", "abc")]:
        box = page.get_by_role("columnheader", name=button).bounding_box()
        page.mouse.click(box["x"] + (0.8 if button == "Video" else 0.3) * box["width"], box["y"] + box["height"] / 2)
        assert shown() == list(expected), button
    page.get_by_role("link", name="c").click()
    page.wait_for_selector("#rows tr")
    assert page.title().startswith("film.mp4")
    assert page.evaluate("document.querySelector('video').error") is None


def test_classes_of_equal_names_stay_apart(film, tmp_path):
    make_result(film, best=(0, 1, 2), labels=("same", "same", "other")).save(tmp_path / "r.html")
    data = Page(tmp_path / "r.html").data
    assert sorted(data["labels"]) == ["other", "same", "same"]
    assert data["num_classes"] == 3


def test_a_report_can_go_to_stdout(film, capsys):
    writer = pages.Report(io.StringIO(), Choices(SegmentRule()), None)
    writer.write(make_result(film), "film")
    assert film.as_uri() in writer.stream.getvalue()
