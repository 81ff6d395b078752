"""A tiny LTX-2 from clips with sound to the report: what it writes is heard, beside the picture, as what it is."""

import base64
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.video import Sound, write_video
from tests.browser import needs_browser, visited
from tests.checking.test_show_sound import PROBE
from tests.models.families import LTX2 as KIND
from tests.worlds import run_pgdpo, write_config

FRAMES, HEIGHT, WIDTH = KIND.size
FPS, RATE = 8, 16000

pytestmark = pytest.mark.usefixtures("eager_kernels")


def clip(path, level, hertz):
    at = np.arange(RATE * FRAMES // FPS) / RATE
    tone = Sound((0.4 * np.sin(2 * np.pi * hertz * at))[None].astype(np.float32), RATE)
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), level, np.uint8)
    write_video(path, frames, FPS, sound=tone if hertz else None)


@pytest.fixture(scope="module")
def config(saved, tmp_path_factory):
    """Four pairs, of which the third is silent, and two held-out ones."""
    folder = tmp_path_factory.mktemp("sounding")
    rows = []
    for number in range(6):
        for side in ("chosen", "rejected"):
            hertz = 0 if number == 2 else 300 + 50 * number + 200 * (side == "chosen")
            clip(folder / f"{number}-{side}.mp4", 40 + 20 * number + 30 * (side == "chosen"), hertz)
        sides = {side: f"{number}-{side}.mp4" for side in ("chosen", "rejected")}
        rows.append({"id": f"p{number}", "prompt": "a red circle", **sides})
    data = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    for split, own in (("train", rows[:4]), ("held_out", rows[4:])):
        data[split] = str(folder / f"{split}.jsonl")
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    model = {"family": "ltx2", "encoders": "pipeline", "frame_rate": FPS}
    often = {"every": 2, "every_prompts": 1, "every_pairs": 0, "draws_per_pair": 1, "reward": None}
    train = {"steps": 2, "global_batch_groups": 1, "micro_batch_groups": 1}
    path = write_config(
        folder / "config.yaml", folder / "out", saved(KIND.save),
        data=data, model=model, train=train, evaluate=often,
    )  # fmt: skip
    run_pgdpo("prepare", path)
    return path


def reported(config, out, *overrides) -> Path:
    """The folder of a run that is yet to be, with its page."""
    prepared = f"data.prepared={config.parent / 'out' / 'prepared'}"
    run_pgdpo("report", config, f"output_dir={out}", prepared, *overrides)
    return out / "dpo"


def heard(path) -> tuple[float, float, bool]:
    """(seconds of the picture, of the sound, whether that is more than silence); no sound: none of it."""
    with av.open(str(path)) as container:
        shown = sum(1 for _ in container.decode(video=0)) / float(container.streams.video[0].average_rate)
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return shown, 0.0, False
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        return shown, samples.shape[1] / container.streams.audio[0].rate, bool(np.abs(samples).max() > 1e-4)


def test_pairs_are_heard_as_the_model_receives_them(config, tmp_path):
    """Decoded from the latents that `prepare` made: through the audio VAE and the vocoder."""
    run = reported(config, tmp_path, "evaluate.report_pairs=4")
    pairs = {pair["id"]: pair for pair in json.loads((run / "pairs.json").read_text())["pairs"]}
    assert [*pairs] == ["p0", "p1", "p2", "p3"]
    for name, pair in pairs.items():
        for side in ("chosen", "rejected"):
            shown, sounds, loud = heard(run / pair[side])
            assert shown == pytest.approx(FRAMES / FPS)
            assert (sounds, loud) == (
                (0, False) if name == "p2" else (pytest.approx(FRAMES / FPS, abs=0.1), True)
            )
    page = (run / "report.html").read_text()
    assert page.count("<video") == 8 and page.count('class="hear"') == 6 and "no sound" not in page


@needs_browser
def test_a_pairs_clips_are_heard_one_at_a_time(config, tmp_path):
    run = reported(config, tmp_path / "out", "evaluate.report_pairs=2")
    (run / "probe.html").write_text(PROBE.replace("PAGE", "report.html"))
    found, _, log = visited(run, tmp_path)
    assert found["errors"] == [None] * 4 and "CONSOLE" not in log, log
    muted = [state[0] for state in found["states"]]
    assert muted[0] == muted[3] == [True] * 4
    assert muted[1] == [False, True, True, True] and muted[2] == [True, False, True, True]
    assert min(found["bytes"][:2]) > 0 and found["playing"] == [True] * 4


def test_a_page_that_is_too_large_keeps_the_sound_of_its_copies(config, tmp_path):
    run = reported(config, tmp_path, "evaluate.report_pairs=4", "evaluate.report_megabytes=3")
    page = (run / "report.html").read_text()
    assert "with sound of 24,000 Hz mono; their full files lie beside this page" in page
    found = []
    for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', page):
        (tmp_path / "one.mp4").write_bytes(base64.b64decode(data))
        found.append(heard(tmp_path / "one.mp4"))
    assert len(found) == 8 and [sounds > 1 for _, sounds, _ in found] == [True] * 4 + [False] * 2 + [True] * 2


def test_sound_keeps_its_time(config):
    with pytest.raises(InputError, match=r"evaluate.fps is 4, and clips with sound last as long as that"):
        load_config(config, ["evaluate.fps=4"])
    assert load_config(config, ["evaluate.fps=4", "model.audio=false"]).written_fps == 4


def test_sampled_clips_have_the_sound_that_the_model_makes(config):
    """On the way, and of both models at the end."""
    run_pgdpo("train", config)
    run_pgdpo("evaluate", config)
    run = config.parent / "out" / "dpo"
    clips = [*run.glob("validation/*/*.mp4"), *run.glob("**/clips/*.mp4")]
    assert len(clips) >= 1 + 2 * 2
    for path in clips:
        shown, sounds, loud = heard(path)
        assert loud and shown == pytest.approx(FRAMES / FPS) and sounds == pytest.approx(shown, abs=0.1), path
