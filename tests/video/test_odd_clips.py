"""Odd clips through the one look that all commands take: length, times, shape and light, by what the frames show, and
by the ffmpeg program where there is one."""

import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from pgdpo.video import probe_video, read_frames, verify_video
from tests.video.odd_clips import CENTRE, CORPUS, DARK, HEIGHT, RADIUS, WIDTH, write

FFMPEG = shutil.which("ffmpeg")
assert len(CORPUS) >= 60 and len({odd.file for odd in CORPUS}) == len(CORPUS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


def off(odd, frames: np.ndarray, times: np.ndarray) -> float:
    """Grey levels, at most, by which frames show another time than these: by their right third."""
    found = frames[:, :, -frames.shape[2] // 3 :].mean((1, 2, 3))
    return np.abs(found - DARK - odd.growth * times).max()


def disc(frame: np.ndarray) -> tuple[float, float, float, float]:
    """(x, y, width, height) of the red disc, by the moments of the redness."""
    red = (frame[..., 0] - frame[..., 1]).clip(20) - 20
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]] + 0.5
    centre = [(axis * red).sum() / red.sum() for axis in (x, y)]
    spread = [((axis - mean) ** 2 * red).sum() / red.sum() for axis, mean in zip((x, y), centre, strict=True)]
    return (*centre, *(4 * np.sqrt(spread)))


@pytest.mark.parametrize("odd", CORPUS, ids=[odd.name for odd in CORPUS])
def test_a_clip_is_what_a_viewer_sees(odd, folder):
    path = write(folder, odd)
    info = verify_video(path)
    assert info == probe_video(path)  # what `check` and `prepare` see
    assert info.num_frames == len(odd.times)
    assert [float(time) for time in info.times] == pytest.approx(
        [float(time) for time in odd.times], abs=0.006
    )
    assert info.fps == pytest.approx(float(odd.rate), rel=0.01) and info.variable == (odd.shown is not None)
    assert info.duration == pytest.approx(float(odd.times[-1] + 1 / odd.rate), abs=0.01)
    size = (WIDTH, HEIGHT)
    assert (info.width, info.height) == pytest.approx(size, abs=1.5)
    assert (info.light, info.interlaced, info.pixel) == (odd.light, odd.interlaced, odd.pixel)
    frames = read_frames(info, range(info.num_frames)).astype(float)
    assert off(odd, frames, np.array([float(odd.first + time) for time in odd.times])) < odd.tolerance
    if odd.codec != "gif":  # whose few colours redden the grey
        x, y, wide, high = disc(frames[0])
        assert abs(x - CENTRE[0]) < 2 and abs(y - CENTRE[1]) < 2
        assert abs(wide - high) < 1.5 and abs(wide - 2 * RADIUS) < 3.5
    _at_another_rate(odd, info)
    if odd.interlaced:
        rows = frames[-1][:, -WIDTH // 4 :].mean((1, 2))
        assert np.abs(np.diff(rows[4:-4])).max() < 1.5  # no comb
    if FFMPEG and odd.ending != "webp" and odd.light == "sdr" and odd.primaries == "bt709":
        assert np.abs(by_ffmpeg(path, info) - frames.mean((1, 2))).max() < 1.5


def _at_another_rate(odd, info):
    """At 8 a second frames are those nearest in time; the frames themselves tell it."""
    count = info.frames_at(8)
    numbers = info.numbers_at(8, 0, count)
    times = [float(time) for time in info.times]
    for tick, number in enumerate(numbers):
        at = tick / float(info.rate_at(8) or 8)
        assert abs(times[number] - at) <= min(abs(time - at) for time in times) + 1e-6
    assert -1e-6 <= count / 8 - (info.duration - 0.5 / info.fps) <= 1 / 8 + 1e-6
    start = min(1, count - 1)
    read = read_frames(info, numbers[start:], (32, 48)).astype(float)
    wanted = np.array([float(odd.first) + times[number] for number in numbers[start:]])
    assert off(odd, read, wanted) < odd.tolerance


def by_ffmpeg(path, info) -> np.ndarray:
    """Mean colour of every frame, `[F, 3]`, decoded by the ffmpeg program."""
    filters = f"yadif=deint=interlaced,scale={info.width}:{info.height}:flags=bicubic"
    command = [
        FFMPEG,
        "-v",
        "error",
        "-i",
        path,
        "-vf",
        filters,
        "-vsync",
        "passthrough",
        "-pix_fmt",
        "rgb24",
    ]
    raw = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3).mean((1, 2))


def test_the_oracle_sees_a_clip_that_is_read_as_the_first_frames(folder):
    """The defect that the corpus is for: frames one by one, whatever their times."""
    odd = next(odd for odd in CORPUS if odd.rate == Fraction(60))
    info = probe_video(write(folder, odd))
    assert off(odd, read_frames(info, range(8)).astype(float), np.arange(8) / 8) > 40
