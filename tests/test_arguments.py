"""Arguments from Python: every wrong one is a UsageError that names it, whatever was given."""

import dataclasses
import inspect
import itertools
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vid3d_cli as vid3d
from vid3d_cli.arguments import hints_of

SLOW = pytest.mark.exhaustive
MODEL = "s3d_mini.camera_motion"
ODD = [
    *(None, "", "x", "3", "1/0", "\0", "\udcff", b"x", True, 0, -1, 3, 2.5, float("nan"), float("inf"), Fraction(1, 3)),
    *((1, 2), [], {}, {"rgb": 3}, {"rgb": None}, {3: "x"}, [None], ["a", 3], Path("x"), object(), print),
    *(np.float16, np.ndarray, Decimal("1.5"), Decimal("NaN"), Fraction(10**400), {"a": 1}.keys(), {"a": 1}.values()),
    *(np.int64(0), np.int64(16), np.float32(2), np.array([1, 2]), np.zeros((2, 2)), np.array(["a", "b"]), np.str_("x")),
]
FIELDS = [field.name for field in dataclasses.fields(vid3d.Options)]
JOB_OPTIONS = ["out", "jobs", "timeout", "on_event", "dtype", "concat", "layout", "overwrite", "redo_failed", "shard"]
JOB_OPTIONS += ["claim", "stale_after", "failures", "engine", "ray_address", "on_failure", "on_clips", "videos", "typo"]


