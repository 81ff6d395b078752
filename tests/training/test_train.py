"""The main job on the toy world with a tiny Wan transformer, through the real DeepSpeed engine."""

import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.worlds import losses, metrics, run_pgdpo


def relative(first: list[float], second: list[float]) -> float:
    first, second = np.array(first), np.array(second)
    return float(np.abs((first - second) / first).max())


def train(config_file, name, *overrides, options=()):
    run_pgdpo("train", config_file, *options, f"name={name}", *overrides)
    return losses(config_file.parent / "out", name)


@pytest.mark.quick
def test_a_fresh_run_has_margin_zero_and_loss_ln_2_to_the_last_bit(config_file):
    train(config_file, "fresh", "train.steps=1")
    first = metrics(config_file.parent / "out", "fresh")[0]
    assert first["margin"] == 0.0 and first["reward/chosen"] == 0.0 and first["displacement"] == 0.0
    assert first["loss"] == float(torch.tensor(math.log(2), dtype=torch.float32))
    assert first["implicit_accuracy"] == 0.5


@pytest.mark.parametrize("objective", [pytest.param("dpo", marks=pytest.mark.slow), "pg_dpo"])
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(config_file, objective):
    once = train(config_file, "once", f"objective.name={objective}")
    again = train(config_file, "again", f"objective.name={objective}")
    other = train(config_file, "other", f"objective.name={objective}", "train.seed=1")
    assert once == again
    assert once[1:] != other[1:]


@pytest.mark.usefixtures("eager_kernels")
def test_stopped_and_resumed_is_the_straight_run(config_file):
    straight = train(config_file, "straight")
    train(config_file, "stopped", "train.steps=2")
    resumed = train(config_file, "stopped", options=["--resume"])
    assert len(resumed) == 4
    assert relative(straight, resumed) <= 1e-6


@pytest.mark.usefixtures("eager_kernels")
def test_accumulation_is_the_large_batch(config_file):
    assert (
        relative(train(config_file, "micro"), train(config_file, "whole", "train.micro_batch_groups=4"))
        <= 1e-5
    )


def test_all_weights_against_a_frozen_copy(config_file):
    full = ("model.adapter=null", "train.learning_rate=1e-5")
    rows = train(config_file, "full", *full)
    assert rows[0] == float(torch.tensor(math.log(2), dtype=torch.float32))
    assert rows[-1] != rows[0]


@pytest.mark.usefixtures("eager_kernels")
def test_sft_needs_no_reference_and_lowers_the_error(config_file):
    run_pgdpo(
        "train", config_file, "name=sft", "objective={name: sft}", "model.adapter=null", "train.steps=30",
        "train.checkpoint_every=30",
    )  # fmt: skip
    rows = metrics(config_file.parent / "out", "sft")
    assert "displacement" not in rows[0]
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.9 * np.mean([row["loss"] for row in rows[:5]])


def test_bf16_keeps_the_margin_at_zero_and_trains(config_file):
    rows = train(config_file, "half", "train.precision=bf16")
    assert rows[0] == float(torch.tensor(math.log(2), dtype=torch.float32))
    assert rows[-1] != rows[0]


@pytest.mark.usefixtures("eager_kernels")
def test_metrics_hold_every_name_overall_and_per_timestep_bucket(config_file):
    train(config_file, "named", "train.steps=2", "objective.name=pg_dpo")
    row = metrics(config_file.parent / "out", "named")[-1]
    names = {
        "loss", "implicit_accuracy", "margin", "reward/chosen", "reward/rejected", "displacement", "excess/chosen",
        "excess/rejected", "gradient_share/rejected", "ars/alpha", "ipr/gate",
    }  # fmt: skip
    assert names <= set(row)
    assert {"pairs_per_second", "tokens_per_second", "peak_memory", "mfu"} <= set(row)
    assert sum(bucket["pairs"] for bucket in row["buckets"].values()) == 4
    for bucket in row["buckets"].values():
        assert names <= set(bucket)
    weighted = sum(bucket["pairs"] * bucket["margin"] for bucket in row["buckets"].values()) / 4
    assert weighted == pytest.approx(row["margin"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("eager_kernels")
def test_the_deepspeed_launcher_starts_it(config_file):
    launcher = shutil.which("deepspeed", path=f"{sys.exec_prefix}/bin")
    subprocess.run(
        [launcher, "--num_gpus", "2", "--module", "pgdpo", "train", str(config_file), "name=launched"],
        check=True, capture_output=True, timeout=240, env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert relative(train(config_file, "alone"), losses(config_file.parent / "out", "launched")) <= 1e-5


@pytest.mark.slow
def test_fused_ops_inside_the_transformer_train_alike(config_file):
    """Triton's interpreter stands where the GPU would."""
    eager = train(config_file, "eager", "train.steps=2")
    fused = train(config_file, "fused", "train.steps=2", "model.kernels=triton")
    assert fused[0] == eager[0] == float(torch.tensor(math.log(2), dtype=torch.float32))
    assert relative(eager, fused) <= 1e-4
