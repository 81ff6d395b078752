"""Pairs made of clips with sound: what is heard on each side is looked at with PyAV alone."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from pgdpo.config.read import load_config
from pgdpo.making.corrupt import CORRUPTIONS
from pgdpo.making.sound import SOUND_FAULTS
from pgdpo.messages.errors import InputError
from pgdpo.video import Sound, write_video
from tests.models.families import LTX2
from tests.worlds import read_manifest, run_pgdpo

SECONDS, FPS, RATE = 2, 8, 44100
FRAMES = SECONDS * FPS


@pytest.fixture
def sounding(saved) -> list[str]:
    """A model that makes sound."""
    return [
        "model.family=ltx2",
        f"model.path={saved(LTX2.save)}",
        "model.encoders=pipeline",
        f"model.frame_rate={FPS}",
    ]


def tone(hertz, seconds=SECONDS):
    """A tone that swells, so that another time is another loudness."""
    at = np.arange(round(seconds * RATE)) / RATE
    return Sound((0.4 * at / seconds * np.sin(2 * np.pi * hertz * at))[None].astype(np.float32), RATE)


@pytest.fixture
def listed(tmp_path):
    """Three clips with tones of 300, 600 and 900 Hz, and two in which nothing is heard: one without a track."""
    sounds = [tone(300), tone(600), tone(900), None, Sound(np.zeros((1, SECONDS * RATE), np.float32), RATE)]
    rows = []
    for number, sound in enumerate(sounds):
        grey = 30 + 20 * number + 5 * np.arange(FRAMES, dtype=np.uint8)
        frames = grey[:, None, None, None] + np.zeros((FRAMES, 24, 24, 3), np.uint8)
        write_video(tmp_path / f"{number}.mp4", frames, FPS, sound=sound)
        rows.append({"id": f"c{number}", "prompt": "a ball", "video": f"{number}.mp4"})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "clips.jsonl"


def made(listed, *overrides, kind="corrupt", out="pairs") -> dict[str, dict]:
    folder = listed.parent
    own = [f"output_dir={folder}", "data.num_frames=16", "evaluate.reward=null"]
    run_pgdpo("make", kind, "quickstart.yaml", listed, folder / out, *own, *overrides)
    assert sum(1 for _ in read_manifest(folder / out / "manifest.jsonl"))
    rows = [json.loads(line) for line in (folder / out / "manifest.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in rows}


def packets(path, kind) -> list[bytes]:
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        return [bytes(packet) for packet in container.demux(*streams)] if streams else []


def heard(path) -> np.ndarray:
    """The track's first channel, 48 kHz."""
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 48000 and container.streams.audio[0].channels == 2
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def pitch(path) -> float:
    samples = heard(path)[: 48000 * SECONDS]
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) / (len(samples) / 48000)


def both(listed, row, out="pairs"):
    return [listed.parent / out / row[side] for side in ("chosen", "rejected")]


@pytest.mark.parametrize("fault", ["sound_shift", "sound_swap", "sound_clip", "sound_drop"])
def test_a_fault_of_sound_leaves_the_picture_to_the_byte(listed, sounding, fault, capfd):
    rows = made(listed, *sounding, f"make.corruptions=[{fault}]")
    assert [*rows] == ["c0", "c1", "c2"]  # of the others nothing can be heard
    assert "2 have no sound that could be corrupted and gave none" in capfd.readouterr().out
    for number, row in enumerate(rows.values()):
        chosen, rejected = both(listed, row)
        assert packets(chosen, "video") == packets(rejected, "video")
        assert packets(chosen, "audio") != packets(rejected, "audio")
        assert row["corruption"] == fault and row["dimensions"] == {"video": 0.5, "audio": 1}
        assert abs(pitch(chosen) - 300 * (number + 1)) < 2
        right = abs(pitch(rejected) - 300 * (number + 1)) < 2
        assert right == (fault != "sound_swap")
        # The tone swells: what is chosen is in step with its picture.
        loud = [np.square(part).mean() for part in np.array_split(heard(chosen)[: 48000 * SECONDS], 8)]
        assert loud == sorted(loud) and loud[-1] > 5 * loud[2]