def call(function, *args, **kwargs):
    """Return the message of a refusal, or None; any error but vid3d's own fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*args, **kwargs)
    except vid3d.Vid3dError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_every_odd_option_works_or_is_a_usage_error(name):
    for value in ODD:
        call(vid3d.make_plan, **{"model": MODEL, name: value})


@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD), max_size=4))
def test_odd_options_together_work_or_are_usage_errors(options):
    call(vid3d.make_plan, **{"model": MODEL, **options})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name in ("timeout", "jobs") else ()) for name in JOB_OPTIONS]
)
def test_every_odd_argument_of_a_job_is_a_usage_error_or_works(tmp_path, monkeypatch, tiny_model, name):
    monkeypatch.chdir(tmp_path)
    for value, out in itertools.product(ODD, [{"out": "f.npy"}, {}]):
        if isinstance(value, (str, Path)) and name in ("out", "ray_address", "engine", "failures"):
            continue  # they name something
        if name.startswith("on_") and isinstance(value, type):
            continue  # it is called, and its errors are the caller's
        call(vid3d.extract, **{"videos": "missing.mp4", "model": MODEL, "streams": "rgb", **out, name: value})


PUBLIC = [
    (vid3d.classify, {"video": "missing.mp4", "model": MODEL}),
    (vid3d.load, {"model": MODEL}),
    (vid3d.create_model, {"name": "s3d_mini", "weights": None}),
    (vid3d.optical_flow, {"grey": np.zeros((2, 16, 16), np.uint8), "method": "tvl1"}),
    (vid3d.open_store, {"path": "missing.npy"}),
    (vid3d.probe, {"video": "missing.mp4"}),
    (vid3d.top_k, {"logits": np.float32([1, 2]), "labels": ["a", "b"], "k": 1}),
    (vid3d.Fusion, {"weights": {"rgb": 1, "flow": 1}}),
    (vid3d.Fusion.parse, {"text": "1:1"}),
    (vid3d.VideoReader, {"video": "missing.mp4"}),
]


@pytest.mark.parametrize(
    ("function", "usual"),
    [
        pytest.param(*item, id=item[0].__qualname__, marks=SLOW if item[0] in (vid3d.classify, vid3d.probe) else ())
        for item in PUBLIC
    ],
)
def test_every_odd_argument_of_every_function_is_a_usage_error_or_works(tiny_model, function, usual):
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    for name, value in itertools.product(names, ODD):
        if name != "decoders":
            call(function, **{**usual, name: value})
    if function is not vid3d.Fusion:  # a dataclass, which raises Python's own TypeError
        assert "typo" in call(function, **usual, typo=1)
        if parameters[names[0]].default is inspect.Parameter.empty:
            assert next(iter(usual)) in call(function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "16"}, "window='16': give an int or None"),
        ({"window": 0}, "window=0: give 1 or more frames"),
        ({"window": True}, "window=True: give an int or None"),
        ({"fuse": (1, 2)}, "fuse=(1, 2): give a str"),
        ({"streams": 3}, "streams=3: give a str"),
        ({"fps": []}, "fps=[]: give a str or a number or a Fraction or None"),
        ({"weights": "my.pt"}, "weights='my.pt': give a dict of str to str or path"),
        ({"labels": [1]}, "labels=[1]: give a str or a path or a list of str or None"),
        ({"crops": 2.5}, "crops=2.5: give an int or a str"),
        ({"crops": True}, "crops=True: give an int or a str"),
        ({"device": 0}, "device=0: give a str"),
        ({"model": None}, "model=None: give a str"),
        ({"flow_bound_px": float("nan")}, "flow_bound_px=nan: give 0.01 or more pixels"),
        ({"keep_crops": True}, "--keep-crops needs several crops: give --crops 3, 10, or a list, or --no-keep-crops"),
        ({"start_seconds": 2.0, "end_seconds": 1.0}, "--end 1: give an end after the start, 2 s"),
        ({"end_seconds": float("inf")}, "--end inf: give seconds (90, 1.5), 1:30 or 1:02:03.5"),
        ({"end_seconds": "inf"}, "--end inf: give seconds (90, 1.5), 1:30 or 1:02:03.5"),
        ({"flow_bound_px": float("inf")}, "flow_bound_px=inf: give 0.01 or more pixels"),
        ({"flow": np.float16}, "flow=<class 'numpy.float16'>: give a str"),
        ({"weights": {"flow": "my --end file.pt"}}, "--weights flow=my --end file.pt: no such file"),
    ],
)
def test_a_message_names_what_was_wrong(options, message):
    assert call(vid3d.make_plan, **{"model": MODEL, **options}) == message


def test_numbers_of_numpy_and_paths_are_taken(tmp_path):
    plan = vid3d.make_plan(
        model=np.str_(MODEL),
        window=np.int32(32),
        start_seconds=np.float32(1.5),
        fps=np.int64(25),
        dense=np.bool_(False),
    )
    assert plan == vid3d.make_plan(model=MODEL, window=32, start_seconds=1.5, fps=25)
    assert [type(value) for value in (plan.window, plan.start_seconds, plan.dense)] == [int, float, bool]
    (tmp_path / "own.txt").write_text("a\nb\n")
    assert vid3d.make_plan(labels=tmp_path / "own.txt").labels == ("a", "b")
    assert vid3d.make_plan(labels=np.array(["a", "b"])).labels == ("a", "b")
    assert vid3d.make_plan(labels={"a": 1, "b": 2}.keys()).labels == ("a", "b")


@pytest.mark.parametrize("exact", [Fraction(3, 2), Decimal("1.5")])
def test_exact_numbers_are_taken(exact):
    options = {"start_seconds": exact, "end_seconds": 2 * exact, "flow_bound_px": exact}
    plan = vid3d.make_plan(model=MODEL, **options)
    assert plan == vid3d.make_plan(model=MODEL, start_seconds=1.5, end_seconds=3.0, flow_bound_px=1.5)
    assert call(vid3d.make_plan, model=MODEL, window=exact) == f"window={exact!r}: give an int or None"


def test_an_argument_that_is_no_array_is_told_to_be_one():
    assert call(vid3d.top_k, [1.0, 2.0], ["a", "b"], 1) == "logits=[1.0, 2.0]: give an array"


def test_hints_of_every_public_function_can_be_resolved():
    for name in vid3d.__all__:
        if callable(getattr(vid3d, name)):
            hints_of(getattr(vid3d, name))
