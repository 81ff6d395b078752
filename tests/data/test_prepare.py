"""Preparing at scale: buckets, what is refused and what is skipped, resuming, room on the disk, several ranks."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pgdpo.checking import run_check
from pgdpo.data.buckets import choose_bucket
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.preparing import encode
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import heard_by
from pgdpo.toy.encoders import ToyEncoders
from pgdpo.video import VideoInfo, write_video
from tests.worlds import losses, run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")


def clip(path, frames, height, width, seed=0, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(
        0, 255, (frames, height // 8, width // 8, 3), dtype=np.uint8
    )
    write_video(path, pixels, fps, scale=8)


def write_manifest(folder, sizes, **columns):
    """One pair of clips for every (frames, height, width); `columns` go into every row."""
    rows = []
    for number, size in enumerate(sizes):
        row = {"id": f"p{number:03d}", "prompt": f"word{number % 3}", **columns}
        for seed, side in enumerate(("chosen", "rejected")):
            row[side] = f"clips/{number:03d}-{side}.mp4"
            clip(folder / row[side], *size, seed=2 * number + seed)
        rows.append(row)
    return save(folder / "train.jsonl", rows)


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(manifest):
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture
def configured(tmp_path, tiny_wan):
    """`configured(manifest, **data)`: the configuration for a manifest of one's own."""

    def write(manifest, /, train=None, **data):
        data = {"train": str(manifest), "held_out": None, "num_frames": 4, **data}
        return write_config(
            tmp_path / "config.yaml", tmp_path / "out", tiny_wan, data=data, train=train or {}
        )

    return write


def refused(config, *overrides) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo("prepare", config, *overrides)
    return str(caught.value)


def test_the_rule_for_buckets():
    def choose(sizes, frames, height, width):
        return choose_bucket(sizes, VideoInfo(width, height, 24.0, frames, "h264"))

    sizes = [(81, 480, 832), (81, 832, 480), (49, 480, 832), (81, 720, 1280)]
    assert choose(sizes, 81, 480, 832) == 0
    assert choose(sizes, 120, 1920, 1080) == 1  # portrait
    assert choose(sizes, 60, 480, 832) == 2  # too short for 81 frames
    assert choose(sizes, 81, 1080, 1920) == 3  # the nearest aspect ratio
    assert choose(sizes, 81, 500, 889) == 0  # nearer to 720x1280, which would enlarge it
    assert choose(sizes, 48, 480, 832) is None  # too short for all
    assert choose([(81, 480, 832), (49, 480, 832)], 81, 1080, 400) is None  # less than half would be left
    assert choose([(81, 480, 832)], 81, 1080, 400) == 0  # the only size takes it, as it always did
    assert choose([(9, 480, 480), (9, 320, 320)], 9, 200, 200) == 1  # enlarged as little as can be


def test_buckets_from_clips_to_evaluation(tmp_path, configured):
    """Three sizes, each pair whole in one; training visits all of them, and a stopped run goes on the same."""
    sizes = [(8, 16, 32)] * 5 + [(4, 32, 16)] * 4 + [(3, 16, 32)] * 3
    manifest = write_manifest(tmp_path / "data", [sizes[i] for i in np.random.default_rng(0).permutation(12)])
    buckets = [[4, 8, 16], [2, 16, 8], [2, 8, 16]]
    train = {"steps": 5, "checkpoint_every": 2, "global_batch_groups": 4}
    config = configured(manifest, train=train, buckets=buckets, held_out=str(manifest))
    run_pgdpo("prepare", config)
    data = PreparedPairs(tmp_path / "out/prepared/train")
    assert [len(bucket) for bucket in data.buckets] == [5, 4, 3]
    assert data.latent_shapes == [(48, 4, 2, 4), (48, 2, 4, 2), (48, 2, 2, 4)]
    assert data.latent_shape == (48, 4, 2, 4)
    for bucket, shape in zip(data.buckets, data.latent_shapes, strict=True):
        for index in bucket:
            chosen, rejected = data[index, 0]["samples"]
            assert chosen.shape == rejected.shape == shape
            assert not chosen.equal(rejected)
    run_pgdpo("train", config)
    whole = losses(tmp_path / "out", "dpo")
    assert len(whole) == 5 and np.isfinite(whole).all()
    run_pgdpo("train", config, "name=again", "train.steps=2")
    run_pgdpo("train", config, "name=again", "--resume")
    assert losses(tmp_path / "out", "again") == whole
    run_pgdpo("reference", config, "name=cached", "train.cached_draws=3")
    run_pgdpo("train", config, "name=cached", "train.reference=cached", "train.cached_draws=3")
    assert losses(tmp_path / "out", "cached") == pytest.approx(whole, rel=1e-6)
    run_pgdpo("evaluate", config, "evaluate.num_prompts=3", "evaluate.reward=null")
    results = json.loads((tmp_path / "out/dpo/results.json").read_text())
    assert results["displacement"]["pairs"] == 12 and len(results["samples"]) == 3


