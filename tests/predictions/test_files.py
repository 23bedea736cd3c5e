"""Subtitles and annotation files, read back by PyAV, pympi and the standard library's parsers."""

import html
import io
import json
from datetime import datetime
from unittest.mock import Mock, patch
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import write_video

from vid3d_cli.errors import VideoNotFound
from vid3d_cli.fusion import Fusion, pool_video
from vid3d_cli.predictions.formats import Choices, find_writer
from vid3d_cli.predictions.outputs import open_outputs
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.segments import SegmentRule
from vid3d_cli.text import printable

LABELS = ("grooming", "a --> b", "<i>R&D</i> 跳舞 {\\an8}\\N")
HOSTILE = [
    *LABELS,
    "00:00:01.000 --> 00:00:02.000",
    "00:00:01,000 --> 00:00:02,000",
    "two\nlines\r\n\nthree",
    "NOTE",
    "]]></ANNOTATION_VALUE>",
    "quote\"'",
    "nul\0 esc\x1b \ufffe\uffff",
    "not utf-8 \udcff \ud800",
    "עברית \u202e emoji 🎉",
    "<b>",
    "&amp;",
    "{hidden} {Y:i}",
    "a|b",
    "",
]
WORD_JOINER = "\u2060"
without_probe = patch("vid3d_cli.predictions.boris.probe", new=Mock(side_effect=VideoNotFound("gone.mp4", "gone")))
"""Saves the start of a decoder process for a video that is not there."""

anything = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=20))


def make_result(
    best=(0, 0, 1, 2), *, labels=LABELS, spans=None, streams=("rgb", "flow"), video="clips/a.mp4", second=()
):
    """A result whose clip i shows class best[i], and class second[i] as well."""
    spans = spans or [(0.64 * i, 0.64 * (i + 1)) for i in range(len(best))]
    logits = np.full((len(best), len(labels)), -9, np.float32)
    logits[np.arange(len(best)), list(best)] = 0
    logits[np.arange(len(second)), list(second)] = 0
    clips = [
        ClipOutput(ClipSpan(i, 16 * i, 16, *span), {}, dict.fromkeys(streams, logits[i]))
        for i, span in enumerate(spans)
    ]
    fused, pooled = pool_video(clips, Fusion.parse("1:1", "logits"))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return VideoResult(video, fused, pooled, tuple(labels), 25.0, 64, 0, recipe)


def text_of(form, *results, rule=SegmentRule()):  # noqa: B008
    stream = io.StringIO()
    writer = find_writer(form)(stream, Choices(rule), None)
    for number, result in enumerate(results):
        writer.write(result, f"video {number}")
    writer.close()
    return stream.getvalue()


def spans_ms(result, rule=SegmentRule(), stream="fused"):  # noqa: B008
    return [
        (round(1000 * s.start_seconds), round(1000 * s.end_seconds), s.label)
        for s in result.segments_by(rule, [stream])
    ]


# Subtitles -----------------------------------------------------------------------------------------------------------

FFMPEG_NAMES = {"vtt": "webvtt", "srt": "srt"}


def read_cues(form, text):
    """(start, end, text, text as players show it) of each cue; FFmpeg turns both formats into ASS."""
    with av.open(io.BytesIO(text.encode()), format=FFMPEG_NAMES[form]) as container:
        cues = []
        for packet in container.demux(container.streams.subtitles[0]):
            if packet.size:
                start, end = (int(1000 * x * packet.time_base) for x in (packet.pts, packet.pts + packet.duration))
                (shown,) = packet.decode()
                cues.append((start, end, bytes(packet).decode(), shown.ass.decode().split(",", 8)[8]))
        return cues


def visible(text):
    return text.replace(WORD_JOINER, "").strip(" ")


@pytest.mark.parametrize("form", ["vtt", "srt"])
def test_cues_are_the_fused_segments(form, tmp_path):
    result = make_result([0, 0, 1, 2] * 30, spans=[(3333.3335 * i, 3333.3335 * (i + 1)) for i in range(120)])
    result.save(tmp_path / f"a.{form}")
    cues = read_cues(form, (tmp_path / f"a.{form}").read_text())
    assert [(start, end) for start, end, *_ in cues] == [span[:2] for span in spans_ms(result)]
    assert len(cues) == 90
    assert cues[-1][1] > 100 * 3_600_000
    assert cues[0][2] == "grooming (100 %)"


