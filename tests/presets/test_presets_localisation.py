"""Presets for localisation, segmentation and captioning, held against the loaders and the extractors of others.

`FACTS` states every setting with its source: repository, file, and the line's own text or the function. The loaders are
restated in a few lines each: what they do to the file, and which row they expect at which second.
"""

import json
import math
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pytest
from preset_runs import RATES, SIZES, check_fact, check_width, extract, quick, write_seeded_weights
from videos import read_index, write_video

from vid3d_cli.features.stores import open_store
from vid3d_cli.presets import find_preset
from vid3d_cli.video.reader import VideoReader

THUMOS_YAML = "actionformer_release configs/thumos_i3d.yaml"
ANET_YAML = "actionformer_release configs/anet_i3d.yaml"
TSP_YAML = "actionformer_release configs/anet_tsp.yaml"
CMCS = "pytorch-i3d-feature-extraction extract_features.py"
TSP = "TSP extract_features/extract_features.py"
TSP_CLIPS = "TSP extract_features/eval_video_dataset.py"
KINETICS_FE = "ahsaniqbal/Kinetics-FeatureExtractor"
BMT = "BMT datasets/load_features.py, load_features_from_npy"
VIDEO_FEATURES = "video_features@4fa02bd models/i3d"

FACTS = [
    ("actionformer-thumos", "values", "layout", "actionformer_release#150: 'I can't recall the exact implementation'"),
    ("actionformer-thumos", "model", "i3d.kinetics400", f"{CMCS}: load_model rgb_imagenet.pt, flow_imagenet.pt"),
    (
        "actionformer-thumos",
        "streams",
        "both",
        "actionformer_release#60: 'we directly concatenate'",
    ),
    ("actionformer-thumos", "fps", "native", "actionformer_release README: 'at the video frame rate (~30 fps)'"),
    ("actionformer-thumos", "window", 16, f"{THUMOS_YAML}:12 num_frames: 16; {CMCS}: chunk_size = 16"),
    ("actionformer-thumos", "stride", 4, f"{THUMOS_YAML}:11 feat_stride: 4"),
    ("actionformer-thumos", "tail", "drop", f"{CMCS}: clipped_length // frequency"),
    ("actionformer-thumos", "resize", "340x256", f"{CMCS}, load_frame: assert(data.size[0] == 340), size[1] == 256"),
    ("actionformer-thumos", "quantise_flow", True, f"{CMCS}, load_flow_batch: flow is read from images"),
    ("actionformer-thumos", "names", "{stem}.npy", f"{THUMOS_YAML}:7 file_prefix: ~, :8 file_ext: .npy"),
    ("actionformer-thumos", "axes", "TD", "actionformer_release libs/datasets/thumos14.py: '# T x C -> C x T'"),
    ("actionformer-anet", "values", "layout", "actionformer_release#59: the features of CMCS"),
    ("actionformer-anet", "model", "i3d.kinetics400", f"{CMCS}: load_model rgb_imagenet.pt, flow_imagenet.pt"),
    ("actionformer-anet", "streams", "both", f"{ANET_YAML}:15 input_dim: 2048"),
    ("actionformer-anet", "fps", "25", f"{ANET_YAML}:18 default_fps: 25"),
    ("actionformer-anet", "window", 16, f"{ANET_YAML}:17 num_frames: 16"),
    ("actionformer-anet", "stride", 16, f"{ANET_YAML}:16 feat_stride: 16"),
    ("actionformer-anet", "tail", "drop", f"{CMCS}: clipped_length // frequency"),
    ("actionformer-anet", "names", "v_{id}.npy", f"{ANET_YAML}:12 file_prefix: v_, :13 file_ext: .npy"),
    ("actionformer-anet", "axes", "TD", "actionformer_release libs/datasets/anet.py: '# T x C -> C x T'"),
    ("tsp", "values", "recipe", f"{TSP}, {TSP_CLIPS}"),
    ("tsp", "model", "r2plus1d_34.tsp_activitynet", f"{TSP}: MODEL_URLS['r2plus1d_34-tsp_on_activitynet']"),
    ("tsp", "streams", "rgb", f"{TSP_YAML}:10 input_dim: 512"),
    ("tsp", "fps", "15", f"{TSP_YAML}:13 default_fps: 15"),
    ("tsp", "window", 16, f"{TSP_YAML}:12 num_frames: 16"),
    ("tsp", "stride", 16, f"{TSP_YAML}:11 feat_stride: 16"),
    ("tsp", "tail", "drop", f"{TSP_CLIPS}, _generate_clips_metadata: frame_idxs.shape[0]-clip_length+1"),
    ("tsp", "resize", "171x128", f"{TSP}: T.Resize((128, 171)), height first"),
    ("tsp", "interpolation", "bilinear", "TSP common/transforms.py: interpolate(mode='bilinear'), without antialias"),
    ("tsp", "names", "v_{id}.npy", f"{TSP_YAML}:7 file_prefix: v_; OpenTAD features_tsp_pad.py: prefix='v_'"),
    ("tsp", "axes", "TD", "PDVC data/video_dataset.py, get_feats: feats.shape[1] == 512"),
    ("ms-tcn", "values", "layout", f"{KINETICS_FE}, of which no version is named; ms-tcn#3, #16"),
    ("ms-tcn", "model", "i3d.kinetics400", f"{KINETICS_FE} extractor_lazy.py: rgb_imagenet, flow_imagenet"),
    ("ms-tcn", "streams", "both", f"{KINETICS_FE} extractor_lazy.py: np.concatenate([rgb_features, flow_features])"),
    ("ms-tcn", "fps", "native", "ms-tcn#3: 'The datasets that I work with are either 15 or 30 fps'"),
    ("ms-tcn", "window", 21, "ms-tcn#3: 'I used a temporal window of 21 frames'"),
    ("ms-tcn", "stride", 1, "ms-tcn#19: 'the window for frame i contains the frames in range [i-10, i+10]'"),
    ("ms-tcn", "centred", True, f"{KINETICS_FE} LazyLoader.cpp, initFramesLazy: half a window of the first frame"),
    ("ms-tcn", "resize", "256", f"{KINETICS_FE} Utils.cpp, scaleFramePerserveAR: 256.0f / frame.rows"),
    ("ms-tcn", "interpolation", "bilinear", f"{KINETICS_FE} Utils.cpp: cv::resize with its default"),
    ("ms-tcn", "flow", "tvl1", f"{KINETICS_FE} Utils.cpp: OpticalFlowDual_TVL1_GPU"),
    ("ms-tcn", "flow_size", "source", f"{KINETICS_FE} LazyLoader.cpp: scaleFramePerserveAR is commented out"),
    ("ms-tcn", "quantise_flow", False, f"{KINETICS_FE} Utils.cpp, writeFlowFrame: CAST(row[j].val[0], …) / bound"),
    ("ms-tcn", "names", "{stem}.npy", "ms-tcn batch_gen.py: features_path + vid.split('.')[0] + '.npy'"),
    ("ms-tcn", "axes", "DT", "ms-tcn batch_gen.py: features[:, ::self.sample_rate]"),
    ("bmt", "values", "layout", "video_features@4fa02bd models/i3d: flow by PWC-Net"),
    ("bmt", "model", "i3d.kinetics400", "BMT README: hassony2/kinetics_i3d_pytorch, which has DeepMind's weights"),
    ("bmt", "streams", "both", f"{BMT}: _rgb.npy, _flow.npy"),
    ("bmt", "fps", "25", "BMT main.py: --fps_at_extraction 25"),
    ("bmt", "window", 64, "BMT main.py: --feature_timespan_in_fps 64"),
    ("bmt", "stride", 64, "BMT main.py: i3d_25fps_stack64step64_2stream_npy"),
    ("bmt", "tail", "loop", f"{VIDEO_FEATURES}/utils/utils.py, form_iter_list: np.resize(remained_paths, stack_size)"),
    ("bmt", "quantise_flow", True, f"{VIDEO_FEATURES}/i3d_src/i3d_feats.py: flow_stack.round()"),
    ("bmt", "names", "{stem}_{stream}.npy", BMT),
    ("bmt", "axes", "TD", "BMT datasets/load_features.py, crop_a_segment: S, D = feature.shape"),
    ("bmt", "concat", False, BMT),
]
PRESETS = list(dict.fromkeys(map(itemgetter(0), FACTS)))
INPUT_DIMS = {  # num_streams × D
    "actionformer-thumos": (2048, f"{THUMOS_YAML}:10 input_dim: 2048"),
    "actionformer-anet": (2048, f"{ANET_YAML}:15 input_dim: 2048"),
    "tsp": (512, f"{TSP_YAML}:10 input_dim: 512"),
    "ms-tcn": (2048, "ms-tcn main.py: features_dim = 2048"),
    "bmt": (1024, "BMT main.py: --d_vid 1024, for each of two files"),
}


