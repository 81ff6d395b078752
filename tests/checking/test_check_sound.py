"""What `pgdpo check` says of the clips' sound, and the sound of clips that `check --fix` encodes again."""

import json

import numpy as np
import pytest

from pgdpo.checking import run_check
from pgdpo.video import Sound, SoundFormat, probe_video, read_sound, write_video
from tests.models.tiny_ltx2 import save_tiny_ltx2
from tests.video.sounding import FPS, beep, heard, write_clip
from tests.worlds import write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")
FRAMES = 24
SILENCE = np.zeros((2, 48000), np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_ltx2(tmp_path_factory.mktemp("ltx2"))


def picture(shade: int, frames: int = FRAMES, side: int = 48) -> np.ndarray:
    clip = np.full((frames, side, 64, 3), shade, np.uint8)
    clip[:, :, : 16 + shade % 32] = 255 - shade
    return clip


@pytest.fixture
def checked(tmp_path, model):
    """`checked(rows, *overrides, **options)`: what a check of rows of (sound or None, sound or None) finds."""
    folder, shade = tmp_path / "data", iter(range(1, 200))
    folder.mkdir()

    def write(side: Sound | None, name: str) -> str:
        write_video(folder / f"{name}.mp4", picture(next(shade)), FPS, sound=side)
        return f"{name}.mp4"

    def check(rows, *overrides, made=write, **options):
        lines = []
        for number, sides in enumerate(rows):
            row = {"id": f"p{number}", "prompt": "word"}
            for key, side in zip(("chosen", "rejected"), sides, strict=True):
                row[key] = side if isinstance(side, str) else made(side, f"{number}-{key}")
            lines.append(json.dumps(row))
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
        config = write_config(
            tmp_path / "config.yaml",
            tmp_path / "out",
            model,
            data={
                "train": str(folder / "train.jsonl"),
                "held_out": None,
                "num_frames": 9,
                "height": 64,
                "width": 64,
            },
            model={"family": "ltx2", "encoders": "pipeline"},
            train={"global_batch_groups": 1, "micro_batch_groups": 1},
            evaluate={"reward": None, "fps": None},
        )
        return run_check(str(config), list(overrides), **options)

    check.folder = folder
    return check


def tone(rate: int = 48000, seconds: float = 1.0, at: float = 0.2, channels: int = 2) -> Sound:
    return Sound(beep(rate, seconds, at, channels), rate)


def said(findings, severity: str) -> list[str]:
    return [problem.what for problem in findings.problems if problem.severity == severity]


def test_sound_in_step_is_told_by_its_kinds(checked):
    found = checked([(tone(), tone()), (tone(44100, channels=1), tone(44100, channels=1)), (None, None)])
    assert said(found, "error") == []
    lines = "\n".join(found.views)
    assert "sound of 1 pairs: 48,000 Hz stereo" in lines and "sound of 1 pairs: 44,100 Hz mono" in lines
    assert "1 of 3 pairs have no sound: their audio part doesn't count" in lines


def test_what_prepare_refuses_is_an_error_and_what_a_listener_would_not_expect_a_warning(checked):
    folder = checked.folder
    write_clip(folder / "late.mp4", beep(48000, 1.0, 0.3), 48000, frames=FRAMES, begins=0.4)
    write_clip(folder / "short.mov", beep(48000, 0.2, 0.1), 48000, frames=FRAMES, codec="pcm_s16le")
    rows = [
        (tone(), None),
        ("short.mov", tone()),
        ("late.mp4", tone()),
        (tone(), Sound(SILENCE, 48000)),
    ]
    found = checked(rows)
    one_sided, short = said(found, "error")
    assert "`rejected` of pair `p0`" in one_sided and "has no sound, and chosen has" in one_sided
    assert "`chosen` of pair `p1`" in short and "its sound ends after 0.2 s" in short
    warned = "\n".join(said(found, "warning"))
    assert "`chosen` of pair `p2`" in warned and "its sound begins 0.38 s after its picture" in warned
    assert "`rejected` of pair `p3`" in warned and "silence from beginning to end" in warned
    deaf = checked(rows, "model.audio=false")
    assert said(deaf, "error") == [] and "silence" not in "\n".join([*said(deaf, "warning"), *deaf.views])


def test_damaged_sound_is_an_error_where_it_is_listened_to(checked):
    path = write_clip(checked.folder / "c.mkv", beep(48000, 1.0, 0.3), 48000, frames=FRAMES, codec="flac")
    data = bytearray(path.read_bytes())
    while (at := data.find(b"\xff\xf8")) >= 0:
        data[at : at + 2] = b"\0\0"
    path.write_bytes(data)
    (error,) = said(checked([("c.mkv", tone())]), "error")
    assert "`chosen` of pair `p0`" in error and "its sound track" in error
    assert said(checked([("c.mkv", tone())], "model.audio=false"), "error") == []


def test_a_clip_that_is_encoded_again_keeps_its_sound(checked, tmp_path):
    """Clips of two sizes: both are made anew at the smaller, each with what is to be heard of it."""

    def unlike(side: Sound | None, name: str) -> str:
        shade, size = (40, 48) if "chosen" in name else (90, 64)
        write_video(checked.folder / f"{name}.mp4", picture(shade, side=size), FPS, sound=side)
        return f"{name}.mp4"

    rows = [(tone(48000, at=0.3), tone(44100, at=0.6, channels=1)), (None, None), (tone(), None)]
    for audio, kept in (("true", 2), ("false", 3)):
        out = tmp_path / f"mended-{audio}.jsonl"
        found = checked(rows, f"model.audio={audio}", made=unlike, fix=str(out))
        assert found.mended.kept == kept, found.mended
        made = [json.loads(line) for line in out.read_text().splitlines()]
        clips = [[probe_video(out.parent / row[side]) for side in ("chosen", "rejected")] for row in made]
        assert all((clip.width, clip.height) == (64, 48) for row in clips for clip in row)
        for clip, at in zip(clips[0], (0.3, 0.6), strict=True):
            assert (clip.sound.rate, clip.sound.channels) == (
                44100,
                1,
            )  # what both have: it tells none from the other
            samples = read_sound(clip, 0.0, 1.0, SoundFormat(16000, 1)).samples
            assert heard(samples, 16000) == pytest.approx([at], abs=1e-3)
        assert all(clip.sound is None for clip in clips[1])
    assert clips[2][0].sound is not None and clips[2][1].sound is None
    assert "p2" in checked(rows, made=unlike, fix=str(tmp_path / "again.jsonl")).mended.dropped


def test_a_clip_whose_track_is_too_short_is_not_made_long_by_silence(checked, tmp_path):
    """Clips of two sizes, which have no plan as they are: the copies' sound would reach to their end."""
    write_clip(checked.folder / "short.mov", beep(48000, 0.2, 0.1), 48000, frames=FRAMES, codec="pcm_s16le")
    write_clip(checked.folder / "enough.mov", beep(48000, 0.5, 0.1), 48000, frames=FRAMES, codec="pcm_s16le")
    larger = [picture(shade, side=96) for shade in (9, 70)]
    for number, frames in enumerate(larger):
        write_video(checked.folder / f"large{number}.mp4", frames, FPS, sound=tone())
    rows = [("large0.mp4", "short.mov"), ("large1.mp4", "enough.mov")]
    found = checked(rows, fix=str(tmp_path / "mended.jsonl")).mended
    assert found.kept == 1 and "p1" in found.reencoded
    assert "rejected: its sound ends after 0.2 s" in found.dropped["p0"]
    assert checked(rows, "model.audio=false", fix=str(tmp_path / "deaf.jsonl")).mended.kept == 2
