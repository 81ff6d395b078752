"""Clips through the codec and back, and every file that must be refused by name."""

import re
import struct
import wave
import zlib

import numpy as np
import pytest
from PIL import Image

from pgdpo.messages.errors import InputError
from pgdpo.video import MAX_SIDE, probe_video, read_frames, read_video, verify_video, write_video

FRAMES, HEIGHT, WIDTH, FPS = 12, 48, 64, 8


@pytest.fixture
def frames() -> np.ndarray:
    """A square of every primary colour's mixture drifting over a gradient; brightness encodes the time."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    clip = np.stack([np.stack([x * 2, y * 3, 60 + 0 * x + 8 * t], -1) for t in range(FRAMES)]).astype(
        np.uint8
    )
    for t in range(FRAMES):
        clip[t, 16:32, 4 + 3 * t : 20 + 3 * t] = (220, 60, 40)
    return clip


@pytest.fixture
def clip(tmp_path, frames):
    write_video(tmp_path / "clip.mp4", frames, FPS)
    return tmp_path / "clip.mp4"


def refused(*args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        read_video(*args, **kwargs)
    message = str(error.value)
    assert str(args[0]) in message
    return message


def test_what_was_written_is_read(clip, frames):
    decoded = read_video(clip)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    error = decoded.astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30
    # A wrong colour matrix on either side (BT.601 for BT.709) shifts this red by more than 10 levels.
    inside = error[:, 19:29, 44:]
    inside = inside[frames[:, 19:29, 44:, 0] == 220]
    assert np.abs(np.median(inside, 0)).max() < 3  # its edges carry 4:2:0's mixed colours


def test_probe(clip):
    info = probe_video(clip)
    assert (info.width, info.height, info.fps, info.num_frames, info.codec) == (
        WIDTH,
        HEIGHT,
        FPS,
        FRAMES,
        "h264",
    )


def test_equal_frames_give_equal_bytes_and_a_file_for_browsers(clip, frames, tmp_path):
    write_video(tmp_path / "again.mp4", frames, FPS)
    data = clip.read_bytes()
    assert data == (tmp_path / "again.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # +faststart
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.mp4", "clip.mp4"]


def test_scale_repeats_pixels(tmp_path, frames):
    write_video(tmp_path / "big.mp4", frames, FPS, scale=3)
    decoded = read_video(tmp_path / "big.mp4")
    assert decoded.shape == (FRAMES, 3 * HEIGHT, 3 * WIDTH, 3)
    blocks = decoded.reshape(FRAMES, HEIGHT, 3, WIDTH, 3, 3).mean((2, 4))
    assert np.abs(blocks - frames).mean() < 3


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 15, 16, 3), np.uint8), np.zeros((2, 16, 16, 3)), np.zeros((0, 16, 16, 3), np.uint8)]
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, bad):
    with pytest.raises(ValueError):
        write_video(tmp_path / "bad.mp4", bad, FPS)
    assert not list(tmp_path.iterdir())


def test_first_frames(clip):
    assert np.array_equal(read_video(clip, num_frames=5), read_video(clip)[:5])


def test_rate_picks_the_frame_on_screen(clip):
    everything = read_video(clip)
    assert np.array_equal(read_video(clip, fps=4), everything[::2])
    assert np.array_equal(read_video(clip, fps=8), everything)
    assert np.array_equal(read_video(clip, fps=3), everything[[0, 3, 5, 8, 11]])  # at 0, 2.67, 5.33, 8, 10.67


def test_size_keeps_the_aspect_ratio_and_crops_the_centre(clip, frames):
    small = read_video(clip, size=(24, 24)).astype(float)
    assert small.shape == (FRAMES, 24, 24, 3)
    wanted = frames.reshape(FRAMES, 24, 2, 32, 2, 3).mean((2, 4))[:, :, 4:28]
    assert np.abs(small - wanted).mean() < 4
    assert np.abs(small - frames.reshape(FRAMES, 24, 2, 32, 2, 3).mean((2, 4))[:, :, :24]).mean() > 6
    assert read_video(clip, size=(60, 100)).shape == (FRAMES, 60, 100, 3)


def test_rotated_clip_is_shown_upright(clip):
    upright = read_video(clip)
    data = clip.read_bytes()
    one, none = (1 << 16).to_bytes(4, "big"), bytes(4)
    identity = one + none * 3 + one
    quarter_clockwise = none + one + none + (-(1 << 16)).to_bytes(4, "big", signed=True) + none
    head, tail = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    clip.write_bytes(head + tail.replace(identity, quarter_clockwise, 1))
    assert np.array_equal(read_video(clip), np.rot90(upright, -1, axes=(1, 2)))
    assert read_video(clip, size=(32, 24)).shape == (FRAMES, 32, 24, 3)
    assert (probe_video(clip).width, probe_video(clip).height) == (HEIGHT, WIDTH)


def test_html_is_no_video(tmp_path):
    page = tmp_path / "page.mp4"
    page.write_text("<!doctype html><html><body>404 not found</body></html>" * 100)
    assert "not a video" in refused(page)
    with pytest.raises(InputError, match="not a video"):
        probe_video(page)


def test_sound_is_no_video(tmp_path):
    sound = tmp_path / "sound.mp4"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    assert "no video stream" in refused(sound)


def test_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.mp4")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file_is_refused_even_where_enough_frames_are_left(clip, share):
    data = clip.read_bytes()
    clip.write_bytes(data[: int(len(data) * share)])
    assert re.search("truncated|cut off", refused(clip))
    assert re.search("truncated|cut off", refused(clip, num_frames=1))


def test_damaged_frames_are_no_shorter_clip(clip):
    data = bytearray(clip.read_bytes())
    data[-400:] = bytes(400)
    clip.write_bytes(data)
    assert "damaged" in refused(clip)


def test_short_clip_is_not_padded(clip):
    message = refused(clip, num_frames=13)
    assert "12 frames" in message and "13" in message
    assert "6 frames at 4" in refused(clip, num_frames=7, fps=4)


def test_rate_above_the_clips_own(clip):
    message = refused(clip, fps=24)
    assert "8 frames a second" in message and "24" in message


def test_a_header_of_100000_pixels_a_side_is_refused(tmp_path):
    """A picture's header, as a video: 30 GB a frame."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (head, data, b"IEND")
    )
    (tmp_path / "huge.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    refused(tmp_path / "huge.mp4")


def test_absurd_sides_are_refused(tmp_path):
    wide = tmp_path / "wide.mp4"
    write_video(wide, np.zeros((1, 16, MAX_SIDE + 2, 3), np.uint8), FPS)
    assert f"{MAX_SIDE + 2}x16" in refused(wide)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, axes=(1, 2))),
    ],
    ids=["mirrored", "upside down", "transposed", "turned"],
)
def test_a_display_matrix_is_followed(clip, matrix, shown):
    """ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y."""
    stored = read_video(clip)
    data = clip.read_bytes()
    fixed = [int(each * 65536).to_bytes(4, "big", signed=True) for each in (1, 0, 0, 0, 1)]
    wanted = [int(each * 65536).to_bytes(4, "big", signed=True) for each in (*matrix[:2], 0, *matrix[2:])]
    head, tail = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    clip.write_bytes(head + tail.replace(b"".join(fixed), b"".join(wanted), 1))
    assert np.array_equal(read_video(clip), shown(stored))
    assert ("mirrored" in probe_video(clip).treatment) == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)