def test_pairs_that_fit_no_bucket_are_named(tmp_path, configured):
    manifest = write_manifest(tmp_path / "data", [(6, 48, 96), (3, 48, 96)])
    text = refused(configured(manifest, buckets=[[4, 24, 48], [4, 48, 24]]))
    assert re.search(
        r"pair `p001`: its clips \(.*chosen.mp4\) have 3 frames of 48x96 .*4x24x48, 4x48x24", text
    )
    assert not (tmp_path / "out/prepared").exists()


def test_clips_that_are_not_what_their_row_says(tmp_path, configured):
    """A clip that was cut shows although enough frames are left; a rate that differs is another motion."""
    said = {"num_frames": 6, "width": 32, "height": 32, "fps": 8}
    manifest = write_manifest(tmp_path / "data", [(6, 32, 32)] * 2, **said)
    rows = read(manifest)
    for row in rows:
        row |= {f"sha256_{side}": sha256_of(tmp_path / "data" / row[side]) for side in ("chosen", "rejected")}
    config = configured(save(manifest, rows))
    run_pgdpo("prepare", config)

    def with_row(**changes) -> str:
        save(manifest, [rows[0], {**rows[1], **changes}])
        return refused(config)

    assert "pair `p001`: its row says num_frames 7 and" in with_row(num_frames=7)
    assert "pair `p001`: its row says fps 24 and" in with_row(fps=24)
    assert "pair `p001`: its row says width 64 and" in with_row(width=64)
    assert "pair `p001`, rejected: the SHA-256 of" in with_row(sha256_rejected="0" * 64)
    clip(tmp_path / "data" / rows[1]["rejected"], 6, 32, 32, fps=16)
    without = {f"sha256_{side}": None for side in ("chosen", "rejected")} | {"fps": None}
    assert "pair `p001`: fps is 8 in" in with_row(**without)


def test_an_interrupted_run_goes_on_and_an_edited_clip_is_encoded_again(tmp_path, configured):
    manifest = write_manifest(tmp_path / "data", [(4, 16, 16)] * 8)
    config = configured(manifest, pairs_per_shard=3)
    good = (tmp_path / "data/clips/007-chosen.mp4").read_bytes()
    (tmp_path / "data/clips/007-chosen.mp4").write_text("no video")
    assert "pair `p007`" in refused(config)
    folder = tmp_path / "out/prepared/train"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(before) == 3 and not (folder / "index.json").exists()  # the text and two shards
    (tmp_path / "data/clips/007-chosen.mp4").write_bytes(good)
    run_pgdpo("prepare", config)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(after) == 4 and all(after[name] == time for name, time in before.items())
    clip(tmp_path / "data/clips/000-rejected.mp4", 4, 16, 16, seed=99)
    run_pgdpo("prepare", config)
    last = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    (new,) = [name for name in last if name not in after]
    assert re.fullmatch(
        r"shard-4x16x16-00000-[0-9a-f]{8}\.safetensors", new
    )  # the earlier one stood until the end
    assert after.keys() - last.keys() == {"shard-4x16x16-00000.safetensors"}
    assert all(last[name] == after[name] for name in last if name != new)


def test_room_is_known_before_the_first_clip(tmp_path, configured, monkeypatch, capfd):
    manifest = write_manifest(tmp_path / "data", [(4, 32, 32)] * 5)
    config = configured(manifest, height=32, width=32)
    latents = 5 * 2 * 48 * 4 * 8 * 8 * 4  # pairs, sides, C, F, H, W, bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=latents - 1))
    text = refused(config)
    assert re.search(r"0.0005 GB are needed .* 0.000492 GB are free: 8.19e-06 GB too little", text), text
    assert not (tmp_path / "out/prepared").exists()
    monkeypatch.undo()
    run_pgdpo("prepare", config)
    stored = sum(p.stat().st_size for p in (tmp_path / "out/prepared/train").glob("shard*.safetensors"))
    assert latents <= stored <= latents + 2000  # headers


