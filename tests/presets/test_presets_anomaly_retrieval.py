"""Presets for anomaly detection and for retrieval, held against the loaders and the extractors of others.

`FACTS` states every setting with its source: repository, file, and the line's own text or the function. The loaders are
restated in a few lines each, and so are the squares that extractors cut and the frames that they pick.
"""

import json
import math
from fractions import Fraction
from operator import itemgetter

import av
import numpy as np
import pytest
import torch
from conftest import read_in_thread
from PIL import Image
from preset_runs import RATES, SIZES, check_fact, check_width, extract, quick, write_seeded_weights
from videos import write_video

import vid3d_cli
from vid3d_cli.errors import UsageError
from vid3d_cli.features.annotations import write_annotations
from vid3d_cli.features.stores import open_store
from vid3d_cli.plan import Plan
from vid3d_cli.presets import find_preset, with_preset

UR_DMU = "UR-DMU feature_extract/i3d_extract.py"
UR_LOADER = "UR-DMU dataset_loader.py"
XD = "XDVioDet"
RTFM = "RTFM issues"
MD = "moment_detr moment_detr/start_end_dataset.py, _get_video_feat_by_vid"
HERO = "HERO_Video_Feature_Extractor"
SLOWFAST = f"{HERO} slowfast/extract_feature"
MIL_NCE = f"{HERO} mil-nce"

