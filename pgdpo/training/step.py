"""One optimizer step: draw, noise, policy, reference, pair errors, objective, backward, step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pgdpo.config import Config
from pgdpo.diffusion.draws import seed_torch
from pgdpo.diffusion.inversion import invert
from pgdpo.diffusion.streams import Latents
from pgdpo.engine.deterministic import check_objective
from pgdpo.engine.engine import learning_rate, set_learning_rate
from pgdpo.engine.group_batching import Joint
from pgdpo.guards.bad_steps import Guard, sound_pairs, without_stand_ins
from pgdpo.guards.beta import BetaWatch, own_logits
from pgdpo.guards.common_rise import CommonRise
from pgdpo.guards.watch import Watch
from pgdpo.objectives import ObjectiveOutput, PairInfo
from pgdpo.reference import Comparison, Reference
from pgdpo.training.metrics import (
    StepMetrics,
    as_pairs,
    finite_only,
    margins_of,
    sample_metrics,
    watch_gradients,
)
from pgdpo.training.noising import Sample, draw_sample
from pgdpo.training.steering.steering import Steering
from pgdpo.training.task.checks import segments_of
from pgdpo.training.task.info import pair_info
from pgdpo.training.task.task import Task
from pgdpo_kernels import GroupErrors, PairErrors

Errors = PairErrors | GroupErrors | dict[str, PairErrors | GroupErrors]


class Step:
    """A run's step, taken again and again; `done`: how many are. Of one that is broken off its state holds nothing."""

    def __init__(self, config: Config, task: Task, policy: Joint, reference: Reference, watch: Watch) -> None:
        self.config, self.policy, self.reference = config, policy, reference
        self.objective, self.segments = task.objective, task.segments
        self.guard = Guard(config, task.pairs, task.objective, policy.engine)
        self.steering = Steering(config, task.objective)
        watched = task.objective, config.run_dir, policy.ranks.data_group
        self.beta_watch, self.common_rise = BetaWatch(*watched), CommonRise(*watched)
        self.done = 0
        self._watch, self._sources = watch, task.pairs.sources
        self._micro_batches = task.micro_batches
        self._whole = dict(task.objective.state)  # the objective's, after the last whole step

    def take(self, loaded: Iterator[dict]) -> dict:
        """The next one, over its micro-batches of `loaded`. Returns what is logged of it.

        Raises Stopped on all ranks if one was signalled, InputError as `Guard.settle` and `check_objective` do.
        """
        train, device = self.config.train, self.policy.ranks.device
        rate = learning_rate(train, self.done - self.guard.skipped)
        set_learning_rate(self.policy.engine, rate)
        steered = self.steering.values()
        metrics = StepMetrics(device, self.policy.ranks.data_group, sources=self._sources)
        for _ in range(self._micro_batches):
            self._watch.signals.check()
            self._watch.at("reading the data of", self.done + 1)
            batch = next(loaded)
            self._watch.at("computing", self.done + 1)
            seed_torch(train.seed, batch["pair_ids"], batch["draw"])
            with self._watch.blocks():
                output, errors, info, sigma = self.group_loss(batch)
                self.guard.see(output, self.objective.joint(errors, info), batch)
                watch_gradients(errors)
                norm = self.policy.backward(output.loss)
            joint = self.objective.joint(errors, info)
            found = sample_metrics(errors, joint, output, info, self.policy.family.streams)
            metrics.add(*found, sigma, sound_pairs(batch, device), batch["rows"])
            logits = own_logits(output, self.policy.family.streams)
            self.beta_watch.add(logits, margins_of(*found))
            self.common_rise.add(output, as_pairs(joint, info))
        fault = self.guard.settle(self.done)
        values = metrics.reduce() | {"gradient_norm": norm, "skipped_steps": self.guard.skipped}
        if fault is None:
            self.reference.follow(self.done + 1)
        else:
            self.objective.load_state_dict(self._whole)
            values |= {"fault": fault.reason, "fault_pairs": fault.pairs, "fault_shares": fault.shares}
        self._whole = dict(self.objective.state)
        if train.deterministic:
            check_objective(self.objective)
        self.done += 1
        return finite_only(values) | {"learning_rate": rate, **steered}

    def group_loss(self, batch: dict) -> tuple[ObjectiveOutput, Errors, PairInfo, torch.Tensor]:
        """One micro-batch, as in Diffusion-DPO (arXiv 2311.12908, eq. 14): a group shares its noise and timestep.

            L = -E log sigmoid(-beta / 2 [(E_policy(x_w) - E_ref(x_w)) - (E_policy(x_l) - E_ref(x_l))]),
            E_m(x) = mean (m(x_t, t) - target)^2,  t and noise drawn once for chosen x_w and rejected x_l

        is `dpo` of pairs; another objective makes its own loss of the same errors.
        Returns (the objective's output, the errors, of several streams by name, what the data say of the groups,
        sigma `[B]`).
        """
        sample, compare, pred = self._predicted(batch)
        segments = segments_of(self.segments, sample.latents)
        compared = compare(pred, sample.target, segments=segments, mask=sample.mask, groups=batch["groups"])
        pairs = pair_info(batch, sample, self.policy.family)
        if "masked" in self.objective.needs.pairs:
            pairs = replace(pairs, masked=compare(pred, sample.target, mask=sample.region).errors())
        pairs = without_stand_ins(pairs, batch, self.policy.ranks.device)
        if self.objective.fused and batch["groups"] is None and isinstance(pred, torch.Tensor):
            output, errors = self.objective.from_predictions(compared, pairs)
            self.guard.see_untrained(errors, pairs)
        else:
            errors = compared.errors(cross=self.objective.needs_cross)
            self.guard.see_untrained(errors, pairs)
            output = self.objective(errors, pairs)
        return output, errors, pairs, sample.sigma

    def margin_gradient(self, loaded: Iterator[dict]) -> float:
        """A backward pass of the mean margin over one step's micro-batches of `loaded`, and DeepSpeed's step.

        Of the margin times omega, where there is one: that is what beta multiplies.
        For an optimizer that only looks on. Returns the gradient's norm before clipping.
        """
        for _ in range(self._micro_batches):
            self._watch.signals.check()
            batch = next(loaded)
            seed_torch(self.config.train.seed, batch["pair_ids"], batch["draw"])
            with self._watch.blocks():
                sample, compare, pred = self._predicted(batch)
                errors = compare(pred, sample.target, mask=sample.mask, groups=batch["groups"]).errors()
                info = pair_info(batch, sample, self.policy.family)
                errors = self.objective.joint(errors, info)
                pairs, omega = as_pairs(errors, info), info.timestep_weight
                margin = (pairs.excess_rejected - pairs.excess_chosen)[:, 0]
                norm = self.policy.backward((margin if omega is None else omega * margin).mean())
        return norm

    def _predicted(self, batch: dict) -> tuple[Sample, Comparison, Latents]:
        """A micro-batch with its noise, what a prediction of it is compared with, and the policy's."""
        cached = self.config.reference_mode == "cached"
        family, device = self.policy.family, self.policy.ranks.device
        sample = draw_sample(batch, self.config, family, device, cached=cached)
        if self.config.diffusion.inversion_steps is not None:
            sample = self._inverted(sample)
        where = sample.noisy, sample.each, sample.conditioning
        compare = self.reference.comparison(*where, batch)
        return sample, compare, self.policy(*where)

    def _inverted(self, sample: Sample) -> Sample:
        """The sample with the noise that policy or reference finds for it, in place of drawn noise."""
        by_reference = self.objective.options.get("inverted_by") == "reference"
        # By default the policy, as in DDIM-InPO's public code.
        model = self.reference.predict if by_reference else self.policy
        dtype = sample.noisy.dtype
        noisy, target = invert(
            lambda noisy, level: model(noisy.to(dtype), level, sample.conditioning),
            sample.latents,
            sample.each,
            steps=self.config.diffusion.inversion_steps,
        )
        return replace(sample, noisy=noisy.to(dtype), target=target)

    def state_dict(self) -> dict:
        """What a checkpoint holds of it beside tensors."""
        whole = {key: float(value) for key, value in self._whole.items()}
        parts = {"guard": self.guard, "steering": self.steering}
        return {"objective_state": whole, **{name: part.state_dict() for name, part in parts.items()}}

    def load_objective(self, state: dict) -> None:
        """Put of a `state_dict` back what belongs to the weights: the objective's state, and how it is steered."""
        self.objective.load_state_dict(state["objective_state"])
        self._whole = dict(state["objective_state"])
        self.steering.load_state_dict(state.get("steering", {}))