@pytest.mark.parametrize(("name", "what", "expected", "source"), FACTS)
def test_a_preset_is_what_its_source_says(name, what, expected, source):
    check_fact(name, what, expected, source)


@pytest.mark.parametrize("name", PRESETS)
def test_rows_have_as_many_numbers_as_the_program_wants(name):
    check_width(name, *INPUT_DIMS[name])


# Loaders -------------------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """What a program has after loading a video."""

    rows: np.ndarray
    """(T, D)."""
    row_at: object
    """Seconds → the row, a float, that the program takes for this moment."""


def actionformer(folder, meta, stem, *, prefix, stride, window, fps=None, upsampled=None):
    """libs/datasets/thumos14.py and anet.py, __getitem__; what a label's seconds become in the grid of the features."""
    key = stem.removeprefix(prefix)
    video = json.loads((meta / "annotations.json").read_text())["database"][key]
    assert video["subset"].lower() in ("training",)
    fps = fps or video["fps"]
    features = np.load(folder / f"{prefix}{key}.npy").astype(np.float32).transpose()  # C × T
    num_rows = features.shape[1]
    if upsampled is None:
        return Loaded(features.T, lambda seconds: (seconds * fps - 0.5 * window) / stride)
    # anet.py, "case 2": linear interpolation to a fixed length, align_corners=False
    step = ((num_rows - 1) * stride + window) / upsampled
    return Loaded(features.T, lambda seconds: ((seconds * fps - 0.5 * step) / step + 0.5) * num_rows / upsampled - 0.5)


