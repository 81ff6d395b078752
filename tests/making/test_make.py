"""Pairs made from real mp4 clips, by corruption and by the shipped toy model; each way keeps what it promises."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgdpo.config.read import load_config
from pgdpo.data.prepared import pair_hash
from pgdpo.evaluation.rewards import open_reward
from pgdpo.making import make as making
from pgdpo.making.corrupt import CORRUPTIONS
from pgdpo.making.prompts import corrupt_prompt
from pgdpo.messages.errors import InputError
from pgdpo.video import read_video, write_video
from pgdpo_kernels import pair_noise
from tests.models.families import FAMILIES
from tests.worlds import metrics, read_manifest, run_pgdpo

FAST = ["evaluate.sampling_steps=2", "evaluate.guidance_scale=1.5"]


@pytest.fixture(scope="module")
def clips(world):
    """A list of three real clips: the toy world's chosen ones."""
    toy = world / "out" / "toy"
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()][:3]
    listed = [{"id": row["id"], "prompt": row["prompt"], "video": row["chosen"]} for row in rows]
    (toy / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return toy / "clips.jsonl"


def made(kind, clips, out, *overrides) -> list[dict]:
    run_pgdpo("make", kind, "quickstart.yaml", clips, out, f"output_dir={out.parent}", *FAST, *overrides)
    assert read_manifest(out / "manifest.jsonl")  # rows, paths and columns are valid
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def frames(out, row, side) -> np.ndarray:
    return read_video(out / row[side]).astype(int)


def real(clips, row) -> np.ndarray:
    """The listed clip that a pair was made from, at the model's size."""
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    listed = next(each for each in rows if row["id"].startswith(each["id"]))
    return read_video(clips.parent / listed["video"], num_frames=8, size=(24, 24)).astype(int)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_a_clip_and_keeps_its_shape(name):
    rng = np.random.default_rng(0)
    clip = np.random.default_rng(1).integers(30, 200, (9, 16, 20, 3), dtype=np.uint8)
    for _ in range(20):
        corrupted = CORRUPTIONS[name](clip, rng)
        assert corrupted.shape == clip.shape and corrupted.dtype == np.uint8
        assert (corrupted != clip).any()


def test_corrupt_keeps_the_real_clip_and_says_what_befell_the_other(clips, tmp_path):
    rows = made("corrupt", clips, tmp_path / "pairs", "make.pairs_per_clip=2", "evaluate.reward=toy")
    assert len(rows) == 6 and {row["corruption"] for row in rows} <= set(CORRUPTIONS)
    for row in rows:
        assert np.abs(frames(tmp_path / "pairs", row, "chosen") - real(clips, row)).mean() < 4
        assert row["chosen_is_real"] and set(row["scores"]) == {"chosen", "rejected"}
    assert sum(r["scores"]["chosen"]["total"] > r["scores"]["rejected"]["total"] for r in rows) >= 5


def test_guided_pairs_are_chosen_by_the_reward_and_stay_near_the_clip(clips, tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    rows = made("guided", clips, near, "evaluate.reward=toy", "make.renoise=[0.2,0.2]")
    for row in rows:
        scores = row["scores"]
        assert scores["chosen"]["total"] >= scores["rejected"]["total"] and row["renoised_to"] == 0.2
        assert (frames(near, row, "chosen") != frames(near, row, "rejected")).any()
    others = made("guided", clips, far, "evaluate.reward=toy", "make.renoise=[0.9,0.9]")

    def distance(out, rows):
        return sum(np.abs(frames(out, row, "chosen") - real(clips, row)).mean() for row in rows)

    assert distance(near, rows) < distance(far, others)


def test_masked_changes_the_box_alone(clips, tmp_path):
    """The toy's codec is local, so outside the box the clips are the same up to H.264."""
    out = tmp_path / "pairs"
    changed = {True: 0.0, False: 0.0}
    for row in made("masked", clips, out, "make.renoise=[0.9,0.9]"):
        inside = np.asarray(Image.open(out / row["mask"])) > 0
        change = np.abs(frames(out, row, "chosen") - frames(out, row, "rejected")).mean(axis=(0, 3))
        assert 0 < inside.mean() < 0.6 and change[~inside].mean() < 1
        for side in changed:
            changed[side] += change[inside == side].mean()
    assert changed[True] > 3 * changed[False]


FLOWS = [name for name, kind in FAMILIES.items() if kind.prediction == "flow"]


@pytest.mark.parametrize("family", ["toy", *FLOWS])
def test_outside_the_box_the_clip_stands_at_every_steps_level(family, saved, tmp_path):
    """The model sees it noised to the level that it is asked about; at the end it is the clip's latents to the bit."""
    from pgdpo.making.generate import Generator

    overrides = [f"output_dir={tmp_path}", "evaluate.sampling_steps=5"]
    size = (8, 24, 24)
    if family != "toy":
        size = FAMILIES[family].size
        sizes = [f"data.{key}={n}" for key, n in zip(("num_frames", "height", "width"), size, strict=True)]
        overrides += [
            f"model.family={family}",
            f"model.path={saved(FAMILIES[family].save)}",
            "model.encoders=pipeline",
            *sizes,
        ]
    config = load_config("configs/quickstart.yaml", overrides)
    model = Generator(config, ["a red circle"], torch.device("cpu"))
    clip = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    latents = model.encoders.encode_video(clip)
    noise = pair_noise(
        (1, *latents.shape), seed=config.make.seed, pair_ids=torch.tensor([pair_hash("x")]), draw=3
    )
    box = (slice(1, 2), slice(0, 2))
    outside = torch.ones(latents.shape, dtype=torch.bool)
    outside[(..., *box)] = False
    seen, decoded, predict = [], [], model.family.predict

    def recorded(transformer, noisy, sigma, conditioning):
        seen.append((noisy[0].clone(), float(sigma)))
        return predict(transformer, noisy, sigma, conditioning)

    model.family.predict = recorded
    model.encoders.decode_video = decoded.append
    model.inside("x", clip, "a red circle", 0.8, 3, box)
    assert len({level for _, level in seen}) == 4  # 0.8 of five steps
    for noisy, level in seen:
        known = (1 - level) * latents + level * noise[0]
        torch.testing.assert_close(noisy[outside], known[outside], rtol=0, atol=1e-5)
    assert torch.equal(decoded[0][outside], latents[outside])
    assert (decoded[0][~outside] != latents[~outside]).all()


@pytest.mark.usefixtures("eager_kernels")
def test_local_dpo_trains_on_masked_pairs_up_to_an_export(clips, tmp_path):
    """What `make masked` writes is prepared, trained on and exported as it is; the margin grows most inside."""
    rows = made("masked", clips, tmp_path / "pairs", "make.renoise=[0.9,0.9]")
    here = [
        f"output_dir={tmp_path}",
        f"data.train={tmp_path / 'pairs' / 'manifest.jsonl'}",
        "data.held_out=null",
        "evaluate.every=null",
    ]
    run_pgdpo("prepare", "quickstart.yaml", *here)
    index = json.loads((tmp_path / "prepared/train/index.json").read_text())
    assert [row["id"] for row in index["pairs"]] == [row["id"] for row in rows]
    for row, listed in zip(index["pairs"], rows, strict=True):
        inside = np.asarray(Image.open(tmp_path / "pairs" / listed["mask"])) > 0
        assert row["mask_share"] == pytest.approx(inside.mean(), abs=1e-6)  # its edges are those of latents
    small = [
        "train.steps=8",
        "train.global_batch_groups=3",
        "train.micro_batch_groups=3",
        "train.warmup_steps=0",
    ]
    run_pgdpo("train", "quickstart.yaml", *here, *small, "objective={name: local_dpo, beta: 500}")
    steps = metrics(tmp_path, "local_dpo")
    assert steps[0]["margin/masked"] == steps[0]["margin"] == 0.0
    assert all(step["margin/masked"] > step["margin"] > 0 for step in steps[-3:])  # the clips differ inside
    run_pgdpo("export", "quickstart.yaml", *here, *small, "objective={name: local_dpo, beta: 500}")
    assert list((tmp_path / "local_dpo/export").glob("*.safetensors"))


def test_real_and_prompts(clips, tmp_path):
    assert all(row["chosen_is_real"] for row in made("real", clips, tmp_path / "real"))
    rows = made("prompts", clips, tmp_path / "prompts")
    assert all(row["caption_rejected"] != row["prompt"] for row in rows)
    # A bag of words stays the same where two of them are swapped: the toy's encoder hears of dropped ones alone.
    dropped = [row for row in rows if len(row["caption_rejected"]) < len(row["prompt"])]
    out = tmp_path / "prompts"
    assert dropped and all((frames(out, r, "chosen") != frames(out, r, "rejected")).any() for r in dropped)


def test_what_was_made_is_kept_when_it_goes_on(clips, tmp_path, monkeypatch):
    written = making._write
    calls = []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return written(*arguments)

    monkeypatch.setattr(making, "_write", stops)
    with pytest.raises(RuntimeError, match="killed"):
        made("corrupt", clips, tmp_path / "pairs")
    assert not (tmp_path / "pairs" / "manifest.jsonl").exists()
    monkeypatch.setattr(making, "_write", lambda *arguments: calls.append(arguments) or written(*arguments))
    with pytest.raises(InputError, match="begun with other settings"):
        made("corrupt", clips, tmp_path / "pairs", "make.seed=1")
    resumed = made("corrupt", clips, tmp_path / "pairs")
    assert len(calls) == 4  # the third pair alone
    assert resumed == made("corrupt", clips, tmp_path / "straight")


def test_all_clips_are_looked_at_before_any_is_made_and_a_row_may_go(clips, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["video"] = Path(shutil.copy2(clips.parent / row["video"], tmp_path)).name
    (tmp_path / "no.mp4").write_text("<html>")
    listed, out = tmp_path / "list.jsonl", tmp_path / "pairs"

    def write(*listing):
        listed.write_text("".join(json.dumps(row) + "\n" for row in listing))

    write(rows[0], {"id": "bad", "prompt": "a", "video": "no.mp4"}, *rows[1:])
    with pytest.raises(InputError, match=r"no.mp4: not a video"):
        made("corrupt", listed, out)
    assert not out.exists()
    write(*rows)
    written, calls = making._write, []

    def stops(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise RuntimeError("killed")
        return written(*arguments)

    monkeypatch.setattr(making, "_write", stops)
    with pytest.raises(RuntimeError, match="killed"):
        made("corrupt", listed, out)
    write(rows[0] | {"prompt": rows[2]["prompt"]}, rows[1])
    assert [row["prompt"] for row in made("corrupt", listed, out)] == [rows[2]["prompt"], rows[1]["prompt"]]
    assert calls[3:] == [
        rows[0]["id"]
    ]  # the one that is another now; the second is kept, the third not asked for


def test_ranks_share_the_pairs_and_go_on_with_what_a_killed_one_left(clips, tmp_path, ranks):
    def command(out):
        options = [f"output_dir={tmp_path}", *FAST, "evaluate.reward=toy"]
        return ["make", "guided", "quickstart.yaml", clips, tmp_path / out, *options]

    def files(out):
        kept = {str(path.relative_to(tmp_path / out)): path for path in (tmp_path / out).rglob("*.*")}
        return {name: path.read_bytes() for name, path in kept.items() if path.is_file()}

    ranks.run(command("alone"), ranks=1)
    killed = ranks.start([command("shared")], hook="kill_in_making", victim=1, after=0)
    assert killed.wait(120) == [2, -signal.SIGKILL]
    assert "another rank has ended" in killed.text(0) and not (tmp_path / "shared/manifest.jsonl").exists()
    left = {name: path.stat().st_mtime_ns for name, path in clips_of(tmp_path / "shared").items()}
    assert len(left) == 4  # rank 0's share
    ranks.run(command("shared"))
    assert files("shared") == files("alone")
    again = {name: path.stat().st_mtime_ns for name, path in clips_of(tmp_path / "shared").items()}
    assert left.items() <= again.items()


def clips_of(out):
    return {path.name: path for path in (out / "clips").glob("*.mp4")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("video"), "clips.jsonl:1: `video` is None; expected text"),
        (lambda row: row.update(video="nowhere.mp4"), "clips.jsonl:1: `video` is 'nowhere.mp4': no file"),
        (lambda row: row.update(id="a/b"), "`id` is 'a/b'; it names files"),
        (lambda row: row.update(video="../../../etc/passwd"), "etc/passwd"),
    ],
)
def test_bad_rows_are_named_before_anything_is_written(tmp_path, change, message):
    write_video(tmp_path / "clip.mp4", np.zeros((8, 24, 24, 3), np.uint8), 8)
    row = {"id": "a", "prompt": "a red circle moving left", "video": "clip.mp4"}
    change(row)
    (tmp_path / "clips.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        made("corrupt", tmp_path / "clips.jsonl", tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.jsonl: cannot be read \(.*No such file"):
        made("corrupt", tmp_path / "none.jsonl", tmp_path / "pairs")


def test_guided_without_a_reward_and_unknown_kinds_are_refused(clips, tmp_path):
    with pytest.raises(InputError, match="guided pairs need a reward"):
        made("guided", clips, tmp_path / "pairs", "evaluate.reward=null")
    with pytest.raises(InputError, match="KIND is 'best': allowed are corrupt, guided"):
        made("best", clips, tmp_path / "pairs")


def test_a_model_that_predicts_otherwise_is_named(tmp_path, clips, monkeypatch):
    from pgdpo.models.families.wan import Wan

    monkeypatch.setattr(Wan, "prediction", "v")
    with pytest.raises(InputError, match="it predicts v; clips are made by models of flow matching"):
        made("real", clips, tmp_path / "pairs")


def test_prompts_lose_or_swap_a_concept():
    rng = np.random.default_rng(0)
    found = {corrupt_prompt("a dog chases the cat", rng) for _ in range(50)}
    assert "a cat chases the dog" in found and "a chases the cat" in found
    assert "a dog chases the cat" not in found and corrupt_prompt("a dog", rng) is None


def test_rewards_come_from_installed_packages_alone(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in {
        "evil:score": "no installed package holds `evil`",
        "os:system": "no installed package holds `os`",
        "numpy:nothing_like_that": "has no function",
        "numpy": "expected `toy` or",
    }.items():
        with pytest.raises(InputError, match=message):
            open_reward(name)
    assert open_reward("numpy:size")(np.zeros((2, 3)), None) == {"total": 6.0}
    with pytest.raises(InputError, match="expected a finite number"):
        open_reward("numpy:log")(np.array(-1.0), None)


@pytest.mark.parametrize(("clip", "first"), [("first", 0.0), ("middle", 0.5)])
def test_a_fast_clip_is_taken_at_the_models_rate(tmp_path, capfd, clip, first):
    """60 frames a second, whose grey tells the time, for a model of 8: no slow motion is what gets rewarded."""
    times = np.arange(120) / 60
    grey = (20 + 100 * times).round().astype(np.uint8)
    write_video(
        tmp_path / "fast.mp4", np.broadcast_to(grey[:, None, None, None], (120, 24, 24, 3)), 60, crf=1
    )
    (tmp_path / "clips.jsonl").write_text(
        '{"id": "a", "prompt": "a large green square moving up", "video": "fast.mp4"}\n'
    )
    out, changes = tmp_path / "pairs", [f"data.clip={clip}", "make.corruptions=[reverse]"]
    [row] = made("corrupt", tmp_path / "clips.jsonl", out, *changes)
    shown = (frames(out, row, "chosen").mean((1, 2, 3)) - 20) / 100
    assert np.abs(shown - first - np.arange(8) / 8).max() < 0.03 and row["fps"] == 8
    assert "1 pairs of 60 frames a second: taken at 8 a second" in capfd.readouterr().out
    with pytest.raises(InputError, match="data.fps is `own`"):
        made("real", tmp_path / "clips.jsonl", tmp_path / "other", "data.fps=own")


def test_a_reward_that_raises_ends_it_before_anything_is_written(clips, tmp_path):
    with pytest.raises(InputError, match=r"evaluate.reward `numpy:mean` failed \(TypeError"):
        made("corrupt", clips, tmp_path / "pairs", "evaluate.reward=numpy:mean")
    assert not (tmp_path / "pairs").exists()


def test_the_toys_reward_of_another_worlds_prompt_is_named(tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"id": "1", "prompt": "a dog runs along the beach"}) + "\n")
    with pytest.raises(InputError, match="'a dog runs along the beach': no toy prompt"):
        made("prompts", source, tmp_path / "pairs", "evaluate.reward=toy")
    assert not (tmp_path / "pairs").exists()
