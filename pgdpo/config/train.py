"""`train`: batches, optimizer, reference, memory, checkpoints, guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pgdpo.config.section import Section

# Figures of held-out pairs that a run is judged by while it trains, and whether less of one is better.
LESS_IS_BETTER = {
    "loss": True,
    "implicit_accuracy": False,
    "margin": False,
    "displacement": True,
    "excess/chosen": True,
}
Figure = Literal["loss", "implicit_accuracy", "margin", "displacement", "excess/chosen"]


class StopRule(Section):
    """Each limit where it is set; an interval must lie beyond it whole."""

    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after so many looks in a row at held-out pairs without a better `figure`.",
    )
    figure: Figure = Field("loss", description="What `patience` waits for.")
    displacement: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Stop above this share of held-out chosen clips that became less likely.",
    )
    accuracy: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Stop below this share of held-out pairs that are told apart as labelled.",
    )


class LowerBetaRule(Section):
    saturated: float = Field(
        0.2, gt=0, lt=1, description="Above this share of held-out pairs with |logit| > 8, `beta` is lowered."
    )
    factor: float = Field(0.7, gt=0, lt=1, description="By which it is multiplied then.")
    least: float = Field(1.0, gt=0, description="It is never lowered below this.")


class RaiseBetaRule(Section):
    saturated: float = Field(
        0.02, gt=0, lt=1, description="Below this share of held-out pairs with |logit| > 8, `beta` is raised."
    )
    factor: float = Field(1.4, gt=1, description="By which it is multiplied then.")
    most: float = Field(5000.0, gt=0, description="It is never raised above this.")


class CapMarginRule(Section):
    logit: float = Field(8.0, gt=0, description="A pair whose logit is above this has no gradient by it.")


class SftWeightRule(Section):
    displacement: float = Field(
        0.3, ge=0, lt=1, description="Share of displaced held-out pairs that the weight is steered towards."
    )
    gain: float = Field(
        1.0,
        gt=0,
        description="At each look at held-out pairs the weight grows by so much times (displacement - this target), "
        "and falls likewise.",
    )
    most: float = Field(
        1.0,
        gt=0,
        description="The weight is never above this; 1/2 doubles the first step's pull on the chosen clip.",
    )


class SteerConfig(Section):
    """Rules by which a run is steered, each off where it is left out; `{}` takes a rule's defaults."""

    stop: StopRule | None = Field(None, description="End the run early; its checkpoint is saved.")
    lower_beta: LowerBetaRule | None = Field(
        None, description="Lower `objective.beta` where logits saturate."
    )
    raise_beta: RaiseBetaRule | None = Field(None, description="Raise `objective.beta` where none does.")
    cap_margin: CapMarginRule | None = Field(None, description="End the logit's gradient at a margin.")
    sft_weight: SftWeightRule | None = Field(
        None, description="Pull the chosen clips up, the more the more of them are displaced."
    )

    @property
    def rules(self) -> list[str]:
        """The names of those that are on."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def options(self) -> dict[str, float]:
        """The objective's modifiers that a steered run begins with."""
        cap = {} if self.cap_margin is None else {"logit_cap": self.cap_margin.logit}
        return cap if self.sft_weight is None else cap | {"chosen_pull": 0.0}