def opentad(folder, meta, stem, *, prefix, stride, offset, fps=None):
    """opentad/datasets/thumos.py and anet.py, get_gt and __getitem__; LoadFeats. Without thumos.py's rounding."""
    key = stem.removeprefix(prefix)
    assert (meta / "missing_files.txt").read_text().splitlines() == []
    video = json.loads((meta / "annotations.json").read_text())["database"][key]
    rate = fps or video["frame"] / video["duration"]
    features = np.load(folder / f"{prefix}{key}.npy").astype(np.float32)
    return Loaded(features, lambda seconds: (seconds * rate - offset) / stride)


def ms_tcn(folder, meta, stem):
    """ms-tcn batch_gen.py, next_batch, ASFormer's batch_gen.py, and the assertion of DiffAct's dataset.py."""
    videos = (meta / "splits" / "train.split1.bundle").read_text().split("\n")[:-1]
    (name,) = [video for video in videos if video.split(".")[0] == stem]
    features = np.load(folder / f"{name.split('.')[0]}.npy")
    labels = (meta / "groundTruth" / name).read_text().split("\n")[:-1]
    numbers = {line.split()[1]: int(line.split()[0]) for line in (meta / "mapping.txt").read_text().split("\n")[:-1]}
    assert [numbers[label] for label in labels] == [0] * features.shape[1]
    fps = open_store(folder).entries()[0].fps
    return Loaded(features.T, lambda seconds: seconds * fps - 0.5)  # label i is that of frame i