FACTS = [
    ("ur-dmu", "values", "recipe", f"{UR_DMU}; none was compared: the published features are DeepMIL's (README)"),
    ("ur-dmu", "model", "i3d.kinetics400_hassony2", "UR-DMU feature_extract/i3dpt.py: hassony2's I3D, model_rgb.pth"),
    ("ur-dmu", "streams", "rgb", f"{UR_DMU}: mode='rgb'"),
    ("ur-dmu", "fps", "native", "UR-DMU feature_extract/video2frame_split.py: vr.read() for every frame"),
    ("ur-dmu", "window", 16, f"{UR_DMU}: chunk_size = 16"),
    ("ur-dmu", "stride", 16, f"{UR_DMU}: frequency=16"),
    ("ur-dmu", "tail", "pad", f"{UR_DMU}: copy_img=[rgb_files[frame_cnt-1]]*copy_length"),
    ("ur-dmu", "resize", "340x256", f"{UR_DMU}, load_frame: data.resize((340, 256), Image.ANTIALIAS)"),
    ("ur-dmu", "interpolation", "lanczos", f"{UR_DMU}, load_frame: Image.ANTIALIAS, which is LANCZOS in Pillow 10"),
    ("ur-dmu", "names", "{stem}__{crop}.npy", "UR-DMU list/UCF_Test.list: dataset/Abuse/Abuse028_x264__0.npy"),
    ("ur-dmu", "axes", "TD", f"{UR_LOADER}: np.mean(video_feature[r[i]:r[i+1],:], 0)"),
    ("ur-dmu", "dtype", "float32", f"{UR_DMU}, forward_batch: .float() … .data.cpu().numpy()"),
    ("xd-violence", "values", "layout", f"{XD} has no extractor"),
    ("xd-violence", "streams", "both", f"{XD} dataset.py: RGB, FLOW, MIX"),
    ("xd-violence", "fps", "native", f"{XD} list/make_gt.py: lens = int(cap.get(7)), frames of the file"),
    ("xd-violence", "window", 16, f"{XD} list/make_gt.py: clip_len = 16"),
    ("xd-violence", "stride", 16, f"{XD} test.py: np.repeat(pred, 16)"),
    ("xd-violence", "tail", "drop", f"{XD} list/make_gt.py: gt_vec[:-mod]"),
    ("xd-violence", "names", "{stream}/{stem}__{crop}.npy", f"{XD} list/flow.list: i3d-features/Flow/…__0.npy"),
    ("xd-violence", "axes", "TD", f"{XD} dataset.py: np.concatenate((features1, features2),axis=1)"),
    ("xd-violence", "concat", False, f"{XD} option.py: --rgb-list, --flow-list"),
    ("rtfm", "values", "layout", f"{RTFM}/52, 63, 95: others extract other features"),
    ("rtfm", "model", "i3d_r50.kinetics400", f"{RTFM}/33: 'use this resnet50 I3D … Tushar-N/pytorch-resnet3d'"),
    ("rtfm", "streams", "rgb", "RTFM dataset.py: rgb_list_file alone"),
    ("rtfm", "fps", "native", "RTFM list/make_gt_ucf.py: num_frame = features.shape[0] * 16, frames of the file"),
    ("rtfm", "window", 16, f"{RTFM}/2: 'non-overlapping sliding windows (16 frames each)'"),
    ("rtfm", "stride", 16, f"{RTFM}/2, and test_10crop.py: np.repeat(np.array(pred), 16)"),
    ("rtfm", "tail", "drop", "UR-DMU feature_extract/README.md: 'the GT … drops the last frames'"),
    ("rtfm", "resize", "256", f"{RTFM}/21: gtransforms.GroupResize(256)"),
    ("rtfm", "interpolation", "antialiased", "torchvision.transforms.Resize of a PIL image: bilinear"),
    ("rtfm", "names", "{stem}_i3d.npy", "RTFM list/ucf-i3d.list: Abuse001_x264_i3d.npy"),
    ("rtfm", "axes", "TCD", "RTFM dataset.py: features.transpose(1, 0, 2)  # [10, B, T, F]"),
    ("rtfm", "dtype", "float32", "RTFM dataset.py: np.array(features, dtype=np.float32)"),
    ("moment-detr", "values", "layout", f"{SLOWFAST}/model.py: SLOWFAST_8x8_R50.pkl, of which vid3d has no copy"),
    ("moment-detr", "model", "slowfast_r50.kinetics400", "moment_detr issues/19: 'the default SLOWFAST_8x8_R50'"),
    ("moment-detr", "fps", "30", f"{SLOWFAST}/extract.py: --target_framerate 30"),
    ("moment-detr", "window", 60, f"{HERO} README: --clip_len 2; preprocessing.py: int(clip_len*self.target_fps)"),
    ("moment-detr", "stride", 60, f"{SLOWFAST}/preprocessing.py: tensor.view(-1, int(clip_len*self.target_fps), …)"),
    ("moment-detr", "tail", "pad", f"{SLOWFAST}/extract.py: padding_mode='tile', the last frame (_pad_frames)"),
    ("moment-detr", "spread", "32:64", f"{HERO} extract_SLOWFAST_8x8_R50.yaml: NUM_FRAMES: 32, SAMPLING_RATE: 2"),
    ("moment-detr", "resize", "224", f"{SLOWFAST}/extract.py: size=224, centercrop=True"),
    ("moment-detr", "names", "{stem}.npz", MD + ': f"{vid}.npz"'),
    ("moment-detr", "key", "features", MD + ': np.load(_feat_path)["features"]'),
    ("moment-detr", "dtype", "float16", f"{SLOWFAST}/extract.py: features.astype('float16')"),
    ("mil-nce", "values", "recipe", f"{MIL_NCE}/extract.py; none was compared"),
    ("mil-nce", "model", "s3d_g.howto100m", f"{MIL_NCE}/extract.py: --s3d_ckpt s3d_howto100m.pth"),
    ("mil-nce", "fps", "30", f"{MIL_NCE}/extract.py: --target_framerate 30"),
    ("mil-nce", "window", 45, f"{MIL_NCE}/extract.py: --clip_len 3/2"),
    ("mil-nce", "stride", 45, f"{MIL_NCE}/preprocessing.py: tensor.view(-1, int(clip_len*self.target_fps), …)"),
    ("mil-nce", "spread", "32:64", f"{MIL_NCE}/preprocessing.py: num_frames = 32, sampling_rate = 2"),
    ("mil-nce", "layer", None, f"{MIL_NCE}/s3dg.py: 'mixed_5c': th.mean(net, dim=[2, 3, 4]), before fc"),
    ("mil-nce", "resize", "224", f"{MIL_NCE}/extract.py: size=224, centercrop=True"),
    ("mil-nce", "names", "{stem}.npz", f"{MIL_NCE}/gather_video_paths.py: fileId+'.npz'"),
    ("mil-nce", "key", "features", f"{MIL_NCE}/extract.py: np.savez(output_file, features=features)"),
    ("mil-nce", "dtype", "float16", f"{MIL_NCE}/extract.py: features.astype('float16')"),
]
PRESETS = list(dict.fromkeys(map(itemgetter(0), FACTS)))
INPUT_DIMS = {
    "ur-dmu": (1024, "UR-DMU ucf_main.py: len_feature 1024"),
    "xd-violence": (1024, f"{XD} option.py: --feature-size 1024+128, the 128 are VGGish's"),
    "rtfm": (2048, "RTFM option.py: --feature-size 2048"),
    "moment-detr": (2304, "moment_detr moment_detr/scripts/train.sh: (( v_feat_dim += 2304 ))"),
    "mil-nce": (1024, f"{MIL_NCE}/extract.py: FEATURE_LENGTH = 1024"),
}
CROP_PX = 224  # "[:224]" in UR-DMU, TenCrop(224) in RTFM#21, size=224 in HERO