def test_a_clip_turned_askew_is_refused(clip):
    data = clip.read_bytes()
    one, none = (1 << 16).to_bytes(4, "big"), bytes(4)
    askew = (46341).to_bytes(4, "big")
    head, tail = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    slanted = askew + askew + none + (-46341).to_bytes(4, "big", signed=True) + askew
    clip.write_bytes(head + tail.replace(one + none * 3 + one, slanted, 1))
    assert "turned by no multiple of 90" in refused(clip)


def test_the_film_is_read_and_not_its_cover(tmp_path, clip):
    """A picture attached before the film."""
    import av

    cover = tmp_path / "cover.jpg"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(cover)
    both = tmp_path / "both.mkv"
    with av.open(str(clip)) as film, av.open(str(cover)) as picture, av.open(str(both), "w") as target:
        streams = [target.add_stream_from_template(each.streams.video[0]) for each in (picture, film)]
        streams[0].disposition = av.stream.Disposition.attached_pic
        for source, stream in zip((picture, film), streams, strict=True):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    assert probe_video(both).num_frames == FRAMES and np.array_equal(read_video(both), read_video(clip))


def test_a_far_frame_is_that_of_the_whole_clip(tmp_path):
    """Read from a key frame near it, and where none can be sought."""
    frames = np.stack([np.full((16, 16, 3), 20 + 2 * n, np.uint8) for n in range(100)])
    write_video(tmp_path / "long.mp4", frames, 10)
    whole, info = read_video(tmp_path / "long.mp4"), probe_video(tmp_path / "long.mp4")
    for numbers in ([30, 31, 31, 60], [99], [21, 98]):
        assert np.array_equal(read_frames(info, numbers), whole[numbers])


def test_the_last_picture_stays_as_long_as_it_says(tmp_path):
    pictures = [Image.new("RGB", (16, 16), (40 * n, 0, 0)) for n in range(3)]
    for ending in ("gif", "webp", "png"):
        path = tmp_path / f"a.{ending}"
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=[100, 100, 800], lossless=True
        )
        info = probe_video(path)
        assert info.duration == pytest.approx(1.0) and info.frames_at(10) == 10
        assert info.numbers_at(10, 0, 10) == [0, 1, *[2] * 8]


def test_a_recording_that_begins_within_a_group_of_pictures(tmp_path, frames):
    """What no key frame comes before does not decode, and is no frame of the clip."""
    import av

    whole, cut = tmp_path / "whole.ts", tmp_path / "cut.ts"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"g": "8", "keyint_min": "8", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for array in np.concatenate([frames, frames[::-1]]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.dts is not None][3:]:
            packet.stream = stream
            target.mux(packet)
    info = verify_video(cut)
    assert info.num_frames == 2 * FRAMES - 8
    assert np.array_equal(read_frames(info, [0, 5]), read_video(whole)[[8, 13]])
