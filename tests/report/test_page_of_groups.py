# ruff: noqa: E501
"""The page of a run on groups, in a real browser: a list's clips in the order of their ranks."""

import json

import numpy as np
import pytest

from pgdpo.report.report import write_report
from pgdpo.video import write_video
from tests.browser import needs_browser, visited
from tests.report.test_report import run  # noqa: F401

pytestmark = pytest.mark.usefixtures("eager_kernels")

GROUP = {
    "id": "g",
    "prompt": "p",
    "size": [6, 32, 32],
    "names": {
        "sample2": ["sample 2", "rank 0", "score 0.9"],
        "sample0": ["sample 0", "rank 1", "score 0.5"],
        "sample1": ["sample 1", "rank 1", "score 0.5"],
        "sample3": ["sample 3", "rank 3", "score 0.1"],
    },
    "about": {
        f"scores of sample {place}": {"score": score, "motion": 4 * score}
        for place, score in enumerate((0.5, 0.5, 0.9, 0.1))
    },
    **{f"sample{place}": f"clips/0-sample{place}.mp4" for place in range(4)},
}
SHELF = """<!doctype html><body style="margin:0"><script>
const look = async width => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:3000px;border:0`;
  frame.src = "report.html";
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const page = frame.contentDocument, figures = [...page.querySelectorAll("#pairs figure")];
  const frames = page.querySelector("#pairs .frames"), clips = figures.map(figure => figure.querySelector("video"));
  frames.scrollIntoView();
  for (let tries = 0; tries < 100 && !clips.every(clip => clip.readyState > 2); tries++)
    await new Promise(done => setTimeout(done, 50));
  frames.value = 2;
  frames.dispatchEvent(new frame.contentWindow.Event("input"));
  const boxes = figures.map(figure => figure.getBoundingClientRect());
  return {
    words: figures.map(figure => figure.innerText.split(/\s+/).join(" ").trim()),
    rows: new Set(boxes.map(box => Math.round(box.top))).size, columns: new Set(boxes.map(box => Math.round(box.left))).size,
    scroll: page.documentElement.scrollWidth - width, held: clips.map(clip => clip.paused && clip.currentTime),
    dots: [...page.querySelectorAll("#pairs .pairwise i")].map(dot => [dot.className, dot.style.left]),
  };
};
(async () => {
  const found = [];
  for (const width of [390, 1280]) found.push(await look(width));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


@needs_browser
def test_a_groups_clips_stand_in_the_order_of_their_ranks(run, tmp_path):  # noqa: F811
    """Four abreast where there is room, two by two on a phone, held at one frame together, their scores on one line."""
    for place in range(4):
        write_video(run / GROUP[f"sample{place}"], np.full((6, 32, 32, 3), 60 * place, np.uint8), fps=8)
    preview = {"of": 7, "kind": "group", "sized": "groups of 4 samples", "pairs": [GROUP]}
    (run / "pairs.json").write_text(json.dumps(preview))
    page = write_report(run).read_text()
    assert "1 of 7 training groups of 4 samples" in page and "16 groups of 4 samples" in page
    assert "32 held-out groups" in page and "held-out pairs" not in page and "training pairs" not in page
    (run / "probe.html").write_text(SHELF)
    (phone, wide), _, log = visited(run, tmp_path)
    for view in (phone, wide):
        assert view["words"] == [
            "sample 2 rank 0 score 0.9",
            "sample 0 rank 1 score 0.5",
            "sample 1 rank 1 score 0.5",
            "sample 3 rank 3 score 0.1",
        ]
        assert view["held"] == [2.5 / 8] * 4 and view["scroll"] <= 0
        # `score` stands below the clips; of the others a dot a clip, the best drawn last.
        assert view["dots"] == [
            ["rod", "0%"],
            ["between", "50%"],
            ["between", "50%"],
            ["from", "0%"],
            ["to", "100%"],
        ]
    assert (phone["rows"], phone["columns"]) == (2, 2) and (wide["rows"], wide["columns"]) == (1, 4)
    assert "CONSOLE" not in log, log
