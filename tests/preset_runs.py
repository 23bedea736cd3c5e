"""What the tests of presets share: settings held against their sources, and runs of a preset."""

from fractions import Fraction

import pytest
from safetensors.numpy import save_file
from seeded import SeededCase

import vid3d_cli
from vid3d_cli.cli.presets import plan_of, preset_row
from vid3d_cli.features.annotations import write_annotations
from vid3d_cli.features.stores import open_store
from vid3d_cli.presets import find_preset

RATES = {"15": 15, "23.976": Fraction(24000, 1001), "25": 25, "29.97": Fraction(30000, 1001), "30": 30}
SIZES = {"63x47": (63, 47), "47x95": (47, 95), "341x257": (341, 257)}
CASES = {
    "i3d.kinetics400": {"rgb": "i3d_rgb_piergiaj_23f", "flow": "i3d_flow_piergiaj_64f"},
    "i3d.kinetics400_hassony2": {"rgb": "i3d_rgb_hassony2_64f"},
    "i3d_r50.kinetics400": {"rgb": "i3d_r50_tushar_32f"},
    "r2plus1d_34.tsp_activitynet": {"rgb": "r2plus1d34_tsp_16f"},
    "s3d_g.howto100m": {"rgb": "s3dg_howto100m_32f"},
    "slowfast_r50.kinetics400": {"rgb": "slowfast_r50_pytorchvideo_32f"},
}


def quick(*chosen, among):
    """Return the parameters of a test; all but those chosen are slow in sum."""
    return [pytest.param(each, marks=[] if each in chosen else pytest.mark.exhaustive) for each in among]


def check_fact(name, what, expected, source):
    """Check a field of the options, the files or the preset."""
    preset = find_preset(name)
    options = vid3d_cli.Options(**preset.options)
    where = next(each for each in (options, preset.files, preset) if hasattr(each, what))
    assert getattr(where, what) == expected, source


def check_width(name, dim, source):
    """Check the numbers in a row of a file."""
    preset = find_preset(name)
    shape = preset_row(preset, plan_of(preset))["shape"]
    assert shape[preset.files.axes.index("D")] == dim, source


def extract(name, video, folder, **options):
    """Extract with a preset, with fast flow, and prepare its annotations; return the video's entry and rows."""
    preset, out = find_preset(name), folder / "features"
    if preset.options["streams"] == "both":
        options["flow"] = "dis-ultrafast"
    settings = {"runtime": "torch", "jobs": 1, "on_event": lambda event: None}
    summary = vid3d_cli.extract(video, out=f"{out}/", preset=name, **settings, **options)
    assert not summary.failures
    if preset.files.annotations:
        subset = "training" if preset.files.annotations == "activitynet" else None
        write_annotations(str(out), folder / "meta", subset=subset)
    store = open_store(out)
    (entry,) = store.entries()
    return entry, store.read(entry).spans


def write_seeded_weights(name, folder):
    """Write checkpoints of a preset's network; return their paths by stream."""
    weights = {}
    for stream, case in CASES[find_preset(name).options["model"]].items():
        weights[stream] = folder / f"{stream}.safetensors"
        save_file(SeededCase(case).state_dict(), weights[stream])
    return weights
