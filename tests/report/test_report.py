"""The report in a real browser: it plays its clips, fits a phone, reads in both schemes and loads nothing else."""

import io
import json
import math
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from rich.console import Console

from pgdpo.evaluation.summary import summary_table
from pgdpo.messages.errors import InputError
from pgdpo.report.curves.svg import smooth
from pgdpo.report.report import write_report
from pgdpo.report.sources import by_source
from pgdpo.video import write_video
from tests.browser import BROWSER, FLAGS, needs_browser, visited

pytestmark = pytest.mark.usefixtures("eager_kernels")

HOSTILE = "<script>document.title='broken out'</script> & \"quotes\" " + "x" * 200
BUCKETS = ("sigma_0.00_0.25", "sigma_0.75_1.00")


def metric_rows(steps: int = 40) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        row = {"loss": math.log(2) - 0.005 * step, "implicit_accuracy": 0.7, "displacement": 0.2}
        row |= {"margin": 1e-5 * step, "reward/chosen": 2e-5 * step, "reward/rejected": 1e-5 * step}
        row |= {
            "excess/chosen": -2e-5 * step,
            "excess/rejected": -1e-5 * step,
            "gradient_share/rejected": 0.4,
        }
        buckets = {name: {"pairs": 8, **row} for name in BUCKETS}
        costs = {"learning_rate": 1e-4, "pairs_per_second": 9.0, "peak_memory": 2**30, "seconds": 1.5}
        rows.append({"step": step, **row, **costs, "buckets": buckets})
    return rows


def made_results() -> dict:
    win = {"value": 0.75, "low": 0.62, "high": 0.85, "wins": 47, "ties": 2, "losses": 15, "samples": 64}
    moved = {"value": 0.25, "low": 0.13, "high": 0.42, "pairs": 32, "margin": 1e-4, "implicit_accuracy": 0.8}
    scores = {"reference": {"total": 0.5, "smoothness": 0.6}, "aligned": {"total": 0.7, "smoothness": 0.9}}
    shared = {"steps": 40, "beta": 500, "win_rate": win, "displacement": moved, "reward": scores}
    bucket = {
        "pairs": 64,
        "displacement": 0.2,
        "margin": 1e-4,
        "implicit_accuracy": 0.8,
        "excess/chosen": -1e-4,
    }
    return {
        "objective": "pg_dpo",
        "run": "ours",
        "checkpoint": "checkpoints/step-00000040",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
        "machine": "2 CPU cores",
        "versions": {"python": "3.11"},
        **shared,
        "buckets": {name: bucket for name in BUCKETS},
        "samples": [],
        "objectives": [
            {"run": "ours", "objective": "pg_dpo", **shared, "alike": True},
            {
                "run": "[red]theirs",
                "objective": "sft",
                **shared,
                "beta": None,
                "win_rate": None,
                "reward": None,
                "alike": False,
            },
        ],
    }


@pytest.fixture
def run(tmp_path):
    """A run's folder with four clips: one pair square and small, one wide."""
    folder = tmp_path / "ours"
    (folder / "clips").mkdir(parents=True)
    results = made_results()
    for index, (prompt, size) in enumerate({"a red circle": (32, 32), HOSTILE: (64, 128)}.items()):
        sample = {"prompt": prompt, "seed": 0}
        for side, level in (("reference", 40), ("aligned", 200)):
            name = f"clips/{index}-{side}.mp4"
            write_video(folder / name, np.full((6, *size, 3), level, np.uint8), fps=8)
            sample[side] = {"clip": name, "reward": {"total": level / 255, "smoothness": 0.5 + index / 4}}
        results["samples"].append(sample)
    results["samples"].append(
        {"prompt": "scored only", "seed": 1, **dict.fromkeys(("reference", "aligned"), UNKEPT)}
    )
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in metric_rows()) + '{"step": 41, "lo'
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