@pytest.mark.parametrize("form", ["vtt", "srt"])
@given(label=anything)
@settings(max_examples=40, deadline=None)
def test_a_label_is_shown_as_it_is(form, label):
    result = make_result([0, 1, 0], labels=[label, "other"])
    expected = [f"{printable(name)} (100 %)" for name in (label, "other", label)]
    cues = read_cues(form, text_of(form, result))
    assert [cue[:2] for cue in cues] == [span[:2] for span in spans_ms(result)]
    if form == "vtt":
        shown = [html.unescape(cue[2]) for cue in cues]
    else:  # ASS hides what is in braces
        shown = [cue[3] for cue in cues]
        expected = [text.replace("{", "(").replace("}", ")") for text in expected]
    assert [visible(text) for text in shown] == [visible(text) for text in expected]


def test_only_what_players_obey_is_changed_in_a_srt():
    labels = ["R&D & x", "a -> b -- c", "&lt;", "&#60;", "<i>", "a --> b"]
    lines = text_of("srt", make_result(range(6), labels=labels)).splitlines()[2::4]
    expected = ["R&D & x", "a -> b -- c", "&~lt;", "&~#60;", "<~i>", "a --~> b"]
    assert [line.removesuffix(" (100 %)").replace(WORD_JOINER, "~") for line in lines] == expected


@pytest.mark.parametrize("form", ["vtt", "srt"])
def test_a_cue_lasts_at_least_a_millisecond(form):
    result = make_result([0, 1], spans=[(1, 1.0001), (1.0001, 1.0002)])
    cues = read_cues(form, text_of(form, result))
    assert [cue[:2] for cue in cues] == [(1000, 1001)] * 2


def test_overlapping_classes_are_overlapping_cues():
    rule = SegmentRule(multi_label=True)
    cues = read_cues("vtt", text_of("vtt", make_result([0, 0], second=[1, 1]), rule=rule))
    assert [cue[:3] for cue in cues] == [(0, 1280, "grooming (50 %)"), (0, 1280, "a --&gt; b (50 %)")]


@pytest.mark.parametrize("form", ["vtt", "srt"])
def test_a_video_without_segments_has_a_file_without_cues(form, tmp_path):
    make_result([0], second=[1]).save(tmp_path / f"a.{form}", threshold=0.9)
    assert (tmp_path / f"a.{form}").read_text() == {"vtt": "WEBVTT\n\n", "srt": "\n"}[form]


# ELAN ----------------------------------------------------------------------------------------------------------------


