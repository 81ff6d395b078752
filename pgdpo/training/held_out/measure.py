"""A look at held-out pairs: the policy's errors at fixed draws, against those of the model that the run began with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs, pair_hash
from pgdpo.data.visits.loading import collate
from pgdpo.engine.group_batching import Joint
from pgdpo.guards.signals import StopSignals
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved, stage
from pgdpo.objectives import Objective, PairInfo, build_objective
from pgdpo.objectives.advice import SATURATED
from pgdpo.objectives.parts import oriented
from pgdpo.ranks.agreement import gather
from pgdpo.reference import Forward
from pgdpo.reference.cached import compared_with, frame_sums
from pgdpo.rows.ranked import ranks_of
from pgdpo.rows.schema import SAMPLES
from pgdpo.sampling import share_of
from pgdpo.training.held_out.figures import Numbers
from pgdpo.training.metrics import as_pairs, saturation_of
from pgdpo.training.noising import Sample, held_out_level, sample_at
from pgdpo.training.task.checks import check_rows, frame_segments, segments_of
from pgdpo.training.task.info import pair_info
from pgdpo_kernels import GroupErrors, PairErrors

Errors = PairErrors | GroupErrors | dict[str, PairErrors | GroupErrors]
T = TypeVar("T")
Sums = list[torch.Tensor]  # of each batch fp64 [B, K, F], `frame_sums` of its groups


class Measure:
    """`count` of the held-out pairs at `evaluate.draws_per_pair` noise levels, in batches that never change.

    Of a group its best sample stands against its worst; single clips and equally good ones are not measured.

    A batch is computed by one rank, or by those that share its tokens, and what it gives hangs on no other: the figures
    are the same on any number of ranks. `objective`: the run's, with what is changed of it on the way, which the
    logits are of; the loss is that of the objective as it is configured, so that steps compare.
    """

    def __init__(
        self, config: Config, policy: Joint, data: PreparedPairs, count: int, objective: Objective
    ) -> None:
        self._config, self._policy, self._data = config, policy, data
        self._ranks, self._family = policy.ranks, policy.family
        self._parts = policy.family.streams if len(policy.family.streams) > 1 else ()
        # Weights that are sharded, or tokens that are shared, want all ranks in every forward.
        self._in_step = config.train.zero_stage == 3 or self._ranks.degree > 1
        # By their hashes: a manifest may be sorted.
        indexes = sorted(measurable(data), key=lambda index: pair_hash(data.rows[index]["id"]))[:count]
        self._places = {index: place for place, index in enumerate(indexes)}
        self._levels = [
            held_out_level(config, self._family, d) for d in range(config.evaluate.draws_per_pair)
        ]
        self._batches = [
            batch
            for draw in range(len(self._levels))
            for batch in data.batches([(index, draw) for index in indexes], config.train.micro_batch_groups)
        ]
        self._now = replace(objective, process_group=None)  # its options and its state are the run's
        self._configured = build_objective(
            config.objective["name"],
            seed=config.train.seed,
            parts=config.objective.get("parts"),
            **config.objective_options,
        )
        self._configured.state = objective.state
        self.no_loss = _why_no_loss(objective, config, data)
        self._segments = None if self.no_loss else frame_segments(objective, config, data)

    @property
    def key(self) -> dict:
        """All that decides which errors `sums` gives, but for the weights."""
        return {
            "pairs": [self._data.rows[index]["id"] for index in self._places],
            "held out": self._data.fingerprint,
            "levels": self._levels,
            "seed": self._config.evaluate.seed,
            "batch": self._config.train.micro_batch_groups,
        }

    def sums(self, forward: Forward, signals: StopSignals) -> Sums:
        """Those of a model, on every rank; raises Stopped on all ranks if one was signalled."""

        def of(number: int) -> torch.Tensor:
            sample, batch = self._sample(number)
            pred = forward(sample.noisy, sample.each, sample.conditioning)
            return frame_sums(pred, sample.target, sample.mask, size=batch["groups"] or 2).cpu()

        return self._of_all(of, signals)

    def numbers(self, baseline: Sums, signals: StopSignals) -> Numbers:
        """Those of the policy against a model's `sums`, on every rank; raises as `sums`."""

        def of(number: int) -> list[list[float]]:
            sample, batch = self._sample(number)
            pred = self._policy(sample.noisy, sample.each, sample.conditioning)
            sums = baseline[number].to(sample.sigma.device)
            segments = None if self._segments is None else segments_of(self._segments, sample.latents)
            where = {"segments": segments, "mask": sample.mask, "groups": batch["groups"]}
            compared = compared_with(sums, pred, sample.target, **where)
            errors = compared.errors(cross=self._now.needs_cross)
            return self._judged(errors, batch, sample)

        return self._arranged(self._of_all(of, signals))

    def _of_all(self, of: Callable[[int], T], signals: StopSignals) -> list[T]:
        """What `of` gives for every batch, on every rank; computed in evaluation mode, without gradients."""
        found, ranks, numbers = {}, self._ranks, range(len(self._batches))
        tells = dist.get_rank() % ranks.degree == 0  # of those that share its tokens, one
        stoppable = signals.in_step() if self._in_step else signals.apart()
        with stoppable, evaluating(self._policy.engine.module):
            for number, own in share_of(numbers, ranks.data_rank, ranks.data_size, in_step=self._in_step):
                moved(f"held-out batch {number + 1} of {len(numbers)}")
                values = of(number)
                if own and tells:
                    found[number] = values
        stage("held-out pairs, waiting for other ranks")
        everyone = {number: values for each in gather(found) for number, values in each.items()}
        return [everyone[number] for number in numbers]

    def _sample(self, number: int) -> tuple[Sample, dict]:
        items = self._batches[number]
        batch = collate([self._data[item] for item in items])
        level = self._levels[items[0][1]]
        return sample_at(batch, level, self._config, self._family, self._ranks.device), batch

    def _judged(self, errors: Errors, batch: dict, sample: Sample) -> list[list[float]]:
        """Of each pair, or group: excess of chosen and rejected, saturation, loss; then of each of several parts, of
        which NaN stands for none, whether it counts, and its excess of both."""
        info = pair_info(batch, sample, self._family)
        chosen, rejected = _excess(self._now.joint(errors, info), info)
        if self.no_loss:
            logits = 0.5 * self._now.options.get("beta", torch.nan) * (rejected - chosen)
            logits = logits if sample.timestep_weight is None else sample.timestep_weight * logits
            saturated, losses = (logits.abs() > SATURATED).float(), torch.full_like(logits, torch.nan)
        else:
            now, losses = self._now(errors, info), self._configured(errors, info).per_group
            logits, saturated = now.logits, saturation_of(now)
        columns = [chosen, rejected, saturated.where(logits.isfinite(), torch.nan), losses]
        own = oriented(errors, info) if self._parts else {}
        for name in self._parts:
            counts = torch.full_like(chosen, name in own)
            if name in own and info.parts and name in info.parts:
                counts = info.parts[name].ne(0).to(chosen)
            columns += [counts, *(_excess(own[name], info) if name in own else [counts * torch.nan] * 2)]
        return torch.stack(columns, 1).double().tolist()

    def _arranged(self, found: list[list[list[float]]]) -> Numbers:
        width = 4 + 3 * len(self._parts)
        values = np.full((len(self._places), len(self._levels), width), np.nan)
        for items, rows in zip(self._batches, found, strict=True):
            for (index, draw), row in zip(items, rows, strict=True):
                values[self._places[index], draw] = row
        chosen, rejected, saturated, losses, *columns = np.moveaxis(values, 2, 0)
        parts = {}
        for name, counts, *sides in zip(self._parts, columns[::3], columns[1::3], columns[2::3], strict=True):
            has = counts[:, 0] > 0  # at one level as at all
            parts[name] = sides[0][has], sides[1][has]
        return Numbers(self._levels, chosen, rejected, saturated, None if self.no_loss else losses, parts)


