"""What every page of ours shares: its template's environment, and clips that stand in the page itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from pgdpo.files.atomic import atomic_path
from pgdpo.messages.formats import is_number, number, objective_name, percent, place, signed
from pgdpo.video import SoundFormat, VideoInfo, probe_video, read_sound

PIXEL_ART = 200  # pixels; clips narrower than this are shown with hard pixels, not blurred up
SOUND, SOUND_BITS = SoundFormat(24000, 1), 48_000  # of clips that are shrunk for a page, and bits a second
BARS = 120  # of a clip's waveform
GIVEN = {
    "image": "starts from",
    "last_image": "ends with",
}  # what a page calls the pictures that a model is given


def write_page(out: Path, template: str, **parts) -> None:
    """`out` from a template of the package (`report/templates/report.html.jinja`); whole or not there."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pgdpo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "signed": signed,
        "place": place,
        "objective_name": objective_name,
        "code": with_code,
    }
    environment.tests["number"] = is_number
    page = environment.get_template(template).render(**parts)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def with_code(text: str) -> Markup:
    """A message as HTML: what stands between backticks is code."""
    words = str(text).split("`")
    if len(words) % 2 == 0:  # one without its other
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(word) if place % 2 else word for place, word in enumerate(words))


def embedded(clip: Path) -> dict:
    """An MP4 as `data`, a URL that holds it, with its `frames`, `fps`, `width` and `height`, whether its pixels are
    meant to be seen, and its `sound`."""
    info, data = probe_video(clip), base64.b64encode(clip.read_bytes()).decode("ascii")
    return {
        "data": f"data:video/mp4;base64,{data}",
        "frames": info.num_frames,
        "fps": info.fps,
        "width": info.width,
        "height": info.height,
        "pixel_art": info.width < PIXEL_ART,
        "sound": _sound(info),
    }


def _sound(info: VideoInfo) -> dict | None:
    """A clip's sound as the `wave` of an SVG that is `bars` wide and 20 high; None where it has none."""
    if info.sound is None:
        return None
    samples = read_sound(info, 0, info.duration, SoundFormat(8000, 1)).samples[0]
    heights = [10 * min(1.0, float(np.abs(part).max(initial=0))) for part in np.array_split(samples, BARS)]
    wave = "".join(f"M{place + 0.5} {10 - high:.1f}V{10 + high:.1f}" for place, high in enumerate(heights))
    return {"wave": wave, "bars": BARS}


def embedded_picture(key: str, pixels: np.ndarray | None, words: str = "", *, most: int = 256) -> dict:
    """A picture that a model is given, of uint8 `[H, W, 3]` (None: it cannot be shown), as `embedded` has clips: with
    `most` pixels on the longer side at most, under its name, and with `words` beside it."""
    named = {"name": GIVEN[key], "words": words, "data": None}
    if pixels is None:
        return named
    from PIL import Image

    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((most, most))
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = {"width": picture.width, "height": picture.height, "pixel_art": pixels.shape[1] < PIXEL_ART}
    return named | {"data": f"data:image/png;base64,{data}", **size}