def bmt(folder, meta, stem):
    """BMT datasets/load_features.py; a row is 64 frames at 25 fps (main.py), with both streams of one shape."""
    header, *lines = [line.split("\t") for line in (meta / "train.csv").read_text().splitlines()]
    assert header == ["video_id", "caption", "start", "end", "duration", "phase", "idx"]
    ((video_id, _, start, end, duration, phase, idx),) = [line for line in lines if line[0] == stem]
    rgb, flow = (np.load(folder / f"{video_id}_{stream}.npy") for stream in ("rgb", "flow"))
    assert len(rgb) == len(flow)
    assert (int(len(rgb) * float(start) / float(duration)), int(len(rgb) * float(end) / float(duration))) == (
        0,
        len(rgb),
    )
    assert (phase, lines[int(idx)][0]) == ("train", video_id)
    return Loaded(rgb, lambda seconds: seconds * 25 / 64 - 0.5)


def pdvc(folder, meta, stem):
    """PDVC data/video_dataset.py, get_feats and PropSeqDataset.__getitem__: 13 characters of the key."""
    video = json.loads((meta / "train.json").read_text())[stem]
    assert (video["timestamps"], len(video["sentences"])) == ([[0.0, video["duration"]]], 1)
    rgb, flow = (np.load(folder / f"{stem[:13]}_{stream}.npy") for stream in ("rgb", "flow"))
    return Loaded(np.concatenate([rgb, flow], axis=-1), lambda seconds: seconds * 25 / 64 - 0.5)


def pdvc_tsp(folder, meta, stem):
    """The same for features of TSP."""
    return Loaded(np.load(folder / f"{stem[:13]}.npy"), lambda seconds: seconds * 15 / 16 - 0.5)


def with_settings(loader, **settings):
    """Return the loader for a configuration."""
    return lambda folder, meta, stem: loader(folder, meta, stem, **settings)


LOADERS = {
    "actionformer-thumos": [
        with_settings(actionformer, prefix="", stride=4, window=16),
        with_settings(opentad, prefix="", stride=4, offset=8),
    ],
    "actionformer-anet": [with_settings(actionformer, prefix="v_", stride=16, window=16, fps=25, upsampled=192)],
    "tsp": [
        with_settings(actionformer, prefix="v_", stride=16, window=16, fps=15),
        with_settings(opentad, prefix="v_", stride=16, offset=8, fps=15),
        pdvc_tsp,
    ],
    "ms-tcn": [ms_tcn],
    "bmt": [bmt, pdvc],
}


# Extractors: the number of rows, and the frames -----------------------------------------------------------------------


def tsp_frames(num_frames, fps):
    """eval_video_dataset.py, _resample_video_idx as _generate_clips_metadata calls it: indices of the frames kept."""
    step = float(fps) / 15
    if step.is_integer():
        return list(range(0, num_frames, int(step)))
    return np.floor(np.arange(int(num_frames * (15 / float(fps)))) * step).astype(int).tolist()


def sliding_rows(num_frames, window, stride):
    """extract_features.py of CMCS: clipped_length // frequency + 1; the same as TSP's range."""
    return (num_frames - window) // stride + 1


def cycled_rows(num_frames):
    """video_features@4fa02bd, form_iter_list(…, step_size=64, stack_size=65)."""
    if num_frames < 65:
        return 1
    return (num_frames - 65) // 64 + 1 + (num_frames % 65 >= 0.2 * 65)


def rows_of_original(name, num_frames, fps):
    """Return how many rows the original makes of a video of at least a window."""
    at_25 = math.ceil(num_frames * 25 / fps)
    return {
        "actionformer-thumos": lambda: sliding_rows(num_frames, 16, 4),
        "actionformer-anet": lambda: sliding_rows(at_25, 16, 16),
        "tsp": lambda: sliding_rows(len(tsp_frames(num_frames, fps)), 16, 16),
        "ms-tcn": lambda: num_frames,
        "bmt": lambda: cycled_rows(at_25),
    }[name]()


# Files of real runs --------------------------------------------------------------------------------------------------

STEM = "v_0123456789_"  # 13 characters, as ActivityNet's names have
NUM_FRAMES = {"actionformer-thumos": 26, "actionformer-anet": 45, "tsp": 75, "ms-tcn": 23, "bmt": 90}


def middle(span, window, fps, *, centred):
    """Return the middle of a row's window, of which the ends of the video may cut off a part."""
    if span.num_valid_frames == window:
        return (span.start_seconds + span.end_seconds) / 2
    if centred and span.start_frame == 0:
        return span.end_seconds - window / 2 / fps
    return span.start_seconds + window / 2 / fps


