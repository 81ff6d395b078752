"""A clip's sound, in step with its picture through codecs, containers, cuts and other rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.messages.errors import InputError
from pgdpo.video import Sound, SoundFormat, probe_video, read_sound, read_video, write_video
from tests.video.sounding import FPS, FRAMES, beep, cut_copy, heard, write_clip

FORMAT = SoundFormat(16000, 2)
SECONDS = FRAMES / FPS
# A beep's crest, in seconds. (FFmpeg's AVI says nothing of MP3's delay, and its WebM lays the picture 7 ms after Opus:
# what a player plays is late there too.)
STEP = 1e-3
CONTAINERS = [
    ("mp4", "aac", "libx264"),
    ("mp4", "libmp3lame", "libx264"),
    ("mp4", "libopus", "libx264"),
    ("mov", "pcm_s16le", "libx264"),
    ("mov", "pcm_s24le", "libx264"),
    ("mkv", "aac", "libx264"),
    ("mkv", "libmp3lame", "libx264"),
    ("mkv", "flac", "ffv1"),
    ("avi", "pcm_s16le", "mpeg4"),
    ("ts", "aac", "libx264"),
]


def refused(*args) -> str:
    with pytest.raises(InputError) as error:
        read_sound(*args)
    return str(error.value)


@pytest.mark.parametrize(("ending", "codec", "picture"), CONTAINERS)
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (48000, 1), (22050, 2)])
def test_a_beep_stays_where_it_was(tmp_path, ending, codec, picture, rate, channels):
    if codec == "libopus" and rate != 48000:
        pytest.skip("Opus has 48 kHz alone")
    samples = beep(rate, SECONDS, 1.25, channels)
    clip = probe_video(write_clip(tmp_path / f"c.{ending}", samples, rate, codec=codec, picture=picture))
    assert clip.sound.rate == rate and clip.sound.channels == channels
    assert abs(clip.sound.end - SECONDS) < 0.06 and abs(clip.sound.start) < 0.06  # to a packet
    for first, seconds in ((0.0, SECONDS), (1.0, 0.5)):
        sound = read_sound(clip, first, seconds, FORMAT)
        assert sound.samples.shape == (2, round(seconds * 16000)) and sound.samples.dtype == np.float32
        assert heard(sound.samples, 16000) == pytest.approx([1.25 - first] * 2, abs=STEP)
        assert 0.8 < np.abs(sound.samples).max() < 0.95
        np.testing.assert_allclose(*sound.samples, atol=1e-6)  # one channel is copied, not halved


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_a_cut_without_encoding_keeps_them_in_step(tmp_path, ending):
    whole = write_clip(tmp_path / "whole.mp4", beep(48000, SECONDS, 1.5), 48000)
    clip = probe_video(cut_copy(whole, tmp_path / f"cut.{ending}", 0.5))
    shown = FRAMES - clip.num_frames  # Matroska has no edit list: the packets before the cut are shown
    sound = read_sound(clip, 0.0, clip.num_frames / FPS, FORMAT)
    assert ending == "mkv" or shown == 12
    assert heard(sound.samples, 16000) == pytest.approx([1.5 - shown / FPS] * 2, abs=STEP)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("begins", [0.4, -0.4])
def test_a_track_that_begins_elsewhere_than_the_picture(tmp_path, ending, begins):
    samples = beep(48000, SECONDS + 0.4, 1.0)
    clip = probe_video(write_clip(tmp_path / f"c.{ending}", samples, 48000, begins=begins))
    sound = read_sound(clip, 0.0, SECONDS, FORMAT)
    assert heard(sound.samples, 16000) == pytest.approx([1.0 + begins] * 2, abs=STEP)
    if begins > 0:
        assert clip.sound.start == pytest.approx(begins, abs=0.03)
        assert np.abs(sound.samples[:, : round(0.35 * 16000)]).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(
    first=st.floats(0, 1.5), seconds=st.floats(0.05, 0.5), rate=st.sampled_from([8000, 16000, 24000, 48000])
)
def test_a_part_is_that_of_the_whole(tmp_path_factory, first, seconds, rate):
    fmt = SoundFormat(rate, 1)
    path = tmp_path_factory.getbasetemp() / "tones.mov"
    t = np.arange(round(44100 * SECONDS)) / 44100
    tones = np.sum([np.sin(2 * np.pi * hz * t) for hz in (200, 331, 1700)], 0)[None].astype(np.float32) / 4
    if not path.exists():
        write_clip(path, tones, 44100, codec="pcm_s16le")
    part = read_sound(probe_video(path), first, seconds, fmt).samples[0]
    assert part.shape == (round(seconds * rate),)
    at = first + np.arange(len(part)) / rate
    wanted = np.sum([np.sin(2 * np.pi * hz * at) for hz in (200, 331, 1700)], 0) / 4
    inside = (at > 0.01) & (at < SECONDS - 0.01)  # the resampler has nothing before and after
    # Half a sample at the new rate is the most that a part may be off.
    assert np.abs(part - wanted)[inside].max(initial=0) < 2 * np.pi * 2231 / 4 * 0.5 / rate + 2e-3


def test_six_channels_are_mixed_and_none_clips(tmp_path):
    samples = np.repeat(beep(48000, SECONDS, 1.0), 6, 0)
    clip = probe_video(write_clip(tmp_path / "c.mov", samples, 48000, codec="pcm_s16le", layout="5.1"))
    assert clip.sound.channels == 6
    sound = read_sound(clip, 0.0, SECONDS, FORMAT).samples
    assert heard(sound, 16000) == pytest.approx([1.0, 1.0], abs=STEP)
    assert 0.85 < np.abs(sound).max() <= 0.9  # shares that make up one
    one = read_sound(clip, 0.0, SECONDS, SoundFormat(16000, 1)).samples
    assert one.shape[0] == 1


def test_two_channels_stay_left_and_right(tmp_path):
    left, right = beep(48000, SECONDS, 0.5)[0], beep(48000, SECONDS, 1.5)[0]
    clip = probe_video(write_clip(tmp_path / "c.mov", np.stack([left, right]), 48000, codec="pcm_s16le"))
    sound = read_sound(clip, 0.0, SECONDS, FORMAT)
    assert heard(sound.samples, 16000) == pytest.approx([0.5, 1.5], abs=STEP)


def test_a_track_that_ends_a_little_early_goes_on_with_silence_and_a_shorter_one_is_refused(tmp_path):
    clip = probe_video(write_clip(tmp_path / "a.mov", beep(48000, 1.95, 1.0), 48000, codec="pcm_s16le"))
    sound = read_sound(clip, 0.0, SECONDS, FORMAT)
    assert sound.samples.shape[1] == 2 * 16000 and np.abs(sound.samples[:, -600:]).max() == 0
    clip = probe_video(write_clip(tmp_path / "b.mov", beep(48000, 1.6, 1.0), 48000, codec="pcm_s16le"))
    message = refused(clip, 0.0, SECONDS, FORMAT)
    assert f"{clip.path}: its sound ends after 1.6 s" in message and "after 2 s" in message
    assert read_sound(clip, 0.0, 1.5, FORMAT).samples.shape[1] == 24000


def test_clips_without_sound_and_with_damaged_sound_are_refused_by_name(tmp_path):
    write_video(tmp_path / "mute.mp4", np.zeros((4, 48, 64, 3), np.uint8), FPS)
    mute = probe_video(tmp_path / "mute.mp4")
    assert mute.sound is None
    assert "has no sound track" in refused(mute, 0.0, 0.1, FORMAT)
    path = write_clip(tmp_path / "c.mkv", beep(48000, SECONDS, 1.0), 48000, codec="flac", picture="ffv1")
    data = bytearray(path.read_bytes())
    while (at := data.find(b"\xff\xf8")) >= 0:  # where each of FLAC's frames begins
        data[at : at + 2] = b"\0\0"
    path.write_bytes(data)
    clip = probe_video(path)  # whose picture is whole
    with pytest.raises(InputError, match="its sound track"):
        _ = clip.sound
    assert "its sound track" in refused(clip, 0.0, 1.0, FORMAT)


def test_of_several_tracks_the_players_first_is_read(tmp_path):
    tracks = [beep(48000, SECONDS, at, 2) for at in (0.5, 1.5)]
    clip = probe_video(write_clip(tmp_path / "c.mp4", tracks, 48000))
    assert clip.sound.tracks == 2
    assert heard(read_sound(clip, 0.0, SECONDS, FORMAT).samples, 16000) == pytest.approx([0.5] * 2, abs=STEP)


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.7, SECONDS, 3.0])
def test_what_is_written_is_heard_from_the_pictures_first_frame_on(tmp_path, rate, seconds):
    frames = np.zeros((FRAMES, 48, 64, 3), np.uint8)
    sound = Sound(beep(rate, seconds, 0.5, 2), rate)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, FPS, sound=sound)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    clip = probe_video(tmp_path / "a.mp4")
    assert clip.num_frames == FRAMES and read_video(tmp_path / "a.mp4").shape == frames.shape
    assert (clip.sound.codec, clip.sound.rate, clip.sound.start) == ("aac", rate, 0.0)
    assert clip.sound.seconds == pytest.approx(SECONDS, abs=1 / rate)  # cut, or gone on with silence
    assert heard(read_sound(clip, 0.0, SECONDS, FORMAT).samples, 16000) == pytest.approx([0.5] * 2, abs=STEP)


@pytest.mark.parametrize(
    "sound",
    [
        Sound(np.zeros((2, 100)), 48000),
        Sound(np.zeros(100, np.float32), 48000),
        Sound(np.zeros((3, 100), np.float32), 48000),
        Sound(np.zeros((2, 100), np.float32), 12345),
    ],
)
def test_sound_that_cannot_be_written_leaves_nothing(tmp_path, sound):
    with pytest.raises(ValueError, match="sound"):
        write_video(tmp_path / "c.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, sound=sound)
    assert not list(tmp_path.iterdir())
