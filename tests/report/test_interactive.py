# ruff: noqa: E501
"""What answers on a report's page, in a real browser: values under the pointer, enlarged panels, split and frames."""

import json

import numpy as np
import pytest

from pgdpo.report.report import write_report
from pgdpo.video import write_video
from tests.browser import needs_browser, visited
from tests.report.test_report import change_results, metric_rows, run  # noqa: F401

LOOKS = [
    {"step": step, "pairs": 32, "draws": 4, "loss": {"value": 0.6, "low": 0.5, "high": 0.75}}
    for step in (0, 20, 40)
]
PROBE = """<!doctype html><body style="margin:0"><script>
const wait = async done => { for (let tries = 0; tries < 100 && !done(); tries++) await new Promise(next => setTimeout(next, 50)); };
(async () => {
  const frame = document.createElement("iframe");
  frame.style = "width:1280px;height:3000px;border:0";
  frame.src = "report.html";
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const page = frame.contentDocument, view = frame.contentWindow, found = {};
  const chart = page.querySelector(".chart"), svg = chart.querySelector("svg").getBoundingClientRect();
  const at = step => chart.dispatchEvent(new view.PointerEvent("pointermove", {clientX: svg.left + (56 + step / 40 * 370) / 440 * svg.width, clientY: svg.top + 50, bubbles: true}));
  at(20.2);
  found.told = chart.querySelector(".tip").innerText;
  found.seen = view.getComputedStyle(chart.querySelector(".tip")).visibility;
  at(13);
  found.between = chart.querySelector(".tip").innerText;
  const key = name => chart.dispatchEvent(new view.KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
  key("ArrowRight");
  found.next = chart.querySelector(".tip b").innerText;
  chart.dispatchEvent(new view.PointerEvent("pointerleave"));
  found.gone = view.getComputedStyle(chart.querySelector(".tip")).visibility;
  page.querySelector(".enlarge").click();
  const dialog = page.querySelector("dialog.enlarged");
  found.open = [dialog.open, dialog.querySelector(".chart svg").clientWidth > 1.5 * svg.width];
  dialog.querySelector("form button").click();
  found.closed = dialog.open;
  const card = page.querySelector(".clip"), clips = [...card.querySelectorAll("video")], frames = card.querySelector(".frames");
  card.scrollIntoView();
  await wait(() => clips.every(clip => clip.readyState > 2));
  frames.value = 3;
  frames.dispatchEvent(new view.Event("input"));
  await wait(() => clips.every(clip => !clip.seeking));
  const shade = clip => {
    const canvas = page.createElement("canvas");
    canvas.width = canvas.height = 8;
    const pen = canvas.getContext("2d");
    pen.drawImage(clip, 0, 0, 8, 8);
    return pen.getImageData(4, 4, 1, 1).data[0];
  };
  found.frames = [frames.max, card.querySelector("output").innerText, ...clips.map(shade), ...clips.map(clip => clip.paused)];
  card.querySelector(".over").click();
  const both = card.querySelector(".pair"), split = card.querySelector(".split input"), box = () => clips.map(clip => clip.getBoundingClientRect().left);
  found.over = [both.classList.contains("overlaid"), box()[0] === box()[1]];
  split.value = 20;
  split.dispatchEvent(new view.Event("input", {bubbles: true}));
  found.split = view.getComputedStyle(clips[1]).clipPath;
  const area = both.getBoundingClientRect();
  both.dispatchEvent(new view.PointerEvent("pointermove", {clientX: area.left + .75 * area.width, buttons: 1, bubbles: true}));
  found.dragged = Number(split.value);
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


@needs_browser
@pytest.mark.usefixtures("eager_kernels")
def test_values_frames_and_split_answer(run, tmp_path):  # noqa: F811
    shades = np.arange(6, dtype=np.uint8)[:, None, None, None] * 40 + np.zeros((6, 32, 32, 3), np.uint8)
    for side in ("reference", "aligned"):
        write_video(run / f"clips/0-{side}.mp4", shades, fps=8)
    (run / "held_out.jsonl").write_text("".join(json.dumps(look) + "\n" for look in LOOKS))
    write_report(run)
    (run / "probe.html").write_text(PROBE)
    found, _, log = visited(run, tmp_path)
    loss = [row["loss"] for row in metric_rows()]
    smoothed = sum(loss[18:21]) / 3  # 0.08 of 40 steps
    assert found["told"].splitlines() == [
        "step 20",
        f"loss {float(f'{smoothed:.4g}'):g}",
        "held out 0.6 (0.5 to 0.75)",
    ]
    assert found["seen"] == "visible" and found["gone"] == "hidden"
    assert found["between"].startswith("step 13") and "held out" not in found["between"]
    assert found["next"] == "step 14"
    assert found["open"] == [True, True] and found["closed"] is False
    most, told, left, right, *paused = found["frames"]
    assert most == "5" and told == "4 / 6" and paused == [True, True]
    assert abs(left - 120) < 12 and abs(right - 120) < 12  # the fourth frame of both
    assert (
        found["over"] == [True, True]
        and found["split"] == "inset(0px 0px 0px 20%)"
        and found["dragged"] == 75
    )
    assert "CONSOLE" not in log, log
