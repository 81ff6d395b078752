"""Fault 9: clips that are cut, empty, of another rate or size than they say, or no clips at all."""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from pgdpo.video import write_video
from tests.faults.inputs.peaks import peaks

FRAMES, HEIGHT, WIDTH, FPS = 24, 160, 256, 8  # as `peaks.read_pairs` asks for them
BOUND = 1.5  # times the memory that a good pair takes


def picture(width: int, height: int, whole: bool = False) -> bytes:
    """A black PNG; unless it is asked for whole, its header only is true."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compressobj(1)
    data = b"".join(packed.compress(bytes(1 + 3 * width)) for _ in range(height if whole else 1))
    chunks = (head, b"IDAT" + data + packed.flush(), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks
    )


def moving(frames: int = FRAMES) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([np.stack([x % 256, y, 5 * t + 0 * x], -1) for t in range(frames)]).astype(np.uint8)


def cut(share: float):
    def write(path: Path, good: Path) -> None:
        data = good.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def page(path: Path, good: Path) -> None:
    path.write_text("<!doctype html><html><body>404 not found</body></html>" * 100)


def without_frames(path: Path, good: Path) -> None:
    """A whole MP4 with a video stream, its size and rate, and not one packet."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.open()
        container.start_encoding()


def at_another_rate(path: Path, good: Path) -> None:
    write_video(path, moving(), 2 * FPS)


def huge_header(path: Path, good: Path) -> None:
    """100,000 x 100,000 pixels: 30 GB a frame."""
    path.write_bytes(picture(100_000, 100_000))


def huge_avi(path: Path, good: Path) -> None:
    """A real AVI of raw frames whose header says 100,000 x 100,000 pixels."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("rawvideo", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 100_000, 100_000)
    struct.pack_into("<ii", data, data.index(b"avih") + 40, 100_000, 100_000)
    path.write_bytes(data)


def large_frame(path: Path, good: Path) -> None:
    """9,000 x 9,000 pixels that are really there, 240 MB, in 1 MB: FFmpeg decodes them to know the format."""
    path.write_bytes(picture(9000, 9000, whole=True))


def grows(path: Path, good: Path) -> None:
    """An AVI of small pictures, among which one is of 9,000 x 9,000 pixels."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("png", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
        container.start_encoding()
        small, large = picture(WIDTH, HEIGHT, whole=True), picture(9000, 9000, whole=True)
        for number in range(FRAMES):
            packet = av.Packet(large if number == FRAMES // 2 else small)
            packet.stream, packet.time_base, packet.is_keyframe = stream, stream.time_base, True
            packet.pts = packet.dts = number
            container.mux(packet)


def matroska(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def half_that_decodes(path: Path, good: Path) -> None:
    """Matroska says no number of frames: half a file is a shorter clip, without any error."""
    matroska(path, moving())
    cut(0.5)(path, path)
    with av.open(str(path)) as container:
        assert 0 < sum(1 for _ in container.decode(video=0)) < FRAMES


def end_of_a_longer_one_lost(path: Path, good: Path) -> None:
    """Enough frames are left: only the hash of its row tells."""
    matroska(path, moving(2 * FRAMES))
    cut(0.7)(path, path)


WHOLE = hashlib.sha256(b"the whole file").hexdigest()
# name -> (what writes the clip, what the row says beside, what the message must hold)
BROKEN = {
    "cut at 10%": (cut(0.1), {}, "truncated|cut off"),
    "cut at 50%": (cut(0.5), {}, "truncated|cut off"),
    "cut at 99%": (cut(0.99), {}, "truncated|cut off"),
    "HTML": (page, {}, "not a video"),
    "no frames": (without_frames, {}, "holds no frames: leave the row out"),
    "another rate than the other clip's": (at_another_rate, {}, "fps is 16 in .* and 8 in"),
    "another rate than the row's": (None, {"fps": 24}, "its row says fps 24 and .* has 8"),
    "header of 100000x100000": (huge_header, {}, "10000000000 pixels. exceeds limit"),
    "AVI header of 100000x100000": (huge_avi, {}, "far too large size; 1 to 8192 pixels a side"),
    "a frame of 9000x9000": (large_frame, {}, "9000x9000 pixels; up to 8192 a side are read"),
    "a frame that grows to 9000x9000": (grows, {}, "truncated or damaged .frame 13 does not decode"),
    "half a file that decodes": (
        half_that_decodes,
        {},
        r"holds \d+ frames at 8 frames a second and 24 were asked for",
    ),
    "the end of a longer one lost": (
        end_of_a_longer_one_lost,
        {"sha256_chosen": WHOLE},
        "the clip was cut or changed",
    ),
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """A manifest of one good pair, and one for each broken clip in the place of the chosen one."""
    folder = tmp_path_factory.mktemp("clips")
    good = folder / "good.mp4"
    write_video(good, moving(), FPS)
    (folder / "other.mp4").write_bytes(good.read_bytes())
    made = []
    for number, (write, said, _) in enumerate([(None, {}, ""), *BROKEN.values()]):
        clip = good
        if write is not None:
            clip = folder / f"{number}.mp4"
            write(clip, good)
        row = {"id": f"pair{number}", "prompt": "x", "chosen": clip.name, "rejected": "other.mp4", **said}
        made.append(folder / f"{number}.jsonl")
        made[-1].write_text(json.dumps(row) + "\n")
    return made


def test_every_broken_clip_is_named_within_the_memory_of_a_good_one(manifests, tally):
    good, *broken = peaks("read_pairs", manifests)
    assert good["text"] == "read"
    ratios = {}
    for (name, (_, _, wanted)), found, number in zip(BROKEN.items(), broken, range(1, 100), strict=False):
        assert re.search(f"pair `pair{number}`", found["text"]), (name, found)
        assert re.search(wanted, found["text"]), (name, found)
        ratios[name] = found["peak_bytes"] / good["peak_bytes"]
    held = [name for name, ratio in ratios.items() if ratio <= BOUND]
    worst = max(ratios.values())
    tally(
        9, len(BROKEN), len(held), most_memory=round(worst, 2), good_pair_mb=round(good["peak_bytes"] / 1e6)
    )
