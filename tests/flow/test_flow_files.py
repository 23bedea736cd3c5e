"""Ready-made flow: every naming, every damage, and outputs that are read again."""

import json
import resource
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from moving import mean_end_point_error

from vid3d_cli.errors import FlowFilesError, OutputError, OutputExists, ShapeError, UsageError
from vid3d_cli.flow.colour import flow_to_rgb
from vid3d_cli.flow.fields import quantise_flow
from vid3d_cli.flow.files import open_flow_files
from vid3d_cli.flow.writers import open_flow_output
from vid3d_cli.video.writer import VIDEO_CODECS

RECIPE = {"flow": "dis", "note": "élan"}


def some_flow(num_pairs: int = 4, height: int = 37, width: int = 51, longest_px: float = 15) -> np.ndarray:
    """Smooth motion, so that JPEG loses little."""
    noise = np.random.default_rng(1).normal(size=(num_pairs, height, width, 2)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(field, (0, 0), 6) for field in noise])
    return (smooth / np.abs(smooth).max() * longest_px).astype(np.float32)


def write_images(directory: Path, flow: np.ndarray, pattern: str, first: int = 1, bound_px: float = 20) -> Path:
    """Write flow the way other tools do; PNG or JPEG by the pattern."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, field in enumerate(quantise_flow(flow, bound_px)):
        for channel, axis in enumerate("xy"):
            name = pattern.format(axis=axis, number=index + first)
            assert cv2.imwrite(str(directory / name), field[..., channel])
    return directory


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "pattern", ["flow_{axis}_{number:05d}.png", "{axis}_{number:05d}.png", "flow_{axis}_{number}.PNG"]
)
def test_images_of_every_naming_are_read(tmp_path, pattern, first):
    flow = some_flow(12)  # beyond 9, where names without leading zeros sort differently
    with open_flow_files(write_images(tmp_path / "f", flow, pattern, first), "walk.mp4") as files:
        assert len(files) == 12
        assert files[0].dtype == np.float32
        for index in (0, 11, 5, -1):
            np.testing.assert_allclose(files[index], flow[index], atol=20 / 255 + 1e-4)
        with pytest.raises(IndexError):
            files[12]
        assert len(list(files)) == 12


def test_jpeg_images_and_another_bound(tmp_path):
    flow = some_flow(2, longest_px=30)
    directory = write_images(tmp_path / "f", flow, "flow_{axis}_{number:05d}.jpg", bound_px=32)
    (directory / "img_00001.jpg").write_bytes(b"denseflow's frames may be there too")
    files = open_flow_files(directory, "walk.mp4", bound_px=32)
    assert len(files) == 2
    assert np.abs(files[1] - flow[1]).max() < 32 / 255 + 1
    assert "bound 32 px" in files.description


@pytest.mark.parametrize("name", ["walk", "walk.mp4"])
def test_a_directory_per_video(tmp_path, name):
    write_images(tmp_path / name, some_flow(3), "x_y.png".replace("x_y", "flow_{axis}_{number}"))
    write_images(tmp_path / "run", some_flow(2), "flow_{axis}_{number}.png")
    assert len(open_flow_files(tmp_path, "/videos/walk.mp4")) == 3
    assert len(open_flow_files(str(tmp_path), "/videos/run.mp4")) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_any_order(tmp_path, save, dtype):
    flow = some_flow(5)
    save(tmp_path / "walk.npz", seconds=np.arange(5), flow=flow.astype(dtype))
    for path in (tmp_path / "walk.npz", tmp_path):
        with open_flow_files(path, "walk.mp4") as files:
            assert len(files) == 5
            for index in (0, 1, 4, 2, -1, 0):
                assert files[index].dtype == np.float32
                np.testing.assert_array_equal(files[index], flow[index].astype(dtype).astype(np.float32))


def test_a_pair_read_before_is_not_changed_by_the_next(tmp_path):
    flow = some_flow(2)
    np.savez(tmp_path / "walk.npz", flow=flow)
    with open_flow_files(tmp_path, "walk.mp4") as files:
        first = files[0]
        first += 1  # writable, and the reader's own data stays as it was
        np.testing.assert_array_equal(files[0], flow[0])


def test_missing_flow_says_what_was_looked_for(tmp_path):
    with pytest.raises(FlowFilesError, match=r"walk\.mp4: no ready-made flow at .*nowhere"):
        open_flow_files(tmp_path / "nowhere", "walk.mp4")
    with pytest.raises(FlowFilesError, match=r"flow_x_00001\.jpg.*walk/, walk\.mp4/, walk\.npz"):
        open_flow_files(tmp_path, "walk.mp4")
    (tmp_path / "walk.txt").touch()
    with pytest.raises(FlowFilesError, match="is not ready-made flow"):
        open_flow_files(tmp_path / "walk.txt", "walk.mp4")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("flow_y_00002.png", "the y image of frame 2 is missing"),
        ("flow_x_00001.png", "the x image of frame 1 is missing"),
        ("flow_x_00003.png", "the x image of frame 3 is missing"),
    ],
)
def test_a_gap_is_an_error(tmp_path, missing, message):
    write_images(tmp_path, some_flow(3), "flow_{axis}_{number:05d}.png")
    (tmp_path / missing).unlink()
    with pytest.raises(FlowFilesError, match=message):
        open_flow_files(tmp_path, "walk.mp4")


def test_two_images_of_one_frame_are_an_error(tmp_path):
    write_images(tmp_path, some_flow(2), "flow_{axis}_{number:05d}.png")
    write_images(tmp_path, some_flow(1), "{axis}_{number}.png")
    with pytest.raises(FlowFilesError, match="are both the x image of frame 1"):
        open_flow_files(tmp_path, "walk.mp4")


def test_damaged_images_are_named(tmp_path):
    write_images(tmp_path, some_flow(3), "flow_{axis}_{number:05d}.png")
    (tmp_path / "flow_x_00001.png").write_bytes(b"")
    (tmp_path / "flow_y_00002.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "flow_y_00003.png"), np.zeros((5, 5), np.uint8))
    files = open_flow_files(tmp_path, "walk.mp4")
    for index, message in enumerate(["flow_x_00001.png is not", "flow_y_00002.png is not", "differ in size"]):
        with pytest.raises(FlowFilesError, match=message):
            files[index]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_images_of_two_sizes_are_an_error(tmp_path, order):
    write_images(tmp_path, some_flow(1), "flow_{axis}_{number}.png", first=1)
    write_images(tmp_path, some_flow(1, height=30), "flow_{axis}_{number}.png", first=2)
    files = open_flow_files(tmp_path, "walk.mp4")
    sizes = ["51×37 px", "51×30 px"]
    files[order[0]]
    with pytest.raises(FlowFilesError, match=f"pair {order[1]} is {sizes[order[1]]}, not {sizes[order[0]]}"):
        files[order[1]]
    assert files[order[0]].shape[2] == 2


@pytest.mark.parametrize("text", ["", "{}", '{"bound_px": -3}', '{"bound_px": "wide"}', "[1]"])
def test_a_damaged_sidecar_is_named(tmp_path, text):
    write_images(tmp_path, some_flow(1), "flow_{axis}_{number:05d}.png")
    (tmp_path / "flow.json").write_text(text)
    with pytest.raises(FlowFilesError, match="no usable bound_px"):
        open_flow_files(tmp_path, "walk.mp4")


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "walk.npz"
    path.write_bytes(b"PK no archive")
    with pytest.raises(FlowFilesError, match="not a readable"):
        open_flow_files(path, "walk.mp4")
    for arrays, message in [
        ({"rgb": np.zeros(3)}, 'no array "flow" .it has: rgb'),
        ({"flow": np.zeros((3, 4, 4))}, "damaged or not flow"),
        ({"flow": np.zeros((3, 4, 4, 2), int)}, "expected floats"),
        ({"flow": np.array([{}], dtype=object)}, "damaged or not flow"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(FlowFilesError, match=message):
            open_flow_files(path, "walk.mp4")


def test_an_archive_with_flipped_bytes_is_noticed(tmp_path):
    path = tmp_path / "walk.npz"
    np.savez(path, flow=np.zeros((2, 64, 64, 2), np.float32))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    files = open_flow_files(path, "walk.mp4")
    with pytest.raises(FlowFilesError, match="damaged at pair 1"):
        list(files)


def npy_header(shape, version=(1, 0), descr="<f4") -> bytes:
    """A header that may promise anything."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text


