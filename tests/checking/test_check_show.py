"""`pgdpo check --show`: the page's clips are what `prepare` would read, and what is odd is among them."""

import base64
import io
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pgdpo.checking import run_check, show
from pgdpo.data.buckets import share_shown
from pgdpo.messages.errors import InputError
from pgdpo.video import VideoInfo, read_video, write_video
from tests.browser import needs_browser, visited
from tests.worlds import run_pgdpo, write_config

PROMPT = "<script>document.title='broken out'</script> a \"red\" & blue ball"


def steps(count, height=16, width=16):
    """Frame i is grey 20 + 10 i: its number can be read off what is shown."""
    return np.repeat(20 + 10 * np.arange(count, dtype=np.uint8), height * width * 3).reshape(
        count, height, width, 3
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    clips = {"plain": (6, 8, {}), "fast": (16, 16, {}), "wide": (6, 8, {"width": 32}), "short": (3, 8, {}),
             "big": (6, 8, {"height": 64, "width": 64})}  # fmt: skip
    for name, (count, fps, size) in clips.items():
        for side in "ab":
            write_video(tmp_path / f"clips/{name}{side}.mp4", steps(count, **size) + (side == "b"), fps)
    return tmp_path


def row(name, number=0, **more):
    clips = {"chosen": f"clips/{name}a.mp4", "rejected": f"clips/{name}b.mp4"}
    return {"id": f"{name}{number}", "prompt": PROMPT, **clips, **more}


def check(folder, rows, *changes, page="check.html"):
    """4 frames of 16x16 pixels at the toy's 8 a second are asked for."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = {"train": str(folder / "rows.jsonl"), "held_out": None}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data)
    return run_check(str(config), list(changes), page=folder / page)


def clips_of(folder):
    """Frames [F, H, W, 3] of each clip in the page, in its order."""
    found = []
    for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', (folder / "check.html").read_text()):
        (folder / "one.mp4").write_bytes(base64.b64decode(data))
        found.append(read_video(folder / "one.mp4"))
    return found


def numbers(frames):
    return [round((value - 20) / 10) for value in frames.mean((1, 2, 3))]


@pytest.mark.parametrize(
    ("clip", "span"), [("first", [0, 2, 4, 6]), ("middle", [4, 6, 8, 10]), ("segments:2", [0, 2, 4, 6])]
)
def test_left_is_the_clip_and_right_what_prepare_reads(folder, clip, span):
    findings = check(folder, [row("fast")], f"data.clip={clip}")
    films = clips_of(folder)
    assert [numbers(film) for film in films[:4]] == [list(range(16)), span] * 2
    pairs = 2 if clip == "segments:2" else 1
    assert len(films) == 4 * pairs and findings.page == (folder / "check.html", pairs)
    if pairs == 2:
        assert numbers(films[5]) == [8, 10, 12, 14]
    assert "16 a second → 8 a second" in (folder / "check.html").read_text()


def test_the_model_is_shown_what_is_inside_the_crop(folder):
    """The picture's outer quarters are white, and the frame about the middle half leaves them out."""
    frames = steps(6, width=32).copy()
    frames[:, :, :8] = frames[:, :, 24:] = 250
    for side in "ab":
        write_video(folder / f"clips/wide{side}.mp4", frames, 8)
    check(folder, [row("wide")])
    shot, taken = clips_of(folder)[:2]
    assert shot.shape[1:3] == (16, 32) and taken.shape == (4, 16, 16, 3)
    assert shot[0, :, :7].mean() > 240 and taken[0, :, 2:-2].mean() < 30
    text = (folder / "check.html").read_text()
    assert 'class="crop" style="inset:0.0% 25.0%"' in text and "50% of it is left" in text


@given(*[st.integers(8, 2000)] * 4)
def test_the_crops_area_is_the_share_that_buckets_go_by(height, width, tall, broad):
    info = VideoInfo(broad, tall, 8.0, 8, "")
    across, down = show.crop(info, (8, height, width))
    assert across * down == pytest.approx(share_shown((8, height, width), info)) and max(across, down) == 1


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 12))
def test_one_of_each_kind_is_chosen_then_others(kinds, most):
    places = show.choose(kinds, most)
    assert places == sorted(set(places)) and len(places) == min(most, len(kinds))
    counts, seen = Counter(kinds), {kinds[place] for place in places}
    assert len(seen) >= min(most, len(counts))
    if kinds:
        assert max(counts.values()) in {counts[kind] for kind in seen}


def test_odd_pairs_are_among_many_and_those_left_out_say_why(folder):
    rows = [row("plain", number) for number in range(40)]
    rows[17:17] = [row("fast"), row("short"), row("wide"), row("plain", 99, preference=0.5)]
    check(folder, rows)
    text = (folder / "check.html").read_text()
    shown = re.findall(r'<span class="seed">(\w+)</span>', text)
    assert len(shown) == 10 and {"fast0", "short0", "wide0"} < set(shown) and "plain99" not in shown
    assert "10 of 43 pairs" in text and "1 tie is left out" in text
    assert "Not trained on as it is." in text and "the clip holds 3 frames" in text
    assert len(clips_of(folder)) == 4 * 10 - 2  # of the short one there is nothing that the model sees


