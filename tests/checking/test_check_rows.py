"""`pgdpo check`: rows, clips and prepared data as they lie on a disk."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pgdpo.checking import run_check
from pgdpo.rows.manifest import scan_manifest
from pgdpo.video import probe_video, read_video, verify_video, write_video
from tests.checking.test_check import GREY, check, folder, found, row
from tests.worlds import write_config

__all__ = ["folder"]  # a fixture
pytestmark = pytest.mark.quick


def test_stale_and_damaged_prepared_data(config_file):
    assert run_check(str(config_file)).problems == []
    findings = run_check(str(config_file), ["data.height=32"])
    assert [problem.key for problem in findings.problems] == ["data.sizes", "data.sizes"]
    assert findings.exit_code == 2 and "`sizes` is [[4, 16, 16]]" in findings.problems[0].what
    shutil.copytree(config_file.parent / "out/prepared", config_file.parent / "copy", symlinks=False)
    next((config_file.parent / "copy/train").glob("shard-*.safetensors")).unlink()
    findings = run_check(str(config_file), [f"data.prepared={config_file.parent / 'copy'}"])
    assert [problem.key for problem in findings.problems] == ["prepared/train"] and findings.exit_code == 2
    assert str(findings.problems[0]).count("run `pgdpo prepare`") == 1


def test_clips_behind_urls_are_checked_too(folder, monkeypatch):
    import fsspec

    monkeypatch.setenv("PGDPO_CACHE", str(folder / "cache"))
    for name in ("0a", "0b"):
        with fsspec.open(f"memory://check/{name}.mp4", "wb") as stream:
            stream.write((folder / "clips" / f"{name}.mp4").read_bytes())
    rows = [row(0) | {"chosen": "memory://check/0a.mp4", "rejected": "memory://check/gone.mp4"}]
    findings = check(folder, rows)
    assert found(findings) == [(1, "rejected")] and "cannot be fetched" in findings.problems[-1].what


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    import av

    frame = av.VideoFrame.from_ndarray(GREY[0], format="rgb24")
    for codec, name in (("mjpeg", "a.jpg"), ("png", "b.png")):
        with av.open(str(tmp_path / name), "w", format="image2") as container:
            stream = container.add_stream(codec, rate=1)
            stream.width, stream.height = 16, 16
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode())
        info = verify_video(tmp_path / name)
        assert (info.width, info.height, info.num_frames) == (16, 16, 1)
        assert read_video(tmp_path / name, num_frames=1, size=(16, 16)).shape == (1, 16, 16, 3)
        assert probe_video(tmp_path / name).num_frames == 1


def test_broken_rows_are_said_without_torch(folder):
    (folder / "rows.jsonl").write_text(
        json.dumps(row(0, "cut", weight=-1)) + "\n" + json.dumps(row(1, "cut")) + "\n"
    )
    data = {"train": str(folder / "rows.jsonl"), "held_out": None}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data)
    code = (
        "import sys; from pgdpo.checking import run_check; findings = run_check(sys.argv[1])\n"
        "assert findings.exit_code == 2 and findings.clips, findings\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(config)], check=True)


def test_a_mended_manifest_keeps_ties_that_are_not_trained_on(folder, capsys):
    out = folder / "mended.jsonl"
    findings = check(folder, [row(0), row(1, preference=0.5), row(2, fps=9)], fix=str(out))
    assert findings.exit_code == 0 and len(findings.rows["train"]) == 2
    assert "1 of 3 rows are ties and left out" in " ".join(capsys.readouterr().out.split())
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["0", "1", "2"]


def test_fix_keeps_a_rows_pictures_but_for_an_end_that_is_cut(folder):
    """Clips of two sizes are made alike; where one of them is longer, the picture at its end is out of sight."""
    write_video(folder / "clips" / "long.mp4", np.full((12, 16, 32, 3), 70, np.uint8), 8)
    for name in ("first.png", "last.png"):
        (folder / name).write_bytes(b"any")
    given = {"image": "first.png", "last_image": "last.png"}
    out = folder / "mended" / "rows.jsonl"
    rows = [row(0, **given), row(1, "0a", "wide", **given), row(2, "0a", "long", **given)]
    mended = check(folder, rows, fix=str(out)).mended
    kept = {each.values["id"]: each for each in scan_manifest(out, folder)[0]}
    pictures = {name: {key: each.clips.get(key) for key in given} for name, each in kept.items()}
    whole = {key: str(folder / name) for key, name in given.items()}
    assert {name: {k: v and os.path.realpath(v) for k, v in found.items()} for name, found in pictures.items()} == {
        "0": whole, "1": whole, "2": whole | {"last_image": None},
    }  # fmt: skip
    assert "without `last_image`" in mended.reencoded["2"] and "without" not in mended.reencoded["1"]
