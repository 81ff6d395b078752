"""Clips as cameras, phones, web pages and editors leave them, each written by FFmpeg's own encoders and muxers.

What a frame shows tells when it is on screen: its grey grows from 40 to 170 in the clip's time. A red disc in the upper
left corner tells whether the picture is upright and its pixels square.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

WIDTH, HEIGHT = 96, 64  # as displayed
CENTRE, RADIUS = (28, 24), 13
DARK, BRIGHT = 40.0, 170.0  # grey levels, of 255
RED = np.array([190.0, 50.0, 50.0])


@dataclass(frozen=True)
class Odd:
    """One clip. `shown`: numbers of the frames at `rate` that it holds, all where None; `cut`: so many seconds are cut
    off its start without encoding it again, by an edit list."""

    name: str
    ending: str = "mp4"
    codec: str = "libx264"
    pixels: str = "yuv420p"
    rate: Fraction = Fraction(16)
    frames: int = 16
    full_range: bool = False
    rotation: int = 0  # degrees
    pixel: Fraction = Fraction(1)
    light: str = "sdr"
    primaries: str = "bt709"
    interlaced: bool = False
    shown: tuple[int, ...] | None = None
    cut: float = 0.0
    options: dict = field(default_factory=dict)
    tolerance: float = 2.5  # grey levels

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '_').replace('/', '-')}.{self.ending}"

    @property
    def growth(self) -> float:
        """Grey levels a second."""
        return (BRIGHT - DARK) * float(self.rate) / (max(self.shown or (0,)) or self.frames)

    @property
    def times(self) -> list[Fraction]:
        """Seconds of what is to be seen, from its first frame on."""
        numbers = [Fraction(n) / self.rate for n in self.shown or range(self.frames)]
        left = [time for time in numbers if time >= Fraction(self.cut).limit_denominator(1000)]
        return [time - left[0] for time in left]

    @property
    def first(self) -> Fraction:
        """Seconds of its first frame to be seen, in the clip before the cut."""
        numbers = [Fraction(n) / self.rate for n in self.shown or range(self.frames)]
        return next(time for time in numbers if time >= Fraction(self.cut).limit_denominator(1000))


def picture(odd: Odd, time: float) -> np.ndarray:
    """The frame at a time as it is displayed, float `[H, W, 3]` of 255."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    frame = np.full((HEIGHT, WIDTH, 3), DARK + odd.growth * time)
    frame[(x - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 <= RADIUS**2] = RED
    return frame


def stored(odd: Odd, time: float) -> np.ndarray:
    """The same as it is coded: turned, with pixels that are not square, in its own light; float of 255."""
    frame = picture(odd, time)
    if odd.interlaced:  # odd lines are half a frame later
        frame[1::2] = picture(odd, time + 0.5 / float(odd.rate))[1::2]
    frame = np.rot90(frame, -odd.rotation // 90)
    if odd.pixel != 1:
        wide = frame.shape[1]
        columns = ((np.arange(round(wide / odd.pixel / 2) * 2) + 0.5) * float(odd.pixel)).astype(int)
        frame = frame[:, columns.clip(0, wide - 1)]
    return frame if (odd.light, odd.primaries) == ("sdr", "bt709") else 255 * in_light(frame / 255, odd)


def in_light(frame: np.ndarray, odd: Odd) -> np.ndarray:
    """BT.1886 of 203 cd/m2 -> code values of another light: ST 2084's inverse EOTF, BT.2100's HLG at 1,000 cd/m2."""
    light = 203 * frame**2.4
    if odd.primaries == "bt2020":  # BT.2087's matrix, from BT.709
        matrix = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
        light = light @ np.array(matrix).T
    if odd.light in ("sdr", "linear"):  # the latter only says that it is
        return (light / 203) ** (1 / 2.4)
    if odd.light == "pq":
        y = (light / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    luminance = light @ np.array([0.2627, 0.6780, 0.0593])
    scene = light / 1000 * np.maximum(luminance / 1000, 1e-9)[..., None] ** (1 / 1.2 - 1)
    logarithmic = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithmic)


def write(folder: Path, odd: Odd) -> Path:
    path = folder / odd.file
    if odd.ending == "webp":
        _write_webp(path, odd)
    elif odd.cut:
        whole = write(folder, replace(odd, name=f"{odd.name} whole", cut=0.0))
        _cut(whole, path, odd)
        whole.unlink()
    else:
        _encode(path, odd)
    return path


def _encode(path: Path, odd: Odd) -> None:
    rgb = [stored(odd, n / float(odd.rate)) for n in odd.shown or range(odd.frames)]
    wide = odd.primaries == "bt2020"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(odd.codec, rate=odd.rate, options=dict(odd.options))
        stream.height, stream.width = rgb[0].shape[:2]
        stream.pix_fmt = odd.pixels
        context = stream.codec_context
        context.sample_aspect_ratio = odd.pixel
        context.color_range = 2 if odd.full_range else 1
        if odd.pixels not in ("rgb24", "pal8", "rgb8", "bgr0"):
            context.colorspace = 9 if wide else 1
            context.color_primaries = 9 if wide else 1
            context.color_trc = {"pq": 16, "hlg": 18, "linear": 8, "sdr": 14 if wide else 1}[odd.light]
        if odd.rotation:
            stream.set_display_rotation(odd.rotation)
        scaler = VideoReformatter()
        for number, array in zip(odd.shown or range(odd.frames), rgb, strict=True):
            deep = np.ascontiguousarray((array * 257).round().astype(np.uint16))
            frame = av.VideoFrame.from_ndarray(deep, format="rgb48le")
            frame = scaler.reformat(
                frame,
                format=odd.pixels,
                dst_colorspace=Colorspace.BT2020 if wide else Colorspace.ITU709,
                dst_color_range=2 if odd.full_range else 1,
            )
            frame.pts, frame.time_base = number, 1 / odd.rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _cut(whole: Path, path: Path, odd: Odd) -> None:
    """What `ffmpeg -ss ... -c copy` writes: packets from the key frame on, and an edit list that hides the first."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        unit = Fraction(stream.time_base)
        offset = round(odd.first / unit)
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = copy
            target.mux(packet)


def _write_webp(path: Path, odd: Odd) -> None:
    from PIL import Image

    frames = [
        Image.fromarray(stored(odd, n / float(odd.rate)).round().astype(np.uint8)) for n in range(odd.frames)
    ]
    duration = round(1000 / odd.rate)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, lossless=True, loop=0)


WIDE = Fraction(4, 3)
NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)
GAPS = tuple(n for n in range(16) if n % 5 != 3)
TEN = {"pixels": "yuv420p10le", "primaries": "bt2020"}
FINE = {"qmax": "2", "qmin": "1"}
X265 = {"x265-params": "log-level=none"}
FIELDS = {"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1"}
AVI, TS, MKV, MOV, WEBM = "avi", "ts", "mkv", "mov", "webm"

CORPUS = [
    *(Odd(f"rate {float(rate):.2f}", rate=Fraction(rate)) for rate in (8, 10, 12, 15, FILM, 24, 25, NTSC, 30)),
    *(Odd(f"rate {rate}", rate=Fraction(rate), frames=rate) for rate in (48, 50, 60, 120)),
    *(Odd(f"{rate} in Matroska", MKV, rate=rate, frames=24) for rate in (FILM, NTSC, Fraction(60))),
    *(Odd(f"{rate} in MPEG-TS", TS, rate=Fraction(rate), frames=24) for rate in (25, NTSC, 50)),
    Odd("AVI", AVI, "mpeg4", options=FINE),
    Odd("AVI with B-frames", AVI, "mpeg4", options={"bf": "2", **FINE}),
    Odd("H.264 in AVI", AVI, rate=Fraction(25)),
    Odd("motion JPEG", AVI, "mjpeg", "yuvj420p", full_range=True, rate=Fraction(30)),
    Odd("motion JPEG in QuickTime", MOV, "mjpeg", "yuvj420p", full_range=True),
    Odd("ProRes", MOV, "prores_ks", "yuv422p10le", rate=Fraction(24)),
    Odd("ProRes 60", MOV, "prores_ks", "yuv422p10le", rate=Fraction(60), frames=30),
    Odd("QuickTime animation", MOV, "qtrle", "rgb24"),
    Odd("PNG in QuickTime", MOV, "png", "rgb24"),
    Odd("FFV1", MKV, "ffv1", "yuv444p"),
    Odd("FFV1 of 10 bits", MKV, "ffv1", "yuv444p10le", rate=Fraction(48)),
    Odd("VP9", WEBM, "libvpx-vp9", options={"lossless": "1"}),
    Odd("VP9 60", WEBM, "libvpx-vp9", rate=Fraction(60), frames=24, options={"lossless": "1"}),
    Odd("VP9 with hidden frames", WEBM, "libvpx-vp9", frames=40, options={"auto-alt-ref": "1", "crf": "10", "b": "0"}),
    Odd("VP8", WEBM, "libvpx", options={"crf": "4", "b:v": "4M"}),
    Odd("HEVC", "mp4", "libx265", options=X265),
    Odd("HEVC in Matroska", MKV, "libx265", rate=NTSC, options=X265),
    Odd("AV1", "mp4", "libsvtav1", "yuv420p10le", options={"preset": "12", "crf": "10"}),
    Odd("MPEG-2", TS, "mpeg2video", rate=Fraction(25), options=FINE),
    Odd("MPEG-1", "mpg", "mpeg1video", rate=Fraction(25), options=FINE),
    Odd("WMV", "wmv", "wmv2", options=FINE),
    Odd("Flash", "flv", rate=Fraction(30)),
    Odd("GIF", "gif", "gif", "rgb8", rate=Fraction(10), tolerance=24.0),
    Odd("animated WebP", "webp", rate=Fraction(8)),
    Odd("animated WebP 16", "webp", rate=Fraction(1000, 62)),
    Odd("4:4:4", pixels="yuv444p"),
    Odd("4:2:2", pixels="yuv422p"),
    Odd("10 bits", pixels="yuv420p10le"),
    Odd("lossless", options={"qp": "0"}),
    Odd("full range", full_range=True),
    Odd("full range in HEVC", codec="libx265", full_range=True, options=X265),
    Odd("full range in VP9", WEBM, "libvpx-vp9", full_range=True),
    *(Odd(f"turned by {degrees}", rotation=degrees) for degrees in (90, 180, 270)),
    Odd("turned in QuickTime", MOV, rotation=90, rate=Fraction(60), frames=30),
    *(Odd(f"pixels {a}-{b}", pixel=Fraction(a, b)) for a, b in ((2, 1), (4, 3), (1, 2), (8, 9), (12, 11))),
    Odd("pixels 4-3 in Matroska", MKV, pixel=Fraction(4, 3)),
    Odd("pixels 2-1 turned", pixel=Fraction(2), rotation=90),
    Odd("PQ", light="pq", codec="libx265", options=X265, **TEN),
    Odd("PQ in Matroska", MKV, light="pq", codec="libx265", options=X265, **TEN),
    Odd("PQ 60", light="pq", rate=Fraction(60), frames=30, **TEN),
    Odd("HLG", light="hlg", codec="libx265", options=X265, **TEN),
    Odd("HLG in QuickTime", MOV, light="hlg", codec="libx265", rate=NTSC, options=X265, **TEN),
    Odd("HLG turned", light="hlg", rotation=270, **TEN),
    Odd("wide gamut", codec="libx265", options=X265, **TEN),
    *(Odd(f"cut at {cut}", frames=48, cut=cut, options={"g": "16"}) for cut in (0.5, 1.3, 2.0)),
    Odd("cut in QuickTime", MOV, rate=Fraction(30), frames=60, cut=0.7, options={"g": "30"}),
    Odd("cut without B-frames", frames=32, cut=0.4, options={"bf": "0", "g": "32"}),
    Odd("cut HEVC", codec="libx265", frames=32, cut=0.8, options=X265),
    Odd("interlaced", rate=Fraction(25), frames=20, interlaced=True, options=FIELDS, tolerance=5.0),
    Odd("interlaced NTSC", rate=NTSC, frames=20, interlaced=True, options=FIELDS, tolerance=5.0),
    Odd("interlaced in MPEG-TS", TS, rate=Fraction(25), frames=20, interlaced=True, options=FIELDS, tolerance=5.0),
    Odd("interlaced, wide pixels", rate=Fraction(25), interlaced=True, pixel=WIDE, options=FIELDS, tolerance=5.0),
    Odd("dropped frames", shown=GAPS),
    Odd("dropped frames in Matroska", MKV, shown=GAPS),
    Odd("slow start", rate=Fraction(30), shown=(0, 2, 4, 6, *range(8, 30))),
    Odd("screen recording", rate=Fraction(60), shown=(0, 7, 8, 9, 10, 11, 30, 31, 32, 33, 34, 50, 59), tolerance=4.0),
]  # fmt: skip