class TrainConfig(Section):
    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    global_batch_groups: int = Field(
        16,
        ge=1,
        description="Pairs, or groups of samples, per optimizer step, over all ranks.",
        json_schema_extra={"was": "global_batch_pairs"},
    )
    micro_batch_groups: int = Field(
        1,
        ge=1,
        description="Pairs, or groups, whose loss is computed together on one rank, each whole.",
        json_schema_extra={"was": "micro_batch_pairs"},
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="After the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    adam_betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's beta1 and beta2.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping by global norm.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What DeepSpeed shards: 1 optimizer state, 2 gradients too, 3 weights too. On several ranks "
        "`evaluate` shards its weights with 3; else each rank holds a whole model.",
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where optimizer state lives beside the GPU: cpu (ZeRO 1-3), nvme (ZeRO 3)."
    )
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where weights live beside the GPU (ZeRO 3), the frozen reference's too."
    )
    nvme_path: Path | None = Field(
        None,
        description="Folder on a local NVMe drive, for what is offloaded to `nvme`; needs libaio's headers.",
    )
    deepspeed: dict[str, Any] = Field(
        {},
        description="DeepSpeed's own keys, as its configuration nests them (zero_optimization: {overlap_comm: true}); "
        "those that pgdpo decides are refused by name.",
    )
    sequence_parallel: int = Field(
        1, ge=1, description="Ranks that share a clip's tokens (Ulysses); it divides ranks and heads."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16: what trains stays fp32, matrix products run in bf16 (torch autocast)."
    )
    reference: Literal["auto", "adapter", "frozen", "cached", "ema", "synced"] = Field(
        "auto",
        description="adapter: the same weights with the adapter off; frozen: a second copy; auto: the first of these "
        "that the model allows; cached: errors that `pgdpo reference` computed before; ema, synced: it follows the "
        "policy (TR-DPO).",
    )
    cached_draws: int = Field(
        4,
        ge=1,
        description="Draws of timestep and noise a pair that `pgdpo reference` computes; a cached run draws these, "
        "and from a pair's visit after the last of them on draws them again.",
    )
    reference_ema_alpha: float = Field(
        0.01,
        gt=0,
        le=1,
        description="ema: the share of the policy that enters the reference at every step; default ours.",
    )
    reference_sync_every: int = Field(
        512, ge=1, description="synced: optimizer steps after which the reference becomes the policy."
    )
    group_batching: Literal["joint", "split"] = Field(
        "joint",
        description="joint: all samples of a micro-batch in one forward; split: one sample of each group after the "
        "other, half the activations of pairs in memory (less of larger groups) for one more forward of the policy.",
        json_schema_extra={"was": "pair_batching"},
    )
    check_memory: Literal["refuse", "warn"] = Field(
        "refuse",
        description="Where the plan (`pgdpo plan`) exceeds the GPU's memory: do not start, or say so and try.",
    )
    on_bad_step: Literal["raise", "skip", "rollback"] = Field(
        "raise",
        description="A pair, a loss or a gradient that is not finite, or a spike of the loss: stop; leave the step out "
        "(weights and learning rate stay); or take the last checkpoint's weights and go on behind these pairs.",
    )
    max_bad_steps: int = Field(5, ge=1, description="So many bad steps in a row stop the run in any case.")
    spike_factor: float | None = Field(
        30.0,
        gt=1,
        description="A spike is a loss above so many times the largest of the running median of 100 steps, the "
        "objective's untrained loss and the spread of the first ten; null: none is.",
    )
    expert_turns: int | None = Field(
        None,
        ge=1,
        description="model.expert both: steps of one expert before the other one's turn; by default each trains to its "
        "end, the high-noise one first. Results are the same to the bit.",
    )
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between checkpoints; the last step always has one."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_every: int | None = Field(
        None,
        ge=1,
        description="Checkpoints of multiples of so many steps are kept too, to choose a step later (--step); a "
        "multiple of checkpoint_every.",
    )
    keep_best: Figure | None = Field(
        "loss",
        description="With `evaluate.every`: the checkpoint with the best of this figure on held-out pairs is kept too "
        "(`--step best`); null: none is.",
    )
    steer: SteerConfig = Field(
        default_factory=SteerConfig,
        description="Rules that change `beta`, the loss or the run's end by held-out figures.",
    )
    watchdog_seconds: float = Field(
        1800,
        gt=0,
        description="A rank that comes no further for so many seconds ends the run with all stacks written down: "
        "longer than a block, a denoising step of validation, or a file of 256 MB takes.",
    )
    trackers: list[Literal["wandb", "trackio", "swanlab"]] = Field(
        [], description="Services that get the metrics, besides metrics.jsonl and TensorBoard."
    )
    tracker_project: str = Field("pgdpo", min_length=1, description="Project name at those services.")
    deterministic: bool = Field(
        False,
        description="Sum gradients in one order whatever the number of ranks, with deterministic kernels: bit-equal "
        "runs. For zero_stage 0 and group_batching joint; whole-batch objectives see a micro-batch.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes order, timesteps, noise and initial adapters.")
