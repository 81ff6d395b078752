"""Faults 10 and 11: what is not finite, and spikes of the loss, are seen in the same step by all ranks together."""

import json
import math
import shutil

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pgdpo.checkpoints.events import read_events
from pgdpo.config.read import load_config
from pgdpo.guards.bad_steps import Guard
from pgdpo.messages.errors import InputError
from tests.worlds import change_pair, metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def spoil(tensors):
    tensors["rejected"].view(-1)[7] = float("nan")


@pytest.fixture
def spoilt(config_file, world):
    """The configuration of a world in which one latent of the pair train-00002 is NaN, as if the encoder made it."""
    output = config_file.parent / "spoilt"
    shutil.copytree(world / "out", output)
    change_pair(output / "prepared" / "train", "train-00002", spoil)
    return output


def start(config_file, output, *overrides):
    run_pgdpo("train", config_file, f"output_dir={output}", "train.checkpoint_every=1", *overrides)


def weights(output, step):
    [file] = (output / f"dpo/checkpoints/step-{step:08d}").glob("weights-*.safetensors")
    return load_file(file)


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_pair_that_is_not_finite_stops_the_run_before_the_optimizer(config_file, spoilt, tally):
    with pytest.raises(
        InputError, match=r"step \d+: the loss is not finite for the pairs train-00002: nothing"
    ) as e:
        start(config_file, spoilt, "train.steps=6")
    step = int(str(e.value).split(":")[0].removeprefix("step "))
    steps_done = len(list((spoilt / "dpo" / "checkpoints").glob("step-*")))
    assert steps_done == min(step - 1, 2)  # two are kept
    assert ended_by(spoilt, step, "the loss is not finite") == ["train-00002"]
    tally(10, 1, 1)


def ended_by(output, step, words) -> list[str]:
    """A run that a fault ended says so everywhere. Returns the pairs that it names."""
    row = metrics(output, "dpo")[-1]
    taken, failed = read_events(output / "dpo")[-2:]
    assert row["step"] == taken["step"] == failed["step"] == step
    assert (taken["event"], failed["event"]) == ("step not taken", "failed")
    assert all(words in text for text in (row["fault"], taken["message"], failed["message"]))
    for event in (taken, failed):
        assert (event["pairs"], event["shares"]) == (row["fault_pairs"], row["fault_shares"])
    run_pgdpo("report", output.parent / "config.yaml", f"output_dir={output}", "evaluate.report_pairs=1")
    page = (output / "dpo" / "report.html").read_text()
    assert page.index(f"This run failed in step {step}.") < page.index("<h1>")
    assert all(name in page for name in row["fault_pairs"])
    return row["fault_pairs"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=SLOW), 3])
def test_a_step_that_is_not_taken_changes_nothing(config_file, spoilt, stage, tally):
    """Every epoch of 12 pairs has the bad one once: one step in three is left out, and training goes on around it."""
    start(
        config_file,
        spoilt,
        "train.steps=6",
        "train.on_bad_step=skip",
        "train.warmup_steps=4",
        "train.keep_checkpoints=9",
        f"train.zero_stage={stage}",
    )
    rows = metrics(spoilt, "dpo")
    bad = [row["step"] for row in rows if row.get("fault")]
    assert len(bad) == 2
    for row in rows:
        assert row.get("fault_pairs", ["train-00002"]) == ["train-00002"]
        assert row["skipped_steps"] == sum(step <= row["step"] for step in bad)
        assert (row["loss"] is None) == (row["step"] in bad)
    for step in range(2, 7):  # weights move exactly in the steps that were taken
        assert same(weights(spoilt, step), weights(spoilt, step - 1)) == (step in bad)
    taken = [row["learning_rate"] for row in rows if row["step"] not in bad]
    assert taken == pytest.approx([1e-3 * min(1, (n + 1) / 4) for n in range(len(taken))])
    events = [event for event in read_events(spoilt / "dpo") if event["event"] == "step not taken"]
    assert [event["step"] for event in events] == bad
    assert all(event["pairs"] == ["train-00002"] for event in events)
    tally(10, len(bad), len(events))


def test_too_many_in_a_row_stop_the_run(config_file, world, tmp_path, tally):
    output = tmp_path / "all"
    shutil.copytree(world / "out", output)
    for number in range(12):
        change_pair(output / "prepared" / "train", f"train-{number:05d}", spoil)
    with pytest.raises(InputError, match=r"step 3: .*: 3 steps in a row were not taken"):
        start(config_file, output, "train.steps=6", "train.on_bad_step=skip", "train.max_bad_steps=3")
    assert not list((output / "dpo/checkpoints").glob("step-00000003*"))
    events = [(event["event"], event["step"]) for event in read_events(output / "dpo")]
    assert events == [("started", 0), *(("step not taken", step) for step in (1, 2, 3)), ("failed", 3)]
    assert [bool(row["fault"]) for row in metrics(output, "dpo")] == [True] * 3
    tally(10, 1, 1)