def test_a_page_keeps_its_budget_and_treats_a_pairs_clips_alike(folder, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (16, 216, 400, 3), np.uint8)
    for side, frames in zip(
        "ab", (noise, noise // 255), strict=True
    ):  # one is hard to pack, the other is not
        write_video(folder / f"clips/noise{side}.mp4", frames, 8)
    monkeypatch.setattr(show, "BUDGET", 200_000)
    check(folder, [row("noise"), row("plain")])
    page = folder / "check.html"
    assert page.stat().st_size < 230_000
    assert "On this page shrunk to" in page.read_text()
    hard, _, easy, _ = clips_of(folder)[:4]
    assert hard.shape == easy.shape != (16, 216, 400, 3)


def test_what_cannot_be_shown_is_said(folder, capsys):
    with pytest.raises(
        InputError, match=r"--show is '.*rows.jsonl': name the page to write, a file that ends in"
    ):
        check(folder, [row("plain")], page="rows.jsonl")
    assert json.loads((folder / "rows.jsonl").read_text())["id"] == "plain0"
    check(folder, [row("plain")], "train.steps=0")
    check(folder, [], page="check.html")
    said = " ".join(capsys.readouterr().out.split())
    assert "not checked: --show: mend the configuration first" in said
    assert "--show: no manifest has a row that can be shown" in said
    assert not (folder / "check.html").exists()
    gone = row("plain", 7) | {"chosen": "clips/gone.mp4"}
    check(folder, [row("plain"), gone])
    text = (folder / "check.html").read_text()
    assert "What else was found" in text and "no file at" in text


def test_the_page_needs_no_torch(folder):
    """What a broken manifest shows is there at once."""
    check(folder, [row("plain"), row("short")])
    code = f"""if True:
        import sys
        from pathlib import Path
        from pgdpo.checking import run_check
        run_check({str(folder / "config.yaml")!r}, page=Path({str(folder / "again.html")!r}))
        assert "torch" not in sys.modules, "torch"
    """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (folder / "again.html").is_file()


PROBE = """<!doctype html><body style="margin:0"><script>
(async () => {
  const found = [];
  for (const width of [390, 1280]) {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:4000px;border:0`;
    frame.src = "check.html";
    await new Promise(done => { frame.onload = done; document.body.append(frame); });
    const page = frame.contentDocument, videos = [...page.querySelectorAll("video")];
    for (const video of videos) {  // those out of sight rest
      video.scrollIntoView();
      for (let tries = 0; tries < 200 && !(video.readyState > 2 && video.played.length); tries++)
        await new Promise(done => setTimeout(done, 20));
    }
    const box = node => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; };
    found.push({width, scroll: page.documentElement.scrollWidth, title: page.title,
      videos: videos.map(v => ({box: box(v), started: v.played.length, error: v.error?.message ?? null})),
      crops: [...page.querySelectorAll(".crop")].map(i => [box(i), box(i.parentElement)])});
  }
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


@needs_browser
def test_the_page_plays_in_a_browser(folder):
    run = [row("wide"), row("fast"), row("big"), row("short")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in run))
    data = {"train": str(folder / "rows.jsonl"), "held_out": None}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data)
    run_pgdpo("check", config, "--show", folder / "check.html")
    (folder / "probe.html").write_text(PROBE)
    views, asked, log = visited(folder, folder)
    assert asked == {"/probe.html", "/check.html"} and "CONSOLE" not in log, log
    for view in views:
        assert view["title"] == f"Pairs · {config}" and view["scroll"] <= view["width"], view
        assert len(view["videos"]) == 4 * 4 - 2
        for video in view["videos"]:
            assert video["error"] is None and video["started"] and min(video["box"][2:]) > 50, view
        assert len(view["crops"]) == 2  # of the wide pair alone
        for (left, top, width, height), (x, y, broad, tall) in view["crops"]:
            assert [left - x, top - y, width, height] == pytest.approx([broad / 4, 0, broad / 2, tall], abs=1)


def test_a_rows_pictures_stand_beside_its_clips(folder):
    """And what becomes of each; one that cannot be read is said, not shown."""
    red = np.full((40, 60, 3), (250, 0, 0), np.uint8)
    Image.fromarray(red).save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    check(folder, [row("fast", image="red.png", last_image="red.png"), row("plain", last_image="broken.png")])
    page = (folder / "check.html").read_text()
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]
    assert len(pictures) == 2 and all(np.array_equal(picture, red) for picture in pictures)
    assert (
        page.index("starts from") < page.index("ends with") < page.index("not taken: the span ends earlier")
    )
    assert "not taken: the span begins later" not in page and "cannot be read as a picture" in page