def test_a_fault_of_the_picture_keeps_the_sound_of_both(listed, sounding):
    rows = made(listed, *sounding, "make.corruptions=[reverse]")
    assert len(rows) == 5
    for number, row in enumerate(rows.values()):
        chosen, rejected = both(listed, row)
        assert packets(chosen, "video") != packets(rejected, "video")
        assert packets(chosen, "audio") == packets(rejected, "audio")
        if number == 3:  # without a track
            assert not packets(chosen, "audio") and "dimensions" not in row
        else:
            assert packets(chosen, "audio") and row["dimensions"] == {"video": 1, "audio": 0.5}


def test_both_befall_a_clip_that_sounds(listed, sounding, capfd):
    rows = made(
        listed, *sounding, "make.corruptions=[sound_clip,tear]", "make.pairs_per_clip=2", "make.seed=3"
    )
    assert len(rows) == 10
    of_sound = [row["id"] for row in rows.values() if row["corruption"] == "sound_clip"]
    assert 1 < len(of_sound) < 6 and all(name[:2] in ("c0", "c1", "c2") for name in of_sound)
    said = capfd.readouterr().out
    own = f"{len(of_sound)} a fault of it under the same picture, {8 - len(of_sound)} the clip's own on both"
    assert f"8 pairs have sound, 48,000 Hz stereo: {own}" in said


def test_what_befalls_a_clip_by_default(sounding):
    def faults(*overrides):
        config = load_config("quickstart.yaml", [*overrides])
        return set(config.make.faults(config.model.streams))

    assert faults() == faults(*sounding, "model.audio=false") == set(CORRUPTIONS)
    assert faults(*sounding) == {*CORRUPTIONS, *SOUND_FAULTS}


def test_a_model_without_sound_is_told_apart(listed, capfd):
    rows = made(listed)
    assert not any(row["corruption"].startswith("sound_") for row in rows.values())
    assert packets(both(listed, rows["c0"])[1], "audio")  # the track stays
    with pytest.raises(
        InputError, match=r"make.corruptions has sound_clip and a model of wan is given no sound"
    ):
        made(listed, "make.corruptions=[tear,sound_clip]", out="others")


def test_a_wrong_track_needs_another_clip(listed, sounding):
    lines = listed.read_text().splitlines()
    listed.write_text(lines[0] + "\n" + lines[4] + "\n")  # the other is silent
    with pytest.raises(InputError, match="no pair can be made of it: all its 2 have no sound that could be"):
        made(listed, *sounding, "make.corruptions=[sound_swap]")
    rows = made(listed, *sounding, "make.corruptions=[sound_swap,tear]", out="others").values()
    assert [row["corruption"] for row in rows] == ["tear", "tear"]


def test_a_part_of_a_clip_has_its_own_sound(listed, sounding):
    """Of 16 frames the last 8, whose tone is the louder half."""
    rows = made(listed, *sounding, "make.corruptions=[reverse]", "data.num_frames=8", "data.clip=segments:2",
                "make.pairs_per_clip=2")  # fmt: skip
    halves = [heard(both(listed, rows[f"c1-{n}"])[0]) for n in range(2)]
    loud = [np.square(half[:48000]).mean() for half in halves]
    assert loud[1] > 4 * loud[0]