@pytest.mark.parametrize(("name", "what", "expected", "source"), FACTS)
def test_a_preset_is_what_its_source_says(name, what, expected, source):
    check_fact(name, what, expected, source)


@pytest.mark.parametrize("name", PRESETS)
def test_rows_and_squares_have_the_sizes_of_the_original(name):
    check_width(name, *INPUT_DIMS[name])
    assert Plan.make(with_preset({"preset": name})).crop_px == CROP_PX


# Loaders: the matrix of every crop or stream, in the order in which the program averages or joins them ----------------


def ur_dmu(meta, out, stem):
    """dataset_loader.py, UCF_crime.get_data, and ucf_test.py: ten lines of the list are one video."""
    lines = [line.split() for line in (meta / "rgb.list").open()]
    assert len(lines) == 10
    for number, line in enumerate(lines):
        assert line[0].split("/")[-1] == f"{stem}__{number}.npy"
    return [np.load(line[0]).astype(np.float32) for line in lines]


def rtfm(meta, out, stem):
    """dataset.py, __getitem__; test_10crop.py permutes (1, T, 10, D) to (1, 10, T, D)."""
    (line,) = (meta / "rgb.list").open()
    assert line.strip("\n").endswith(f"/{stem}_i3d.npy")
    features = np.array(np.load(line.strip("\n"), allow_pickle=True), dtype=np.float32)
    return list(features.transpose(1, 0, 2))


def xdviodet(meta, out, stem):
    """dataset.py, modality MIX: a line of rgb.list and the same line of flow.list; test.py averages five."""
    joined = []
    with (meta / "rgb.list").open() as rgb_list, (meta / "flow.list").open() as flow_list:
        for number, (rgb, flow) in enumerate(zip(rgb_list, flow_list, strict=True)):
            assert rgb.strip("\n").endswith(f"/RGB/{stem}__{number}.npy")
            assert flow.strip("\n").endswith(f"/Flow/{stem}__{number}.npy")
            one, other = (np.array(np.load(path.strip("\n")), dtype=np.float32) for path in (rgb, flow))
            assert one.shape[0] == other.shape[0]
            joined.append(np.concatenate((one, other), axis=1))
    assert len(joined) == 5
    return joined