UNKEPT = {"clip": None, "reward": {"total": 0.5}}
CONFIG = {
    "data": {"num_frames": 12, "height": 32, "width": 32},
    "model": {"family": "wan", "path": "</pre><b>toy", "adapter": None},
    "objective": {"name": "pg_dpo", "beta": 500},
    "train": {
        "steps": 40,
        "global_batch_groups": 16,
        "learning_rate": 5e-4,
        "schedule": "constant",
        "warmup_steps": 10,
        "precision": "fp32",
        "zero_stage": 0,
        "seed": 0,
    },
}


def change_results(run, **values):
    path = run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


PROBE = """<!doctype html><body style="margin:0"><script>
const look = async width => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:3000px;border:0`;
  frame.src = "report.html";
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const page = frame.contentDocument;
  const videos = [...page.querySelectorAll("video")];
  videos.forEach(video => video.scrollIntoView());
  for (let tries = 0; tries < 100 && !videos.every(v => v.readyState > 2 && v.played.length); tries++)
    await new Promise(done => setTimeout(done, 50));
  const [left, right] = videos.slice(-2);  // in sight
  let loops = 0;
  left.addEventListener("seeked", () => { loops += 1; });
  for (let tries = 0; tries < 100 && loops < 2; tries++) await new Promise(done => setTimeout(done, 50));
  return {
    loops, apart: Math.abs(left.currentTime - right.currentTime),
    width, title: page.title, scroll: page.documentElement.scrollWidth,
    videos: videos.map(v => ({
      size: [v.videoWidth, v.videoHeight], shown: v.clientWidth, ready: v.readyState, muted: v.muted,
      started: v.played.length, error: v.error?.message ?? null,
    })),
    curves: page.querySelectorAll(".curve svg path").length,
    badges: page.querySelectorAll(".alarms .badge").length,
    headline: page.querySelector("h1").textContent, injected: page.querySelectorAll("h3 script, pre b").length,
  };
};
(async () => {
  const found = [];
  for (const width of [390, 768, 1280]) found.push(await look(width));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


@needs_browser
def test_report_works_in_a_browser(run, tmp_path):
    sides = {"chosen": "clips/0-aligned.mp4", "rejected": "clips/0-reference.mp4"}
    about = {"segment_labels": [1, 0, -1], "weight": 2.0, "scores of chosen": {"total": 0.5}}
    pair = {"id": HOSTILE, "prompt": HOSTILE, "size": [6, 32, 32], "about": about, **sides}
    (run / "pairs.json").write_text(json.dumps({"of": 96, "pairs": [pair]}))
    event = {"step": 3, "event": "step not taken", "message": HOSTILE}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    write_report(run)
    (run / "probe.html").write_text(PROBE)
    views, asked, log = visited(run, tmp_path)
    for view in views:
        assert view["scroll"] <= view["width"], view
        assert view["title"] == "PG-DPO · ours" and view["injected"] == 0
        assert "75%" in view["headline"]
        assert view["loops"] == 2 and view["apart"] < 0.125, view  # less than a frame
        assert view["badges"] == 7 and view["curves"] > 15
        assert [video["size"] for video in view["videos"]] == [[32, 32]] * 2 + [[128, 64]] * 2 + [
            [32, 32]
        ] * 2
        for video in view["videos"]:
            assert video["error"] is None and video["ready"] > 2 and video["started"] and video["muted"], view
            assert video["shown"] > 60
    assert asked == {"/probe.html", "/report.html"}
    assert "CONSOLE" not in log, log


@needs_browser
@pytest.mark.parametrize("scheme, is_dark", [(0, True), (1, False)])
def test_report_paints_in_both_colour_schemes(run, tmp_path, scheme, is_dark):
    from PIL import Image

    picture = tmp_path / "page.png"
    options = [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    options += ["--window-size=900,1200", f"--screenshot={picture}", write_report(run).as_uri()]
    subprocess.run([BROWSER, *FLAGS, *options], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    assert (np.median(pixels) < 60) == is_dark
    assert pixels.std() > 10  # something is drawn on it


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.videos, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [value for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "video":
            self.videos.append(attributes)


def parsed(run) -> tuple[str, Links]:
    text = write_report(run).read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    return text, links


def test_report_reaches_for_nothing_outside_itself(run):
    text, links = parsed(run)
    beside = {
        path.relative_to(run).as_posix() for path in run.rglob("*.mp4")
    }  # links to the clips' whole files
    assert all(target.startswith(("data:", "#")) or target in beside for target in links.targets), (
        links.targets
    )
    assert {target[1:] for target in links.targets if target.startswith("#")} <= set(links.ids)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(links.ids) == len(set(links.ids))  # nine drawings on one page
    assert not list(run.glob(".*"))  # nothing half-written stays


def test_clips_are_in_the_order_of_their_prompts_and_only_kept_ones_are_shown(run):
    text, links = parsed(run)
    assert [video["aria-label"].split(":")[0] for video in links.videos] == ["Reference", "Aligned"] * 2
    assert all({"autoplay", "loop", "muted", "playsinline"} <= video.keys() for video in links.videos)
    assert text.index("a red circle") < text.index("broken out")
    assert "scored only" not in text
    assert ["class" in video for video in links.videos] == [True] * 4  # both are small: hard pixels


@pytest.mark.parametrize(
    "low, high, headline, chip",
    [
        (0.62, 0.85, "The aligned model wins 75%", "Alignment helped"),
        (0.10, 0.40, "wins only 75%", "Alignment hurt"),
        (0.45, 0.85, "No clear difference", None),
    ],
)
def test_only_an_interval_clear_of_a_half_is_a_verdict(run, low, high, headline, chip):
    change_results(run, win_rate=made_results()["win_rate"] | {"low": low, "high": high})
    text, _ = parsed(run)
    assert headline in text
    assert [words for words in ("Alignment helped", "Alignment hurt") if words in text] == (
        [chip] if chip else []
    )


def test_a_run_without_reward_reference_or_clips_has_a_report(run):
    samples = [
        {"prompt": "p", "seed": 0, **dict.fromkeys(("reference", "aligned"), {"clip": None, "reward": None})}
    ]
    change_results(
        run,
        objective="sft",
        win_rate=None,
        reward=None,
        displacement=None,
        buckets={},
        objectives=[],
        samples=samples,
    )
    names = ("step", "loss", "error/chosen", "learning_rate")
    rows = [{name: row.get(name, 1.0) for name in names} for row in metric_rows(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, links = parsed(run)
    assert "No reward function was configured" in text and not links.videos
    assert text.count("No data") == 5  # all checks but the one for non-finite numbers
    assert "by noise level" not in text.lower()


@pytest.mark.parametrize("name", ["config.yaml", "clips/0-aligned.mp4"])
def test_a_missing_file_is_named_and_an_old_report_stays(run, name):
    before = write_report(run).read_text()
    (run / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(run)
    assert (run / "report.html").read_text() == before


def test_smoothing_is_a_centred_mean_over_finite_values():
    np.testing.assert_allclose(smooth([0, 3, math.nan, 9, 0], 3), [1.5, 1.5, 6, 4.5, 4.5])
    np.testing.assert_array_equal(smooth([1.0], 9), [1.0])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_wcag_aa_in_both_schemes(run):
    text, _ = parsed(run)
    schemes = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    assert len(schemes) == 2
    pairs = [(ink, paper) for ink in ("ink", "muted", "accent", "reference") for paper in ("paper", "card")]
    pairs += [("good", "good-wash"), ("warn", "warn-wash"), ("muted", "sunk"), ("ink", "sunk")]
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for pair in pairs:
            low, high = sorted(luminance(colours[name]) for name in pair)
            assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_summary_has_a_line_per_run():
    console = Console(width=120, file=io.StringIO())
    console.print(summary_table(made_results()))
    text = console.file.getvalue()
    assert "0.500 → 0.700" in text and "75% (62%–85%)" in text and "25% (13%–42%)" in text
    assert "[red]theirs *" in text and "ours *" not in text and "no comparison" in text


def test_figures_by_manifest_are_means_over_pairs_at_the_runs_end(run):
    rows = metric_rows(60)
    for row in rows:
        early = row["step"] <= 54  # the last tenth counts
        parts = {"ours": (3, 9.0 if early else 1.0), HOSTILE: (1, 9.0 if early else 0.5)}
        if row["step"] == 60:
            parts["ours"] = (5, 2.0)
        figures = {"margin": None}
        row["sources"] = {name: {"pairs": n, "loss": loss, **figures} for name, (n, loss) in parts.items()}
    held_out = {"ours": {"pairs": 4, "displacement": 0.25, "implicit_accuracy": 0.75}}
    ours, other = by_source(rows, {"sources": held_out})["rows"]
    assert (ours["pairs"], other["pairs"]) == (59 * 3 + 5, 60)
    assert ours["share"] == pytest.approx(182 / 242) and ours["held_out"] == held_out["ours"]
    assert ours["loss"] == pytest.approx((5 * 3 * 1.0 + 5 * 2.0) / 20) and other["loss"] == 0.5
    assert ours["margin"] is None and other["held_out"] is None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change_results(run, sources=held_out)
    page = write_report(run).read_text(encoding="utf-8")
    section = page.split('<section id="sources">')[1].split("</section>")[0]
    assert "<script>" not in section and "Held-out displacement" in section and "25%" in section


def test_a_page_keeps_its_megabytes_whatever_its_clips_are(run):
    """Noise, which no encoder makes small: shrunk, then fewer, and said; the same page again from the copies."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 5, 240, 416, 3), np.uint8)
    results = json.loads((run / "results.json").read_text())
    for number, frames in enumerate(noise):
        write_video(run / f"clips/{number}-large.mp4", frames, fps=8)
        side = {"clip": f"clips/{number}-large.mp4", "reward": {"total": 0.5}}
        results["samples"].append({"prompt": "noise", "seed": number, "reference": side, "aligned": UNKEPT})
    change_results(run, samples=results["samples"])
    sizes, words = {}, {}
    for megabytes in (15.0, 0.8, 0.03):
        (run / "config.yaml").write_text(
            yaml.safe_dump(CONFIG | {"evaluate": {"report_megabytes": megabytes}})
        )
        text = write_report(run).read_text()
        sizes[megabytes], words[megabytes] = len(text) / 1e6, re.search(r"Clips are shown [^.]*\.", text)
        assert write_report(run).read_text() == text
    assert sizes[15.0] > 1.2 and words[15.0] is None
    assert sizes[0.8] < 0.8 and "of 416×240" in words[0.8][0]
    assert sizes[0.03] < 0.2 and "found no room" in text and "no room on this page" in text
    assert len(list((run / "small").iterdir())) >= 4