FIELD = b"\0" * (8 * 64 * 64)
BOMBS = {
    "a header of gigabytes": b"\x93NUMPY\2\0" + b"\xff\xff\xff\x7f" + b" " * 2**26,
    "a field of gigabytes": npy_header((1, 50_000, 50_000, 2)) + b"\0" * 2**26,
    "a negative size": npy_header((2, -1, 64, 2)) + b"\0" * 2**26,
    "Python objects": npy_header((1, 64, 64, 2), descr="|O") + FIELD,
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_archive_takes_little_memory(tmp_path, content):
    """Before: 4 MB of .npz took 12 GB and 37 s, and ended in an internal error."""
    path = tmp_path / "walk.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flow.npy", content)
    del content
    tracemalloc.start()
    with pytest.raises(FlowFilesError, match="damaged or not flow"), open_flow_files(path, "walk.mp4") as files:
        files[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_limit_is_refused(tmp_path, kind):
    """Before: Python unpacks these block by block, whatever size was asked for."""
    path = tmp_path / "walk.npz"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("flow.npy", npy_header((1, 64, 64, 2)) + FIELD)
    with pytest.raises(FlowFilesError, match="no such compression"):
        open_flow_files(path, "walk.mp4")


def png(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * (width + 1) * min(height, 100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, b"IDAT" + data, b"IEND")
    )


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    small = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    at = small.index(b"\xff\xc0")
    return small[:at] + before + small[at : at + 5] + struct.pack(">HH", height, width) + small[at + 9 :]


@pytest.mark.parametrize("image", [png(32_000, 32_000), jpeg(32_000, 32_000)], ids=["png", "jpeg"])
def test_a_small_image_takes_little_memory(tmp_path, image):
    """Before: two images of 100 kB took 2 GB and seconds, once for every frame of the video."""
    for axis in "xy":
        (tmp_path / f"{axis}_00001.png").write_bytes(image)
    with (
        open_flow_files(tmp_path, "walk.mp4") as files,
        pytest.raises(FlowFilesError, match="announces more than 67 million pixels"),
    ):
        files[0]


def test_other_images_and_hidden_headers_are_refused(tmp_path):
    """Before: OpenCV decoded any of its formats under the name of a JPEG, each with its own limits."""
    others = [cv2.imencode(suffix, np.zeros((8, 8), np.uint8))[1].tobytes() for suffix in (".bmp", ".tiff", ".pgm")]
    for image in [*others, jpeg(8, 8, before=b"garbage"), jpeg(8, 8, before=b"\xff\xd0"), b"\xff\xd8\xff"]:
        for axis in "xy":
            (tmp_path / f"{axis}_00001.jpg").write_bytes(image)
        with open_flow_files(tmp_path, "w.mp4") as files, pytest.raises(FlowFilesError, match="not a readable image"):
            files[0]


def write_flow(
    path: Path | str, flow: Iterable[np.ndarray], *, overwrite: bool = False, fps: Fraction = Fraction(25), **options
):
    """Write all of `flow`."""
    with open_flow_output(
        path, fps=fps, bound_px=20, max_px=15, recipe=RECIPE, overwrite=overwrite, **options
    ) as output:
        for index, field in enumerate(flow):
            output.write(field, index / float(fps))


TARGETS = ["flow", "flow.npz", "flow.gif", "flow.png", *(f"flow{suffix}" for suffix in VIDEO_CODECS)]
targets = pytest.mark.parametrize("name", TARGETS)


def test_images_can_be_read_again(tmp_path):
    flow = some_flow(3)
    flow[0, :20] = 100  # truncated
    write_flow(tmp_path / "flow", flow)
    names = sorted(path.name for path in (tmp_path / "flow").iterdir())
    assert names == ["flow.json", *(f"flow_{axis}_0000{i}.jpg" for axis in "xy" for i in (1, 2, 3))]
    facts = json.loads((tmp_path / "flow" / "flow.json").read_text(encoding="utf-8"))
    assert facts == {
        "bound_px": 20,
        "fps": "25",
        "height_px": 37,
        "width_px": 51,
        "num_pairs": 3,
        "recipe": RECIPE,
    }
    files = open_flow_files(tmp_path / "flow", "walk.mp4", bound_px=32)  # flow.json takes precedence
    assert len(files) == 3
    for index in (1, 2):
        assert np.abs(files[index] - flow[index]).max() <= 20 / 255 + 6 * 40 / 255  # JPEG: a few levels
        assert mean_end_point_error(files[index], flow[index]) < 0.2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_npz_can_be_read_again(tmp_path, dtype):
    flow = some_flow(3)
    write_flow(tmp_path / "flow.npz", flow, dtype=dtype)
    with np.load(tmp_path / "flow.npz", allow_pickle=False) as arrays:
        assert arrays["flow"].dtype == dtype
        np.testing.assert_array_equal(arrays["flow"], flow.astype(dtype))
        np.testing.assert_allclose(arrays["seconds"], [0, 0.04, 0.08])
        assert json.loads(str(arrays["recipe"])) == RECIPE
    with open_flow_files(tmp_path / "flow.npz", "walk.mp4") as files:
        np.testing.assert_allclose(np.stack(list(files)), flow, atol=0.004)


def test_equal_flow_gives_equal_archives(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_flow(tmp_path / name, some_flow(2))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
def test_videos_of_colours_decode_with_every_pair(tmp_path, suffix, fps):
    flow = some_flow(7)  # 51×37: both odd
    write_flow(tmp_path / f"colours{suffix}", flow, fps=fps)
    with av.open(str(tmp_path / f"colours{suffix}")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(float(fps), rel=1e-3)
    assert len(frames) == 7
    assert frames[0].shape == (38, 52, 3)
    error = np.abs(frames[3][:37, :51].astype(int) - flow_to_rgb(flow[3], 15)).mean()
    assert error < 12, error


@targets
def test_what_exists_is_replaced_only_when_asked(tmp_path, name):
    path = tmp_path / name
    write_flow(path, some_flow(4))
    with pytest.raises(OutputExists, match="--overwrite"):
        write_flow(path, some_flow(2))
    write_flow(path, some_flow(2), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    if name in ("flow", "flow.npz"):
        assert len(open_flow_files(path, "walk.mp4")) == 2


@targets
def test_an_exception_leaves_nothing(tmp_path, name):
    with (
        pytest.raises(KeyboardInterrupt),
        open_flow_output(tmp_path / name, fps=Fraction(25), bound_px=20, max_px=15, recipe=RECIPE) as output,
    ):
        output.write(some_flow(1)[0], 0.0)
        assert not (tmp_path / name).exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@targets
def test_an_exception_leaves_the_old_output(tmp_path, name):
    path = tmp_path / name
    write_flow(path, some_flow(1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ShapeError):
        write_flow(path, np.zeros((2, 8, 8, 3), np.float32), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@targets
def test_all_fields_have_one_size(tmp_path, name):
    fields = [np.zeros((16, 16, 2), np.float32), np.zeros((16, 18, 2), np.float32)]
    with pytest.raises(ShapeError, match=r"\(16, 18, 2\)"):
        write_flow(tmp_path / name, fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flow", "flow.npz"])
def test_a_video_of_one_frame_has_no_pairs(tmp_path, name):
    write_flow(tmp_path / name, [])
    assert len(open_flow_files(tmp_path / name, "walk.mp4")) == 0


@pytest.mark.parametrize("name", ["colours.mp4", "colours.gif", "colours.png"])
def test_colours_without_pairs_are_an_error(tmp_path, name):
    with pytest.raises(OutputError, match="no pair of frames"):
        write_flow(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


@targets
def test_tiny_fields_can_be_written(tmp_path, name):
    write_flow(tmp_path / name, np.zeros((2, 1, 1, 2), np.float32))
    assert (tmp_path / name).exists()


def test_parents_are_made_and_dots_in_a_directory_need_a_slash(tmp_path):
    write_flow(f"{tmp_path}/a/b/my.video/", some_flow(1))
    assert len(open_flow_files(tmp_path / "a" / "b" / "my.video", "my.video.mp4")) == 1
    with pytest.raises(UsageError, match=r"cannot write flow as '\.xyz'.*a directory, \.npz, a video"):
        write_flow(tmp_path / "x.xyz", some_flow(1))


def test_overwriting_never_deletes_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(OutputExists, match="holds other files"):
        write_flow(tmp_path, some_flow(1), overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "flow").mkdir()
    write_flow(tmp_path / "flow", some_flow(2))
    assert len(open_flow_files(tmp_path / "flow", "walk.mp4")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow"]


@targets
def test_what_cannot_be_written_is_explained(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_flow(tmp_path / "file" / name, some_flow(1))


@targets
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, name):
    noise = np.random.default_rng(0).normal(0, 10, (200, 300, 2)).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=f"{name}: cannot be written: "):
            write_flow(tmp_path / name, [noise] * 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_npz_holds_floats_only(tmp_path):
    with pytest.raises(UsageError, match="float16 or float32"):
        write_flow(tmp_path / "flow.npz", some_flow(1), dtype=np.uint8)