def check_rows(name, entry, spans, folder):
    """Check every row's place against the loaders, within half a frame."""
    preset = find_preset(name)
    window, step = preset.options["window"], preset.options["stride"]
    centred = preset.options.get("centred", False)
    has_middle = not centred or entry.num_frames >= window  # else both ends of the window are cut off
    for load in LOADERS[name]:
        loaded = load(folder / "features", folder / "meta", STEM)
        assert len(loaded.rows) == len(spans) == entry.num_rows
        assert loaded.rows.dtype == np.float32
        for i, span in enumerate(spans if has_middle else []):
            seconds = middle(span, window, entry.fps, centred=centred)
            assert abs(loaded.row_at(seconds) - i) * step <= 0.5 + 1e-6
            assert abs(preset.centre.first + i * preset.centre.step - seconds * entry.fps) <= 0.5 + 1e-6


@pytest.fixture
def small_network(name, tiny_model):
    """Return the options that a preset needs with TinyNet, which has more classes than TSP's network."""
    return {"model": "s3d_mini"} if name == "tsp" else {}


@pytest.mark.parametrize("rate", quick("29.97", among=RATES))
@pytest.mark.parametrize("name", PRESETS)
def test_rows_are_where_the_loaders_expect_them(name, rate, small_network, tmp_path):
    fps, num_frames = RATES[rate], NUM_FRAMES[name]
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=num_frames, fps=fps)
    entry, spans = extract(name, video, tmp_path, **small_network)
    check_rows(name, entry, spans, tmp_path)
    assert entry.num_rows - rows_of_original(name, num_frames, fps) in ((0, 1) if name in ("tsp", "bmt") else (0,))
    assert entry.num_rows > 1
    assert open_store(tmp_path / "features").recipe()["preset"].split(",")[0] == name


@pytest.mark.parametrize("name", PRESETS)
def test_a_video_shorter_than_a_window_has_a_row(name, small_network, tmp_path):
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=7, fps=30)
    entry, spans = extract(name, video, tmp_path, **small_network)
    check_rows(name, entry, spans, tmp_path)
    assert entry.num_rows == (7 if name == "ms-tcn" else 1)  # others refuse such a video, BMT's extractor cycles it


@pytest.mark.parametrize("size", quick("63x47", among=SIZES))
@pytest.mark.parametrize("name", quick("tsp", among=PRESETS))
def test_videos_of_odd_sizes(name, size, small_network, tmp_path):
    width, height = SIZES[size]
    video = write_video(tmp_path / f"{STEM}.mkv", num_frames=40, width=width, height=height, codec="ffv1")
    check_rows(name, *extract(name, video, tmp_path, **small_network), tmp_path)


@pytest.mark.parametrize("rate", RATES)
def test_tsp_reads_the_frames_that_its_extractor_reads(rate, tmp_path):
    num_frames = 90
    video = write_video(tmp_path / "a.mp4", num_frames=num_frames, fps=RATES[rate])
    with VideoReader(str(video), fps=Fraction(15)) as frames:
        read = [read_index(frame.rgb) for frame in frames]
    expected = tsp_frames(num_frames, RATES[rate])
    assert read[: len(expected)] == expected
    assert len(read) - len(expected) in (0, 1)  # the last frame, shown for less than 1/15 s


@pytest.mark.parametrize("num_frames", [1, 12, 13, 63, 64, 65, 77, 78, 128, 130, 142, 200, 3840])
def test_bmt_has_at_most_one_row_more(num_frames):
    assert math.ceil(num_frames / 64) - cycled_rows(num_frames) in (0, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PRESETS)
def test_the_real_network_with_seeded_weights(name, tmp_path):
    num_frames = 8 if name == "ms-tcn" else 24  # a clip a frame
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=num_frames, fps=30)
    check_rows(name, *extract(name, video, tmp_path, weights=write_seeded_weights(name, tmp_path)), tmp_path)
    for path in (tmp_path / "features").glob("*.npy"):
        assert np.load(path).shape[find_preset(name).files.axes.index("D")] == INPUT_DIMS[name][0]