def test_bad_clips_are_skipped_up_to_one_percent(tmp_path, configured):
    clip(tmp_path / "data/a.mp4", 4, 16, 16)
    clip(tmp_path / "data/b.mp4", 4, 16, 16, seed=1)
    (tmp_path / "data/bad.mp4").write_text("<html>404</html>")
    rows = [{"id": f"{i:03d}", "prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"} for i in range(200)]
    rows[198]["chosen"] = rows[199]["rejected"] = "bad.mp4"  # a shard of their own
    manifest = save(tmp_path / "data/train.jsonl", rows)
    config = configured(manifest, pairs_per_shard=66)
    assert re.search(r"pair `198`, chosen: .*bad.mp4: not a video", refused(config))
    run_pgdpo("prepare", config, "data.on_bad_data=skip")
    data = PreparedPairs(tmp_path / "out/prepared/train")
    assert [entry["id"] for entry in data.index["bad"]] == ["198", "199"] and len(data) == 198
    assert {row["id"] for row in data.rows} == {row["id"] for row in rows} - {"198", "199"}
    skip = ["data.on_bad_data=skip"]
    assert run_check(str(config), skip).exit_code == 0 and run_check(str(config)).exit_code == 2
    run_pgdpo("reference", config, *skip, "train.cached_draws=1", "train.micro_batch_groups=66")
    for row in rows[:2]:
        row["rejected"] = "bad.mp4"
    save(manifest, rows)
    text = refused(config, "data.on_bad_data=skip")
    assert re.search(r"4 of 200 pairs are bad, 2.0%; up to 1% may be skipped .*\n.*pair `000`", text), text


def test_two_ranks_make_what_one_makes_and_a_failing_one_is_heard(tmp_path, configured, ranks):
    manifest = write_manifest(tmp_path / "data", [(6, 16, 32)] * 4 + [(6, 32, 16)] * 3)
    config = configured(manifest, pairs_per_shard=2, buckets=[[4, 16, 32], [4, 32, 16]])
    run_pgdpo("prepare", config)
    ranks.run(["prepare", config, f"output_dir={tmp_path / 'two'}"])
    one, two = (
        json.loads((tmp_path / name / "prepared/train/index.json").read_text()) for name in ("out", "two")
    )
    assert one == two
    (tmp_path / "data/clips/002-rejected.mp4").write_text("no video")  # of shard 1: rank 1's
    config = configured(manifest, pairs_per_shard=2)
    job = ranks.start([["prepare", config, f"output_dir={tmp_path / 'bad'}"]])
    codes, texts = job.wait(120), [job.text(rank) for rank in (0, 1)]
    assert all(codes), codes
    assert any(re.search(r"error: pair `p002`, rejected: .*not a video", text) for text in texts), texts
    assert not (tmp_path / "bad/prepared/train/index.json").exists()


def test_ctrl_c_leaves_whole_shards_and_few_pairs_are_in_memory(tmp_path, configured, monkeypatch):
    manifest = write_manifest(tmp_path / "data", [(4, 16, 16)] * 20)
    config = configured(manifest, pairs_per_shard=6)
    folder, told = tmp_path / "out/prepared/train", []
    whole, whole_read, counts = (
        ToyEncoders.encode_video,
        encode.read_pair,
        {"read": 0, "encoded": 0, "most": 0},
    )

    def encode_video(self, frames):
        if counts["encoded"] == 2 * 8:
            raise KeyboardInterrupt
        counts["encoded"] += 1
        counts["most"] = max(counts["most"], counts["read"] - counts["encoded"] // 2)
        return whole(self, frames)

    def read_pair(row, plan):
        counts["read"] += 1
        return whole_read(row, plan)

    monkeypatch.setattr(ToyEncoders, "encode_video", encode_video)
    monkeypatch.setattr(encode, "read_pair", read_pair)
    with pytest.raises(BaseException), heard_by(SimpleNamespace(moved=told.append)):  # noqa: B017 the command line has its own words for it
        run_pgdpo("prepare", config)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}-00000.{kind}" for stem in ("shard-4x16x16", "text") for kind in ("json", "safetensors")
    ]
    assert (
        counts["most"] <= encode.AHEAD + 1
        and [text for text in told if "pair" in text][-1] == "encoded pair 8 of 20"
    )
    monkeypatch.undo()
    run_pgdpo("prepare", config)
    run_pgdpo("prepare", config, f"output_dir={tmp_path / 'fresh'}")
    assert PreparedPairs(folder).fingerprint == PreparedPairs(tmp_path / "fresh/prepared/train").fingerprint