def test_a_track_that_ends_before_the_picture_is_named_before_anything_is_written(listed, sounding):
    frames = np.full((FRAMES, 24, 24, 3), 90, np.uint8)
    with av.open(str(listed.parent / "1.mp4"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=FPS), container.add_stream("aac", rate=RATE)
        picture.width = picture.height = 24
        picture.pix_fmt, sound.layout = "yuv420p", "mono"
        for array in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(array)))
        container.mux(picture.encode())
        half = av.AudioFrame.from_ndarray(tone(500, 1.0).samples, format="fltp", layout="mono")
        half.sample_rate = RATE
        container.mux(sound.encode(half))
        container.mux(sound.encode())
    with pytest.raises(InputError, match=r"1.mp4: its sound ends after 1"):
        made(listed, *sounding)
    assert not (listed.parent / "pairs").exists()


def test_a_box_made_anew_keeps_the_clips_own_sound(listed):
    rows = made(listed, "evaluate.sampling_steps=2", "evaluate.guidance_scale=1.5", kind="masked")
    for name, row in rows.items():
        chosen, rejected = both(listed, row)
        assert packets(chosen, "audio") == packets(rejected, "audio")
        assert bool(packets(chosen, "audio")) == (name != "c3")
        assert row.get("dimensions") == (None if name == "c3" else {"video": 1, "audio": 0.5})


@pytest.fixture
def ltx2(sounding):
    """The same, to be asked for clips."""
    frames, height, width = LTX2.size
    size = [f"data.num_frames={frames}", f"data.height={height}", f"data.width={width}"]
    return [*sounding, *size, "evaluate.sampling_steps=2", "evaluate.guidance_scale=1.5"]


def test_a_models_own_clip_sounds_against_one_that_sounds(listed, ltx2):
    """Both through the audio VAE; against a silent one it is silent. And of two prompts both sound."""
    rows = made(listed, *ltx2, kind="real")
    for name, row in rows.items():
        tracks = [packets(path, "audio") for path in both(listed, row)]
        assert [bool(each) for each in tracks] == [name != "c3"] * 2 and "dimensions" not in row
        if name != "c3":
            assert tracks[0] != tracks[1]
    listed.write_text(json.dumps({"id": "q", "prompt": "a red circle moving left"}) + "\n")
    [row] = made(listed, *ltx2, kind="prompts", out="prompts").values()
    tracks = [packets(path, "audio") for path in both(listed, row, "prompts")]
    assert tracks[0] and tracks[1] and tracks[0] != tracks[1]


def test_a_box_made_anew_by_a_model_with_sound_keeps_the_clips_own(listed, ltx2):
    """The model is asked for the picture alone."""
    row = made(listed, *ltx2, kind="masked")["c0"]
    chosen, rejected = both(listed, row)
    assert packets(chosen, "audio") == packets(rejected, "audio") and abs(pitch(chosen) - 300) < 3
    assert packets(chosen, "video") != packets(rejected, "video")
    assert row["dimensions"] == {"video": 1, "audio": 0.5}


@pytest.mark.parametrize("model", ["hears", "does not"])
def test_frames_that_are_taken_one_by_one_keep_in_step_with_their_sound(listed, sounding, model):
    """Frames of two lengths, written at one: the second half's sound would be another's."""
    frames = np.full((FRAMES, 24, 24, 3), 90, np.uint8)
    with av.open(str(listed.parent / "1.mp4"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=FPS), container.add_stream("aac", rate=RATE)
        picture.width = picture.height = 24
        picture.pix_fmt, sound.layout = "yuv420p", "mono"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array)
            frame.pts, frame.time_base = number + max(number - 12, 0), Fraction(1, FPS)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        whole = av.AudioFrame.from_ndarray(tone(500, 3.0).samples, format="fltp", layout="mono")
        whole.sample_rate = RATE
        container.mux(sound.encode(whole))
        container.mux(sound.encode())
    overrides = sounding if model == "hears" else []
    with pytest.raises(
        InputError, match=r"1.mp4: its frames are not equally long.*out of step with its sound"
    ):
        made(listed, *overrides, "data.fps=own")
    assert not (listed.parent / "pairs").exists()
    made(listed, *overrides)