def test_backticks_are_code_and_every_size_is_named(run):
    config = CONFIG | {"data": CONFIG["data"] | {"buckets": [[12, 32, 32], [8, 16, 64]]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    event = {"step": 3, "event": "step not taken", "message": "set `a<b` to `c`, or `"}
    (run / "events.jsonl").write_text(
        json.dumps(event) + "\n" + json.dumps(event | {"message": "set `a<b`"}) + "\n"
    )
    text = write_report(run).read_text()
    assert "set <code>a&lt;b</code>" in text and "set `a&lt;b` to `c`, or `" in text
    assert "12 frames of 32×32; 8 frames of 64×16" in text


def test_scores_of_a_pair_are_drawn_on_one_scale(run):
    sides = {"chosen": "clips/0-aligned.mp4", "rejected": "clips/0-reference.mp4"}
    pairs = []
    for number, (chosen, rejected) in enumerate([(3.0, 1.0), (5.0, 4.0)]):
        about = {"scores of chosen": {"total": chosen, "odd": "x"}, "scores of rejected": {"total": rejected}}
        pairs.append({"id": str(number), "prompt": "p", "size": [6, 32, 32], "about": about, **sides})
    (run / "pairs.json").write_text(json.dumps({"of": 2, "pairs": pairs}))
    text = write_report(run).read_text()
    rods = re.findall(
        r'pairwise" aria-hidden="true">\s*<i class="rod" style="left:([\d.]+)%;right:([\d.]+)%"', text
    )
    assert [tuple(map(float, rod)) for rod in rods] == [(0.0, 50.0), (75.0, 0.0)]
    assert "scores of" not in text