def moment_detr(meta, out, stem):
    """start_end_dataset.py, load_jsonl and __getitem__, with labels; QD-DETR's and Lighthouse's do the same."""
    (line,) = (meta / "highlight_train.jsonl").read_text().splitlines()
    video = json.loads(line)
    features = np.load(out / f"{video['vid']}.npz")["features"][:75]
    assert features.dtype == np.float16
    assert {"qid", "query", "duration"} <= video.keys()
    assert video["vid"] == stem
    assert max(video["relevant_clip_ids"]) < len(features)
    assert np.sum(video["saliency_scores"], 1).shape == (len(video["relevant_clip_ids"]),)
    ((start, end),) = video["relevant_windows"]  # get_span_labels, clip_len=2
    assert (start, end) == (0, pytest.approx(min(len(features) * 2, video["duration"])))
    return [features.astype(np.float32)]


def hero(meta, out, stem):
    """HERO reads a video's .npz by its name: extract.py, np.savez(output_file, features=features)."""
    features = np.load(out / f"{stem}.npz")["features"]
    assert features.dtype == np.float16
    return [features.astype(np.float32)]


LOADERS = {"ur-dmu": ur_dmu, "rtfm": rtfm, "xd-violence": xdviodet, "moment-detr": moment_detr, "mil-nce": hero}


# Extractors: rows, the seconds they are for, and squares --------------------------------------------------------------


def ticks_of_ffmpeg(num_frames, fps):
    """FFmpeg's libavfilter/vf_fps.c: the end of the last frame, rounded to ticks, halves upwards."""
    return math.floor(num_frames / Fraction(fps) * 30 + Fraction(1, 2))


def hero_rows(num_frames, fps, clip_seconds):
    """preprocessing.py: whole seconds (_pad_frames), whole clips (_pad_clips), cut to the file's duration."""
    num_read = ticks_of_ffmpeg(num_frames, fps)
    num_filled = math.ceil(math.ceil(num_read / 30) / clip_seconds)
    if clip_seconds == Fraction(3, 2):  # filled to a multiple of 3 s
        num_filled = 2 * math.ceil(math.ceil(num_read / 30) / 3)
    return min(num_filled, math.ceil(num_frames / Fraction(fps) / clip_seconds))


ROWS_OF_ORIGINAL = {
    "ur-dmu": lambda n, fps: math.ceil(n / 16),  # clipped_length = math.ceil(frame_cnt /chunk_size)
    "rtfm": lambda n, fps: n // 16,
    "xd-violence": lambda n, fps: (n - 1) // 16,  # make_gt.py: mod = (lens-1) % clip_len
    "moment-detr": lambda n, fps: hero_rows(n, fps, 2),
    "mil-nce": lambda n, fps: hero_rows(n, fps, Fraction(3, 2)),
}
CENTRES = {  # seconds of the middle of row i
    "ur-dmu": lambda i, fps: (16 * i + 8) / fps,  # ucf_test.py: np.repeat(a_predict, 16), a value a frame
    "rtfm": lambda i, fps: (16 * i + 8) / fps,  # test_10crop.py: the same
    "xd-violence": lambda i, fps: (16 * i + 8) / fps,  # test.py: the same
    "moment-detr": lambda i, fps: 2 * i + 1,  # data/README.md: 'segmented 2-second clips … starting from 0'
    "mil-nce": lambda i, fps: 1.5 * i + 0.75,  # HERO README: '1 feature per `clip_len` seconds'
}


def corners_of_ur_dmu(frame, px):
    """i3d_extract.py, oversample_data, of a frame of 256 × 340; with px = 224, 16:240 and 58:282."""
    top, left = (256 - px) // 2, (340 - px) // 2
    flip = np.ascontiguousarray(frame[:, ::-1])
    squares = []
    for each in (frame, flip):
        middle = each[top : top + px, left : left + px]
        squares += [each[:px, :px], each[:px, -px:], middle, each[-px:, :px], each[-px:, -px:]]
    return squares