def inject(monkeypatch, steps, change):
    """`change(the objective's output)` in these steps (from 1), as a model that breaks down would."""
    count = iter(range(1, 1000))
    see = Guard.see

    def seen(self, output, errors, batch):
        self.number = next(count)
        micro = self._engine.gradient_accumulation_steps()
        if -(-self.number // micro) in steps:
            change(output)
        see(self, output, errors, batch)

    monkeypatch.setattr(Guard, "see", seen)


def scaled(output):
    """The first pair of each micro-batch of two has two thirds of it."""
    output.loss = output.loss * 750
    output.per_group = output.per_group * output.per_group.new_tensor([1000.0, 500.0])


def steep(output):
    """A finite loss with a gradient that overflows."""
    output.loss = output.loss * 1e38 * 1e10


@pytest.mark.parametrize("stage", [pytest.param(0, marks=SLOW), 1, pytest.param(3, marks=SLOW)])
def test_an_infinite_gradient_is_seen_in_its_step(config_file, monkeypatch, stage, tally):
    inject(monkeypatch, {1, 4}, steep)  # the first step too, before the optimizer has any state
    output = config_file.parent / "out"
    start(
        config_file,
        output,
        "train.steps=5",
        "train.on_bad_step=skip",
        "train.keep_checkpoints=9",
        f"train.zero_stage={stage}",
    )
    rows = metrics(output, "dpo")
    assert [row["step"] for row in rows if row.get("fault")] == [1, 4]
    assert all(row["gradient_norm"] is None or math.isfinite(row["gradient_norm"]) for row in rows)
    assert same(weights(output, 4), weights(output, 3)) and not same(weights(output, 5), weights(output, 4))
    tally(11, 2, sum("gradient" in row.get("fault", "") for row in rows))


@pytest.mark.parametrize(
    ("stage", "policy"),
    [
        (0, "skip"),
        pytest.param(2, "skip", marks=SLOW),
        pytest.param(3, "skip", marks=SLOW),
        (0, "rollback"),
        (0, "raise"),
    ],
)
def test_a_spike_of_the_loss_is_seen_in_its_step(config_file, monkeypatch, stage, policy, tally):
    inject(monkeypatch, {14}, scaled)
    output = config_file.parent / "out"
    arguments = ["train.steps=16", f"train.on_bad_step={policy}", f"train.zero_stage={stage}"]
    arguments += ["train.keep_checkpoints=20"]
    if policy == "rollback":
        arguments += ["train.checkpoint_every=4"]
    if policy == "raise":
        with pytest.raises(
            InputError, match=r"step 14: the loss .* times its scale .*; pairs: train.*%\).*: nothing was"
        ):
            start(config_file, output, *arguments)
        assert len(ended_by(output, 14, "times its scale")) == 4
        assert not list((output / "dpo/checkpoints").glob("step-00000014*"))
        tally(11, 1, 1)
        return
    start(config_file, output, *arguments)
    rows = metrics(output, "dpo")
    [row] = [row for row in rows if row.get("fault")]
    assert row["step"] == 14
    named = dict(zip(row["fault_pairs"], row["fault_shares"], strict=True))
    assert list(named.values()) == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=0.05)
    [event] = [event for event in read_events(output / "dpo") if event["event"] == "step not taken"]
    assert dict(zip(event["pairs"], event["shares"], strict=True)) == named
    assert all(f"{name} ({share:.0%})" in event["message"] for name, share in named.items())
    if policy == "skip":
        assert same(weights(output, 14), weights(output, 13))
        assert not same(weights(output, 15), weights(output, 14))
    else:
        back = [event for event in read_events(output / "dpo") if event["event"] == "went back"]
        assert [event["step"] for event in back] == [14] and "step 12" in back[0]["message"]
        assert rows[-1]["skipped_steps"] == 2  # of 14 steps the weights hold 12
    tally(11, 1, 1)


def test_a_resumed_run_decides_as_one_that_never_stopped(config_file, spoilt, tally):
    options = ["train.on_bad_step=skip", "train.warmup_steps=4", "train.keep_checkpoints=9"]
    start(config_file, spoilt, "train.steps=6", *options)
    whole = [(row["loss"], row["learning_rate"], row["skipped_steps"]) for row in metrics(spoilt, "dpo")]

    def run(steps, *more):
        start(config_file, spoilt, f"train.steps={steps}", "name=again", *options, *more)

    run(4)
    run(6, "--resume")
    assert [(r["loss"], r["learning_rate"], r["skipped_steps"]) for r in metrics(spoilt, "again")] == whole
    tally(10, 1, 1)