def read_tiers(text):
    """Return the annotations of each tier, after checking what ELAN's schema demands."""
    root = ElementTree.fromstring(text)
    kinds = [child.tag for child in root]
    num_tiers = kinds.count("TIER")
    ends = ["LINGUISTIC_TYPE", "LANGUAGE", "CONTROLLED_VOCABULARY"]
    assert kinds == ["HEADER", "TIME_ORDER", *["TIER"] * num_tiers, *ends]
    assert {"AUTHOR", "DATE", "VERSION", "FORMAT"} <= set(root.attrib)
    assert datetime.fromisoformat(root.attrib["DATE"]).tzinfo
    assert [child.tag for child in root[0]] == ["MEDIA_DESCRIPTOR", "PROPERTY"]
    assert root[0].attrib["TIME_UNITS"] == "milliseconds"
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root[1]}
    assert len(slots) == len(root[1])
    assert list(slots.values()) == sorted(slots.values())
    annotations = root.findall("TIER/ANNOTATION/ALIGNABLE_ANNOTATION")
    assert len({a.attrib["ANNOTATION_ID"] for a in annotations}) == len(annotations)
    used = [a.attrib[f"TIME_SLOT_REF{n}"] for a in annotations for n in (1, 2)]
    assert sorted(used) == sorted(slots)
    tiers = {}
    for tier in root.iter("TIER"):
        assert tier.attrib["LINGUISTIC_TYPE_REF"] == root[-3].attrib["LINGUISTIC_TYPE_ID"]
        assert tier.attrib["TIER_ID"] not in tiers
        tiers[tier.attrib["TIER_ID"]] = spans = [
            (slots[a.attrib["TIME_SLOT_REF1"]], slots[a.attrib["TIME_SLOT_REF2"]], a.findtext("ANNOTATION_VALUE"))
            for a in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        edges = [edge for start, end, _ in spans for edge in (start, end)]
        assert edges == sorted(edges)
        assert all(start < end for start, end, _ in spans)
    return tiers


def test_pympi_reads_a_tier_per_stream(tmp_path):
    pympi = pytest.importorskip("pympi")
    result = make_result(video=str(tmp_path / "b" / "a.mp4"))
    result.save(tmp_path / "a.eaf")
    eaf = pympi.Eaf(tmp_path / "a.eaf")
    assert list(eaf.get_tier_names()) == ["rgb", "flow", "fused"]
    for stream in eaf.get_tier_names():
        assert sorted(eaf.get_annotation_data_for_tier(stream)) == spans_ms(result, stream=stream)
    assert eaf.get_linked_files() == [
        {"MEDIA_URL": f"file://{tmp_path}/b/a.mp4", "MIME_TYPE": "video/mp4", "RELATIVE_MEDIA_URL": "./b/a.mp4"}
    ]


def test_pympi_reads_the_classes_to_choose_a_label_from(tmp_path):
    pympi = pytest.importorskip("pympi")
    make_result([0], labels=["grooming", "a --> b", "two\nlines", r"two\nlines"]).save(tmp_path / "a.eaf")
    eaf = pympi.Eaf(tmp_path / "a.eaf")
    (kind,) = eaf.get_linguistic_type_names()
    name = eaf.get_parameters_for_linguistic_type(kind)["CONTROLLED_VOCABULARY_REF"]
    entries = eaf.get_cv_entries(name).values()
    assert [value for ((value, _, _),), _ in entries] == ["grooming", "a --> b", r"two\nlines"]


def test_one_stream_is_one_tier():
    assert list(read_tiers(text_of("eaf", make_result(streams=("flow",))))) == ["flow"]


def test_classes_that_overlap_have_a_tier_each():
    result = make_result([0, 1, 0], second=[1, 1, 1], streams=("rgb",))
    tiers = read_tiers(text_of("eaf", result, rule=SegmentRule(multi_label=True)))
    assert tiers == {
        "rgb: grooming": [(0, 640, "grooming"), (1280, 1920, "grooming")],
        "rgb: a --> b": [(0, 1920, "a --> b")],
    }


def test_a_tier_does_not_overlap_itself_below_a_millisecond():
    spans = [(1 + 0.0001 * i, 1 + 0.0001 * (i + 1)) for i in range(4)]
    assert [a[:2] for a in read_tiers(text_of("eaf", make_result([0, 1, 2, 0], spans=spans)))["fused"]] == [
        (1000, 1001),
        (1001, 1002),
        (1002, 1003),
        (1003, 1004),
    ]


@given(label=anything, video=anything, multi_label=st.booleans())
@settings(max_examples=40, deadline=None)
def test_xml_holds_any_label_and_name(label, video, multi_label):
    result = make_result([0, 1], labels=[label, "other"], video=f"{video}.avi")
    text = text_of("eaf", result, rule=SegmentRule(multi_label=multi_label)).encode()
    values = [value for spans in read_tiers(text).values() for *_, value in spans]
    assert values == [printable(label), "other"] * 3


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("https://me:secret@host/a.webm", {"MEDIA_URL": "https://host/a.webm", "MIME_TYPE": "video/webm"}),
        ("/v/a.unknown", {"MEDIA_URL": "file:///v/a.unknown", "MIME_TYPE": "unknown"}),
    ],
)
def test_elan_finds_the_media(video, expected):
    root = ElementTree.fromstring(text_of("eaf", make_result(video=video)))
    assert root.find("HEADER/MEDIA_DESCRIPTOR").attrib == expected


# BORIS ---------------------------------------------------------------------------------------------------------------


def test_a_boris_project_has_an_observation_per_video(tmp_path):
    heard = write_video(tmp_path / "heard.mp4", num_frames=60, fps=30, with_audio=True)
    (tmp_path / "b").mkdir()
    silent = write_video(tmp_path / "b" / "é.avi", num_frames=50, fps=25)
    results = [make_result(video=str(path)) for path in (heard, silent)]
    choices = Choices(SegmentRule())
    videos = {"heard": str(heard), "b/é": str(silent)}
    with open_outputs([tmp_path / "x.boris"], [], choices, videos) as outputs:
        outputs.write(results[0], "heard")
        outputs.write(results[1], "b/é")
    project = json.loads((tmp_path / "x.boris").read_text(encoding="ascii"))
    assert project["project_format_version"] == "7.0"
    behaviors = project["behaviors_conf"]
    assert [behaviors[str(k)]["code"] for k in range(3)] == [*LABELS]
    assert len({behavior["key"] for behavior in behaviors.values()}) == 3
    one, other = (project["observations"][name] for name in ("heard", "b/é"))
    assert one["file"]["1"] == ["heard.mp4"]
    assert other["file"]["1"] == ["b/é.avi"]
    assert one["media_info"]["length"]["heard.mp4"] == pytest.approx(2, abs=0.05)
    assert one["media_info"]["fps"] == {"heard.mp4": 30.0}
    assert one["media_info"]["hasAudio"] == {"heard.mp4": True}
    assert other["media_info"]["hasAudio"] == {"b/é.avi": False}
    assert one["events"] == [
        [0.0, "", "grooming", "", "score 1.000", 0],
        [1.28, "", "grooming", "", "", 38],
        [1.28, "", "a --> b", "", "score 1.000", 38],
        [1.92, "", "a --> b", "", "", 58],
        [1.92, "", LABELS[2], "", "score 1.000", 58],
        [2.56, "", LABELS[2], "", "", 77],
    ]


