"""Faults 7, 8 and 20, and 10 and 11 on two ranks: order of pairs, damaged shards, uneven numbers, one rank's NaN."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pgdpo.checkpoints.events import read_events
from pgdpo.data.visits.order import Order
from pgdpo.messages.errors import InputError
from pgdpo.training.step import Step
from pgdpo.video import write_video
from tests.worlds import change_pair, metrics, run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")

PAIRS = 13  # no multiple of ranks, batches or shards


@pytest.fixture(scope="session")
def small_clips(tmp_path_factory):
    """Two clips of 2 frames at 8x8 pixels, and `write(rows)` of pairs of them -> a manifest."""
    folder = tmp_path_factory.mktemp("small")
    for name, seed in (("a", 0), ("b", 1)):
        frames = np.random.default_rng(seed).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", frames, 8)

    def write(count: int):
        rows = [
            {"id": f"p{i:03d}", "prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"} for i in range(count)
        ]
        path = folder / f"{count}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, tiny_wan, small_clips):
    """`prepared(pairs)`: output_dir and configuration with so many prepared pairs and 3 held-out ones."""
    made = {}

    def make(pairs: int):
        if pairs not in made:
            folder = tmp_path_factory.mktemp(f"pairs{pairs}")
            data = {"train": str(small_clips(pairs)), "held_out": str(small_clips(3))}
            data |= {"num_frames": 2, "height": 8, "width": 8, "pairs_per_shard": 2}
            train = {"global_batch_groups": 4, "micro_batch_groups": 1, "checkpoint_every": 3}
            made[pairs] = write_config(
                folder / "config.yaml", folder / "out", tiny_wan, data=data, train=train
            )
            run_pgdpo("prepare", made[pairs])
        return made[pairs]

    return make


@pytest.fixture
def fresh(prepared, tmp_path):
    """`fresh(pairs)`: a configuration and a copy of its prepared folder to damage."""

    def make(pairs: int):
        source = prepared(pairs)
        shutil.copytree(source.parent / "out" / "prepared", tmp_path / "out" / "prepared")
        text = source.read_text().replace(str(source.parent / "out"), str(tmp_path / "out"))
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml", tmp_path / "out" / "prepared" / "train"

    return make


def ids_of(file, ranks):
    """(step, id, draw) of all ranks."""
    texts = [Path(f"{file}-rank{rank}.jsonl").read_text() for rank in range(ranks)]
    return [tuple(json.loads(line)) for text in texts for line in text.splitlines()]


def test_no_pair_is_lost_or_repeated_over_resumes_on_other_numbers_of_ranks(start, fresh, tmp_path, tally):
    """2 -> 1 -> 2 ranks over 39 steps of 4: 12 epochs of 13 pairs; 3 validation clips are shown on the way."""
    config, _ = fresh(PAIRS)
    validation = ["evaluate.every=13", "evaluate.every_prompts=3"]
    for until, ranks in ((13, 2), (26, 1), (39, 2)):
        hook = {"hook": "record_ids", "file": str(tmp_path / f"ids{until}")}
        resume = ["--resume"] if until > 13 else []
        start("train", config, f"train.steps={until}", *resume, *validation, ranks=ranks, **hook).succeed(120)
    seen = [
        row for until, ranks in ((13, 2), (26, 1), (39, 2)) for row in ids_of(tmp_path / f"ids{until}", ranks)
    ]
    per_epoch = Counter((name, draw) for _, name, draw in seen)
    whole = {(f"p{i:03d}", draw) for i in range(PAIRS) for draw in range(12)}
    assert set(per_epoch) == whole and set(per_epoch.values()) == {1}
    order = Order([range(PAIRS)], micro_batch=1, seed=0)
    for step in range(39):
        wanted = [order.micro_batch(4 * step + i)[0] for i in range(4)]
        found = [(name, draw) for at, name, draw in seen if at == step]
        assert sorted(found) == sorted((f"p{index:03d}", draw) for index, draw in wanted)
    clips = list((tmp_path / "out/dpo/validation").glob("*/*.mp4"))
    assert len(clips) == 9
    tally(7, len(whole), len(per_epoch))
    tally(20, 3, 3)


def test_one_ranks_nan_is_everybodys(start, fresh, tmp_path, tally):
    config, folder = fresh(PAIRS)
    change_pair(folder, "p005", lambda tensors: tensors["chosen"].view(-1)[3:4].fill_(float("nan")))
    start("train", config, "train.steps=13", "train.on_bad_step=skip", "train.zero_stage=2").succeed(120)
    rows = metrics(tmp_path / "out", "dpo")
    bad = [row["step"] for row in rows if row.get("fault_pairs") == ["p005"]]
    order = Order([range(PAIRS)], micro_batch=1, seed=0)
    wanted = sorted({position // 4 + 1 for position in range(52) if order.micro_batch(position)[0][0] == 5})
    assert bad == wanted == [row["step"] for row in rows if row.get("fault")]
    tally(10, len(wanted), len(bad))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(
    ("factors", "seen", "reason"),
    [([1e4], True, "times that of the steps before"), ([1e38, 1e10], False, "gradient's norm is not finite")],
    ids=["spike", "infinite gradient"],
)
def test_one_ranks_spike_or_infinite_gradient_is_everybodys(
    start, fresh, tmp_path, factors, seen, reason, stage, tally
):
    config, _ = fresh(PAIRS)
    hook = {"hook": "scale_loss", "victim": 1, "step": 12, "factors": factors, "seen": seen}
    options = [
        "train.on_bad_step=skip",
        f"train.zero_stage={stage}",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
    ]
    start("train", config, "train.steps=14", *options, **hook).succeed(120)
    rows = metrics(tmp_path / "out", "dpo")
    assert [row["step"] for row in rows if reason in row.get("fault", "")] == [12]
    assert [row["skipped_steps"] for row in rows[10:]] == [0, 1, 1, 1]

    def weights(step):
        folder = tmp_path / f"out/dpo/checkpoints/step-{step:08d}"
        return {
            n: t for file in sorted(folder.glob("weights-*.safetensors")) for n, t in load_file(file).items()
        }

    before, bad, after = weights(11), weights(12), weights(13)
    assert all(torch.equal(before[name], bad[name]) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    tally(11, 1, 1)


FLIP, CUT, GONE = "flip", "cut", "gone"


def damage(path, how):
    if how == GONE:
        path.unlink()
    elif how == CUT:
        os.truncate(path, path.stat().st_size - 100)
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        with path.open("r+b") as file:  # the same file: it may be mapped
            file.write(content)


@pytest.mark.parametrize("how", [FLIP, CUT, GONE])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_damaged_shard_is_named_in_the_step_that_reads_it(fresh, monkeypatch, how, when, tally):
    config, folder = fresh(PAIRS)
    shard = folder / "shard-2x8x8-00003.safetensors"  # p006 and p007
    reads = []
    take = Step.take

    def stepping(self, loaded):
        step = self.done
        if step == 1 and when == "during":
            damage(shard, how)
        pairs = [
            i
            for number in range(4 * step, 4 * step + 4)
            for i, _ in Order([range(PAIRS)], micro_batch=1, seed=0).micro_batch(number)
        ]
        reads.append({6, 7} & set(pairs))
        return take(self, loaded)

    monkeypatch.setattr(Step, "take", stepping)
    if when == "before":
        damage(shard, how)
    with pytest.raises(InputError) as caught:
        run_pgdpo("train", config, "train.steps=9", "train.checkpoint_every=1", "train.keep_checkpoints=9")
    text = str(caught.value)
    assert str(shard) in text and "run `pgdpo prepare` again" in text
    if when == "before":
        assert not reads
    else:
        assert re.match(r"step (\d+): pair `p00[67]`", text), text
        assert reads[-1] and not any(reads[1:-1]) and text.startswith(f"step {len(reads)}:")
        saved = list((config.parent / "out/dpo/checkpoints").glob("step-*"))
        assert len(saved) == len(reads) - 1  # nothing was updated after the damage was met
    tally(8, 1, 1)


@pytest.mark.slow
def test_skipped_shards_are_logged_counted_and_stop_above_one_percent(fresh, monkeypatch, tally):
    """200 pairs: one shard of two is 1% and may go; what appears during the run counts with what was there before."""
    config, folder = fresh(200)
    first, second = (folder / f"shard-2x8x8-{number:05d}.safetensors" for number in (10, 20))
    damage(first, FLIP)
    steps = 50  # an epoch
    run_pgdpo("train", config, "data.on_bad_data=skip", f"train.steps={steps}", "train.checkpoint_every=25")
    events = [event for event in read_events(config.parent / "out/dpo") if event["event"] == "damaged pair"]
    assert sorted(event["pairs"][0] for event in events) == ["p020", "p021"]
    rows = metrics(config.parent / "out", "dpo")
    assert len(rows) == steps and all(row["loss"] is not None for row in rows)
    counted = [sum(bucket["pairs"] for bucket in row["buckets"].values()) for row in rows]
    assert sum(counted) == 198 and {event["step"] for event in events} == {
        step for step, count in enumerate(counted, start=1) if count < 4
    }
    take = Step.take

    def stepping(self, loaded):
        if self.done == steps:
            damage(second, FLIP)
        return take(self, loaded)

    monkeypatch.setattr(Step, "take", stepping)
    with pytest.raises(
        InputError, match=r"step \d+: .*3 of 200 pairs are bad, 1.5%; up to 1% may be skipped"
    ):
        run_pgdpo("train", config, "--resume", "data.on_bad_data=skip", f"train.steps={2 * steps}")
    damage(second, FLIP)
    damage(folder / "shard-2x8x8-00030.safetensors", CUT)
    with pytest.raises(InputError, match=r"4 of 200 pairs are bad, 2.0%"):  # known before the first step
        run_pgdpo("train", config, "name=other", "data.on_bad_data=skip")
    tally(8, 4, 4)


def test_damage_that_one_rank_meets_stops_all_by_name(start, fresh, tally):
    config, folder = fresh(PAIRS)
    shard = folder / "shard-2x8x8-00003.safetensors"
    hook = {"hook": "damage_file", "victim": 1, "step": 1, "path": str(shard)}
    job = start("train", config, "train.steps=9", "data.on_bad_data=skip", **hook)
    codes = job.wait(120)
    assert all(codes), codes
    texts = [job.text(rank) for rank in (0, 1)]
    assert all(re.search(r"step \d+: .*of 13 pairs are bad", text) for text in texts), texts
    assert all("shard-2x8x8-00003.safetensors" in text for text in texts)
    tally(8, 1, 1)