def test_a_spike_is_named_alike_by_two_ranks(config_file, ranks):
    """One rank's pairs are at fault; both ranks end with the same words."""
    command = [
        "train",
        config_file,
        "train.steps=16",
        "train.micro_batch_groups=1",
        "train.checkpoint_every=20",
    ]
    job = ranks.start([command], hook="scale_loss", victim=1, step=14, factors=[1000.0], seen=True)
    assert job.wait(60) == [2, 2]
    [event] = [e for e in read_events(config_file.parent / "out/dpo") if e["event"] == "step not taken"]
    assert event["pairs"] and event["shares"] == sorted(event["shares"], reverse=True)
    assert all(event["message"] in " ".join(job.text(rank).split()) for rank in range(2))


def test_a_resumed_run_keeps_its_objectives_state_over_a_step_that_is_not_taken(config_file, monkeypatch):
    """`bco` hands a mean on from batch to batch: that of the checkpoint, also where the first step after it is bad."""
    output = config_file.parent / "out"
    options = ("name=dpo", "objective={name: bco, beta: 50}", "train.on_bad_step=skip")
    start(config_file, output, "train.steps=2", *options)
    inject(monkeypatch, {1}, lambda output: setattr(output, "per_group", output.per_group * math.nan))
    start(config_file, output, "train.steps=3", "--resume", *options)
    assert [bool(row.get("fault")) for row in metrics(output, "dpo")] == [False, False, True]
    before, after = (
        json.loads((output / f"dpo/checkpoints/step-{step:08d}/state.json").read_text())["objective_state"]
        for step in (2, 3)
    )
    assert before == after and before["count"] == 8


def test_a_crash_is_logged_as_a_failure_and_an_end_as_such(config_file, monkeypatch):
    from pgdpo.training.step import Step

    output = config_file.parent / "out"
    start(config_file, output, "train.steps=2")
    assert [event["event"] for event in read_events(output / "dpo")] == ["started", "finished"]
    with pytest.raises(InputError, match="--resume"):  # a command that is refused is no failure of the run
        start(config_file, output, "train.steps=4")
    take = Step.take

    def breaks(self, loaded):
        return take(self, loaded) if self.done < 3 else [][self.done]

    monkeypatch.setattr(Step, "take", breaks)
    with pytest.raises(IndexError):
        run_pgdpo("train", config_file, f"output_dir={output}", "train.steps=6", "--resume")
    events = read_events(output / "dpo")
    assert [event["event"] for event in events if event["event"] != "changed"][2:] == ["resumed", "failed"]
    assert events[-1]["step"] == 3 and events[-1]["message"] == "IndexError: list index out of range"


def test_the_guard_costs_one_collective_of_40_bytes_a_step(config_file, monkeypatch):
    """Whatever the number of micro-batches; every other all-reduce of a run with a guard is DeepSpeed's."""
    sizes, real = [], dist.all_reduce

    def counted(tensor, *arguments, **options):
        sizes.append(tensor.numel() * tensor.element_size())
        return real(tensor, *arguments, **options)

    def guarded(tensor, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(dist, "all_reduce", counted)
            return judge(tensor, *arguments, **options)

    judge = Guard._judge
    monkeypatch.setattr(Guard, "_judge", guarded)
    trainer_steps = 3
    from pgdpo.training.saves import Saves
    from pgdpo.training.trainer import Trainer

    config = load_config(config_file, [f"train.steps={trainer_steps}", "train.micro_batch_groups=1"])
    monkeypatch.setattr("pgdpo.training.task.task.check_damage", lambda data, config: None)
    monkeypatch.setattr(Saves, "save", lambda self: None)
    monkeypatch.setattr(Saves, "published", lambda self: config_file)
    trainer = Trainer(config)
    monkeypatch.setattr("pgdpo.ranks.agreement.gather", lambda value: pytest.fail("a gather in a sound step"))
    trainer.train()
    assert sizes == [40] * trainer_steps


@pytest.mark.parametrize("stage", [1, 2])
def test_a_first_step_that_is_not_taken_leaves_moments_for_the_next(config_file, monkeypatch, stage):
    """DeepSpeed links a parameter's moments at its first step, also where that made none."""
    inject(monkeypatch, {1}, lambda output: setattr(output, "per_group", output.per_group * math.nan))
    start(
        config_file,
        config_file.parent / "out",
        f"train.zero_stage={stage}",
        "train.on_bad_step=skip",
        "train.steps=2",
    )
    rows = metrics(config_file.parent / "out", "dpo")
    assert [row["skipped_steps"] for row in rows] == [1, 1]
    [file] = (config_file.parent / "out/dpo/checkpoints/step-00000002").glob("optimizer-*.safetensors")
    assert any(name.startswith("exp_avg/") for name in load_file(file))