@without_probe
def test_a_video_that_is_gone_keeps_its_events():
    (observation,) = json.loads(text_of("boris", make_result()))["observations"].values()
    assert observation["media_info"]["length"] == {}
    assert [event[5] for event in observation["events"]] == ["NA"] * 6


@without_probe
@pytest.mark.parametrize("multi_label", [False, True])
def test_states_start_and_stop_in_turn(multi_label):
    spans = [(0, 1), (1, 1), (1, 2), (2, 3), (3, 3.0001)]
    result = make_result([0, 1, 0, 1, 0], second=[1, 1, 1], spans=spans)
    project = json.loads(text_of("boris", result, rule=SegmentRule(multi_label=multi_label)))
    events = project["observations"]["video 0"]["events"]
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    for label in ("grooming", "a --> b"):
        its_events = [event for event in events if event[2] == label]
        assert [bool(event[4]) for event in its_events] == [True, False] * (len(its_events) // 2)


@without_probe
def test_behaviors_have_no_pipe_and_distinct_keys():
    labels = [f"a|{n}" for n in range(100)]
    project = json.loads(text_of("boris", make_result([0, 1], labels=labels)))
    behaviors = list(project["behaviors_conf"].values())
    keys = [behavior["key"] for behavior in behaviors if behavior["key"]]
    assert len(keys) == len(set(keys)) == 62
    codes = {behavior["code"] for behavior in behaviors}
    assert len(codes) == 100
    assert not any("|" in code for code in codes)
    assert {event[2] for event in project["observations"]["video 0"]["events"]} <= codes


# ActivityNet and FiftyOne --------------------------------------------------------------------------------------------


def test_activitynet_detections_are_the_fused_segments():
    result = make_result()
    data = json.loads(text_of("json", result, make_result([1])))
    assert list(data) == ["version", "external_data", "results"]
    assert data["external_data"] == {}
    assert list(data["results"]) == ["video 0", "video 1"]
    for found, segment in zip(data["results"]["video 0"], result.segments_by(SegmentRule(), ["fused"]), strict=True):
        assert found == {
            "label": segment.label,
            "score": round(segment.score, 6),
            "segment": [round(segment.start_seconds, 6), round(segment.end_seconds, 6)],
        }


def test_fiftyone_labels_are_the_fused_segments():
    data = json.loads(text_of("fiftyone.json", make_result([0, 0, 1])))
    score = pytest.approx(1, abs=1e-3)
    assert data == {
        "labels": {
            "video 0": [
                {"label": "grooming", "confidence": score, "timestamps": [0.0, 1.28]},
                {"label": "a --> b", "confidence": score, "timestamps": [1.28, 1.92]},
            ]
        }
    }


@without_probe
@pytest.mark.parametrize("form", ["json", "fiftyone.json", "boris"])
@pytest.mark.parametrize("num_videos", [0, 1, 2])
def test_an_interrupted_run_leaves_a_whole_object(form, num_videos, tmp_path):
    path = tmp_path / f"a.{form}"
    videos = {"a": "a.mp4", "b": "b.mp4"}
    with pytest.raises(KeyboardInterrupt), open_outputs([path], [], Choices(SegmentRule()), videos) as outputs:
        for name in ["a", "b"][:num_videos]:
            outputs.write(make_result(), name)
        raise KeyboardInterrupt
    if not num_videos:
        assert not path.exists()
        return
    assert list(json.loads(path.read_bytes())[find_writer(form).member]) == ["a", "b"][:num_videos]


@without_probe
@pytest.mark.parametrize("form", ["json", "fiftyone.json", "boris"])
@given(label=anything, name=anything)
@settings(max_examples=25, deadline=None)
def test_json_holds_any_label_and_name(form, label, name):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="")
    writer = find_writer(form)(stream, Choices(SegmentRule()), None)
    writer.write(make_result([0], labels=[label, "other"]), name)
    stream.flush()
    assert name in json.loads(raw.getvalue() + b"}}")[writer.member]  # flushed before the end
    writer.close()
    stream.flush()
    entry = json.loads(raw.getvalue())[writer.member][name]
    if form != "boris":
        assert [found["label"] for found in entry] == [label]