def _excess(errors: PairErrors | GroupErrors, info: PairInfo) -> tuple[torch.Tensor, torch.Tensor]:
    """Of chosen and rejected whole samples, `[B]` each."""
    whole = as_pairs(errors, info).over_segments()
    return whole.excess_chosen[:, 0], whole.excess_rejected[:, 0]


def measurable(data: PreparedPairs) -> list[int]:
    """Indexes of what has a margin: all but single clips, and groups whose samples are equally good."""
    return [
        index
        for index, row in enumerate(data.rows)
        if row.get(SAMPLES) is None or any(ranks_of(row[SAMPLES]))
    ]


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the mode from before is there again afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _why_no_loss(objective: Objective, config: Config, data: PreparedPairs) -> str | None:
    """In words, why an objective's loss cannot be made of held-out pairs' errors; None where it can."""
    needs = objective.needs
    if needs.predictions or "masked" in needs.pairs:
        return f"objective `{objective.name}` compares more than errors of whole clips"
    if config.diffusion.inversion_steps is not None:
        return "diffusion.inversion_steps makes the noise that it is of"
    try:
        check_rows(objective.name, needs, data)
        if data.kind == "group":
            for size in data.group_sizes:
                objective.check_groups(max(size, 2))
    except InputError as error:
        return str(error)
    return None
