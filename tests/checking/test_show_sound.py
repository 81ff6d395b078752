"""`pgdpo check --show` of clips with sound: what is played, beside which part, and one side at a time."""

import base64
import json
import re

import av
import numpy as np
import pytest

from pgdpo.checking import run_check
from pgdpo.video import Sound, write_video
from tests.browser import needs_browser, visited
from tests.models.families import LTX2
from tests.worlds import write_config

FPS, SECONDS, RATE = 8, 3, 48000


def chirp(*hertz):
    """A second of each tone."""
    at = np.arange(RATE) / RATE
    samples = np.concatenate([0.4 * np.sin(2 * np.pi * each * at) for each in hertz])
    return Sound(samples[None].astype(np.float32), RATE)


@pytest.fixture
def folder(tmp_path):
    """Of both clips each second has a pitch of its own; a third has no track."""
    (tmp_path / "clips").mkdir()
    frames = (
        np.zeros((FPS * SECONDS, 16, 16, 3), np.uint8)
        + np.arange(FPS * SECONDS, dtype=np.uint8)[:, None, None, None]
    )
    for name, sound in {"a": chirp(300, 600, 900), "b": chirp(400, 700, 1000), "mute": None}.items():
        write_video(tmp_path / f"clips/{name}.mp4", frames + (name == "b"), FPS, sound=sound)
    return tmp_path


@pytest.fixture
def sounding(saved) -> dict:
    """A model that makes sound, and the size of its clips."""
    frames, height, width = LTX2.size
    model = {"family": "ltx2", "path": str(saved(LTX2.save)), "encoders": "pipeline", "frame_rate": FPS}
    return {"model": model, "data": {"num_frames": frames, "height": height, "width": width}}


def check(folder, *pairs, changes=(), data=None, model=None):
    rows = [
        {"id": f"p{n}", "prompt": "a ball", "chosen": f"clips/{a}.mp4", "rejected": f"clips/{b}.mp4"}
        for n, (a, b) in enumerate(pairs)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(folder / "rows.jsonl"), "held_out": None, "num_frames": 8, **(data or {})}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data, model=model or {})
    run_check(str(config), list(changes), page=folder / "check.html")
    return (folder / "check.html").read_text()


def pitches(folder, page) -> list[list[int]]:
    """Of each clip in the page the loudest pitch of each of its seconds; none of a clip without a track."""
    found = []
    for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', page):
        (folder / "one.mp4").write_bytes(base64.b64decode(data))
        with av.open(str(folder / "one.mp4")) as container:
            if not container.streams.audio:
                found.append([])
                continue
            rate = container.streams.audio[0].rate
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        whole = [samples[n * rate : (n + 1) * rate] for n in range(round(len(samples) / rate))]
        spectra = [np.abs(np.fft.rfft(each * np.hanning(len(each)))) for each in whole]
        found.append(
            [round(np.argmax(each) * rate / len(part), -1) for each, part in zip(spectra, whole, strict=True)]
        )
    return found


def test_each_clip_sounds_as_shot_and_as_taken(folder, sounding):
    page = check(folder, ("a", "b"), changes=["data.clip=middle"], **sounding)
    assert pitches(folder, page) == [[300, 600, 900], [600], [400, 700, 1000], [700]]
    assert page.count('class="hear"') == 4 and "no sound" not in page
    assert "<dt>sound</dt><dd>48,000 Hz mono, 3 s</dd>" in page


def test_a_model_without_sound_is_shown_as_one(folder):
    page = check(folder, ("a", "mute"))
    assert pitches(folder, page) == [[300, 600, 900], [], [], []]
    assert page.count('class="hear"') == 1 and page.count("no sound") == 3
    assert "48,000 Hz mono, 3 s and none; the model is given none" in page
    silent = check(folder, ("mute", "mute"))
    assert "no sound" not in silent and 'class="hear"' not in silent and "<dt>sound" not in silent


def test_a_track_that_ends_early_is_played_as_far_as_it_goes(folder, sounding):
    with av.open(str(folder / "clips/b.mp4")) as whole, av.open(str(folder / "clips/short.mp4"), "w") as cut:
        streams = {s: cut.add_stream_from_template(s) for s in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None and (
                packet.stream.type == "video" or packet.pts * packet.time_base < 1.5
            ):
                packet.stream = streams[packet.stream]
                cut.mux(packet)
    shot, taken = pitches(folder, check(folder, ("a", "short"), **sounding))[2:]
    assert shot == [400, 700, 0] and taken == [400]  # and then silence


PROBE = """<!doctype html><body style="margin:0"><script>
const wait = async done => { for (let tries = 0; tries < 200 && !done(); tries++) await new Promise(next => setTimeout(next, 20)); };
(async () => {
  const frame = document.createElement("iframe");
  frame.style = "width:1280px;height:3000px;border:0";
  frame.src = "PAGE";
  frame.allow = "autoplay";
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const page = frame.contentDocument, found = {};
  const clips = [...page.querySelectorAll("video")].slice(0, 4), hears = [...page.querySelectorAll(".hear")];
  clips[0].scrollIntoView();
  await wait(() => clips.every(clip => clip.readyState > 2 && clip.played.length));
  await wait(() => clips[0].webkitAudioDecodedByteCount > 0);
  const state = () => [clips.map(clip => clip.muted), hears.map(hear => hear.getAttribute("aria-pressed"))];
  found.states = [state()];
  for (const hear of [hears[0], hears[1], hears[1]]) { hear.click(); found.states.push(state()); }
  hears[0].click();
  await new Promise(next => setTimeout(next, 600));
  found.bytes = clips.map(clip => clip.webkitAudioDecodedByteCount);
  found.playing = clips.map(clip => !clip.paused || clip.ended);
  found.waves = [...page.querySelectorAll(".sound svg")].map(wave => [wave.clientWidth, wave.clientHeight]);
  found.errors = clips.map(clip => clip.error?.message ?? null);
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""  # noqa: E501


@needs_browser
def test_one_side_is_heard_at_a_time(folder):
    """Of a silent model both clips as shot have sound: the first and the third on the page."""
    check(folder, ("a", "b"))
    (folder / "probe.html").write_text(PROBE.replace("PAGE", "check.html"))
    found, _, log = visited(folder, folder)
    assert found["errors"] == [None] * 4 and "CONSOLE" not in log, log
    assert found["states"] == [
        [[True, True, True, True], ["false", "false"]],
        [[False, True, True, True], ["true", "false"]],
        [[True, True, False, True], ["false", "true"]],
        [[True, True, True, True], ["false", "false"]],
    ]
    assert [each > 0 for each in found["bytes"]] == [True, False, True, False]
    assert found["playing"] == [True] * 4
    assert len(found["waves"]) == 2 and all(wide > 60 and tall > 10 for wide, tall in found["waves"])