def ten_crop_of_torchvision(frame, px):
    """torchvision.transforms.functional.ten_crop: five_crop of the image, then of its mirror image."""
    height, width = frame.shape[:2]
    top, left = round((height - px) / 2), round((width - px) / 2)
    squares = []
    for each in (frame, frame[:, ::-1]):
        squares += [each[:px, :px], each[:px, -px:], each[-px:, :px], each[-px:, -px:]]
        squares += [each[top : top + px, left : left + px]]
    return squares


def five_of_xd_violence(frame, px):
    """XDVioDet README: '_0.npy is the center, _1~ _4.npy is the corners'; the corners' order is ours."""
    squares = corners_of_ur_dmu(frame, px)
    return [squares[2], squares[0], squares[1], squares[3], squares[4]]


SQUARES = {
    "ur-dmu": (corners_of_ur_dmu, lambda image: image.resize((340, 256), Image.Resampling.LANCZOS)),
    "rtfm": (ten_crop_of_torchvision, lambda image: image.resize((380, 256), Image.Resampling.BILINEAR)),
    "xd-violence": (five_of_xd_violence, lambda image: image.resize((340, 256), Image.Resampling.BILINEAR)),
}


# Files of real runs --------------------------------------------------------------------------------------------------

STEM = "Normal_a__#00-01_label_A"
NUM_FRAMES = {"ur-dmu": 17, "xd-violence": 33, "rtfm": 33, "moment-detr": 70, "mil-nce": 70}


def check_rows(name, fps, entry, spans, folder):
    """Check T, and the first and the last row's place, within half a frame; return what the program loads."""
    matrices = LOADERS[name](folder / "meta", folder / "features", STEM)
    assert {matrix.shape[0] for matrix in matrices} == {len(spans)} == {entry.num_rows}
    window = find_preset(name).options["window"]
    rate = float(fps) if find_preset(name).options["fps"] == "native" else 30
    assert entry.fps == pytest.approx(rate)
    for i in (0, len(spans) - 1):
        middle = spans[i].start_seconds + window / 2 / rate  # the last window may reach beyond the video
        assert abs(middle - CENTRES[name](i, float(fps))) * rate <= 0.5 + 1e-6
        centre = find_preset(name).centre
        assert abs(centre.first + i * centre.step - CENTRES[name](i, float(fps)) * rate) < 1e-6
    return matrices


@pytest.mark.parametrize("rate", quick("29.97", among=RATES))
@pytest.mark.parametrize("name", PRESETS)
def test_rows_are_where_the_loaders_expect_them(name, rate, tiny_model, tmp_path):
    fps, num_frames = RATES[rate], NUM_FRAMES[name]
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=num_frames, fps=fps)
    entry, spans = extract(name, video, tmp_path)
    check_rows(name, fps, entry, spans, tmp_path)
    assert entry.num_rows == ROWS_OF_ORIGINAL[name](num_frames, fps)
    assert entry.num_rows > 1


@pytest.mark.parametrize("num_frames", quick(32, among=(32, 33)))
def test_xd_violence_has_a_row_more_for_a_multiple_of_16(num_frames, tiny_model, tmp_path):
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=num_frames)
    entry, _ = extract("xd-violence", video, tmp_path)
    assert entry.num_rows - ROWS_OF_ORIGINAL["xd-violence"](num_frames, 25) == (num_frames % 16 == 0)
    frames = (tmp_path / "meta" / "frames.txt").read_text().split()
    assert int(frames[1]) == len(np.repeat(np.zeros(entry.num_rows), 16))  # what test.py compares with


@pytest.mark.parametrize("fps", [15, 30, Fraction(24000, 1001), 25, Fraction(30000, 1001)])
def test_rows_of_moment_detr_exceed_heros_by_one_at_most(fps):
    """vid3d reads a frame for every tick of 30 fps before the end, FFmpeg for every one nearer than half a tick."""
    for seconds, window in ((2, 60), (Fraction(3, 2), 45)):
        for num_frames in range(1, 400):
            ours = math.ceil(math.ceil(num_frames / Fraction(fps) * 30) / window)
            more = ours - hero_rows(num_frames, fps, seconds)
            assert more in ((0,) if fps in (15, 30) else (0, 1))


@pytest.mark.parametrize("name", PRESETS)
def test_a_video_shorter_than_a_window_has_a_row(name, tiny_model, tmp_path):
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=7, fps=30)
    entry, spans = extract(name, video, tmp_path)
    check_rows(name, 30, entry, spans, tmp_path)
    versions = open_store(tmp_path / "features").recipe()["versions"]
    assert ("pillow" in versions) == (find_preset(name).options.get("interpolation") == "lanczos")
    assert entry.num_rows == 1  # UR-DMU's extractor refuses such a video, HERO's fills it


@pytest.mark.parametrize("size", quick("63x47", among=SIZES))
@pytest.mark.parametrize("name", quick("rtfm", among=PRESETS))
def test_videos_of_odd_sizes(name, size, tiny_model, tmp_path):
    width, height = SIZES[size]
    video = write_video(tmp_path / f"{STEM}.mkv", num_frames=40, width=width, height=height, codec="ffv1")
    check_rows(name, 25, *extract(name, video, tmp_path), tmp_path)


def write_lossless(path, frames, fps=25):
    """Write RGB frames so that a decoder gives back the same bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_the_crops_of_rtfm_are_those_of_torchvision():
    frame = np.random.default_rng(3).integers(0, 256, (256, 455, 3), np.uint8)  # 16:9, an odd margin
    squares = Plan.make(with_preset({"preset": "rtfm"})).squares.cut([frame[None]])
    for (ours,), theirs in zip(squares, ten_crop_of_torchvision(frame, 224), strict=True):
        np.testing.assert_array_equal(ours[0], theirs)


def check_squares(name, px, folder, **options):
    """Check every crop's rows against those of a video of its squares, which NumPy cut from Pillow's frames."""
    cut, resized = SQUARES[name]
    coarse = np.random.default_rng(5).integers(0, 256, (16, 5, 7, 3), np.uint8)
    sources = [np.asarray(Image.fromarray(each).resize((190, 128), Image.Resampling.BICUBIC)) for each in coarse]
    extract(name, write_lossless(folder / f"{STEM}.mkv", sources), folder, **options)
    matrices = LOADERS[name](folder / "meta", folder / "features", STEM)
    squares = zip(*(cut(np.asarray(resized(Image.fromarray(each))), px) for each in sources), strict=True)
    videos = [write_lossless(folder / f"square{number}.mkv", frames) for number, frames in enumerate(squares)]
    plain = {"model": find_preset(name).options["model"], "fps": "native", "window": 16, "stride": 16, **options}
    results = vid3d_cli.extract(videos, resize=px, streams="rgb", runtime="torch", jobs=1, **plain)
    rows = [result.features() for result in results]
    assert len(rows) == len(matrices)
    for row, matrix in zip(rows, matrices, strict=True):
        others = min(np.abs(row - other).max() for other in rows if other is not row)
        assert np.abs(matrix[:, : row.shape[1]] - row).max() < min(0.02 * np.abs(row).max(), 0.5 * others)


@pytest.mark.parametrize("name", quick("ur-dmu", among=SQUARES))
def test_crops_are_in_the_order_of_the_extractor(name, monkeypatch, tmp_path):
    monkeypatch.setattr(vid3d_cli.run.feeds, "open_clips", read_in_thread)
    check_squares(name, 112, tmp_path, model="s3d_mini")


def hero_clips(num_frames, fps, window):
    """preprocessing.py and ffmpeg.filter('fps', fps=30): (T, 32) indices of the file's frames, at 15, 30 and 60 fps."""
    read = [tick * fps // 30 for tick in range(ticks_of_ffmpeg(num_frames, fps))]
    read += [read[-1]] * (-len(read) % 30)  # _pad_frames
    read += read[-30:] * (-(len(read) // 30) % {60: 2, 45: 3}[window])  # _pad_clips: clip_len 2, or 3/2
    clips = np.reshape(read, (-1, window))[: math.ceil(num_frames / fps / (window / 30))]
    picked = torch.clamp(torch.linspace(0, 32 * 2 * fps / 30 - 1, 32), 0, window - 1).long()
    return clips[:, picked.numpy()]


@pytest.mark.parametrize("fps", quick(15, among=(15, 30, 60)))
@pytest.mark.parametrize("name", quick("moment-detr", among=("moment-detr", "mil-nce")))
def test_clips_have_the_frames_that_hero_picks(name, fps, monkeypatch, tmp_path):
    monkeypatch.setattr(vid3d_cli.run.feeds, "open_clips", read_in_thread)
    num_frames = 5 * fps // 2 + 1
    colours = np.random.default_rng(7).integers(0, 256, (num_frames, 4, 4, 3), np.uint8)
    frames = [np.repeat(np.repeat(each, 16, axis=0), 16, axis=1) for each in colours]
    video = write_lossless(tmp_path / f"{STEM}.mkv", frames, fps)
    extract(name, video, tmp_path, model="s3d_mini")
    (rows,) = LOADERS[name](tmp_path / "meta", tmp_path / "features", STEM)
    clips = hero_clips(num_frames, fps, find_preset(name).options["window"])
    videos = [write_lossless(tmp_path / f"{i}.mkv", [frames[j] for j in clip], 30) for i, clip in enumerate(clips)]
    plain = {"model": "s3d_mini", "streams": "rgb", "runtime": "torch", "resize": 224, "fps": "native", "jobs": 1}
    expected = np.concatenate([r.features() for r in vid3d_cli.extract(videos, window=32, stride=32, **plain)])
    assert len(expected) == len(rows) == ROWS_OF_ORIGINAL[name](num_frames, fps)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-3)  # float16
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_lists_have_the_videos_with_anomalies_first(tiny_model, tmp_path):
    videos = [write_video(tmp_path / f"{stem}.mp4", num_frames=16) for stem in ("Normal_1", "b_label_A", "c_label_B1")]
    vid3d_cli.extract(videos, out=f"{tmp_path}/feats/", preset="rtfm", runtime="torch")
    write_annotations(f"{tmp_path}/feats/", tmp_path / "meta", subset="test")
    lines = (tmp_path / "meta" / "rgb_test.list").read_text().splitlines()
    names = [line.split("/")[-1] for line in lines]
    assert names == ["c_label_B1_i3d.npy", "Normal_1_i3d.npy", "b_label_A_i3d.npy"]
    assert (tmp_path / "meta" / "frames.txt").read_text() == "c_label_B1 16\nNormal_1 16\nb_label_A 16\n"


@pytest.mark.parametrize(
    ("options", "folder", "what"),
    [
        ({"layout": "vid3d"}, "feats", "has no files of a preset"),
        ({}, "my feats", "UR-DMU ends a path at the first space"),
    ],
)
def test_lists_that_programs_cannot_read_are_refused(options, folder, what, tiny_model, video, tmp_path):
    out = f"{tmp_path}/{folder}/"
    vid3d_cli.extract(video, out=out, preset="ur-dmu", runtime="torch", **options)
    with pytest.raises(UsageError, match=what):
        write_annotations(out, tmp_path / "meta")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PRESETS)
def test_the_real_network_with_seeded_weights(name, tmp_path):
    weights = write_seeded_weights(name, tmp_path)
    video = write_video(tmp_path / f"{STEM}.mp4", num_frames=32, fps=30)
    matrices = check_rows(name, 30, *extract(name, video, tmp_path, weights=weights), tmp_path)
    assert matrices[0].shape[1] == INPUT_DIMS[name][0] * len(weights)


@pytest.mark.exhaustive
def test_the_squares_of_ur_dmu_are_of_224_px(tmp_path):
    check_squares("ur-dmu", 224, tmp_path, weights=write_seeded_weights("ur-dmu", tmp_path))
