"""`pgdpo evaluate` of a run of both experts: each one's errors on its share of the noise, and clips sampled with both.

The reference is the model without both: where the reference's clips are sampled the other expert is the one that it
began as, where the aligned model's are, the one that was trained.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.resume import versions
from pgdpo.checkpoints.runs import Both, Run
from pgdpo.config.evaluate import NO_HELD_OUT
from pgdpo.data.prepared import PreparedPairs
from pgdpo.engine.policy import start_ranks
from pgdpo.evaluation.errors import Errors, compared
from pgdpo.evaluation.evaluate import (
    Step,
    beta_at,
    check_results,
    decides,
    machine,
    objective_table,
    settings_of,
    watched,
)
from pgdpo.evaluation.models import WHICH, Models
from pgdpo.evaluation.rewards import open_reward, try_reward
from pgdpo.evaluation.samples import Samples, stored
from pgdpo.files.atomic import write_json
from pgdpo.messages.console import is_main_rank
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.guidance import negative_branch
from pgdpo.sampling import Parts, Sampler
from pgdpo.sampling.clips import Job
from pgdpo.training.opening import open_pairs, require_images


def evaluate_both(*runs: Both) -> dict:
    """As `evaluate`, of a run of both experts. `results.json` has what holds of both, over all noise levels, and under
    `experts` what holds of each on its own share of them."""
    last = runs[-1]
    config = last.config
    if config.data.held_out is None:
        raise InputError(NO_HELD_OUT)
    check_results(last)
    reward = open_reward(config.evaluate.reward)
    device = start_ranks(config, clips=True)
    data = open_pairs(config, "held_out")
    try_reward(config, data.rows[0]["prompt"])
    family = open_family(config.model)
    require_images(data, family)
    sampler = Sampler(config, family, data, device)
    work = last.out / "evaluations"
    parts = Parts(work / ".unfinished", {name: decides(run, data) for name, run in last.experts.items()})
    if config.evaluate.reward != "toy":
        parts.drop("*/scores-*.json")  # the function may be another than when they were made
    samples = Samples(sampler, parts, reward)
    results, made = {}, [parts]
    for both in runs:
        started = time.perf_counter()
        steps = {name: _step(run, data, work, device) for name, run in both.experts.items()}
        made += [step.parts for step in steps.values()]
        with watched(parts.folder, both):
            for step in steps.values():
                step.compute()
            whose = _Clips(both, steps, samples, parts).make()
        if is_main_rank():
            results = _results(both, steps, samples, whose, data, started)
    for each in made:
        each.remove()
    return results


def _step(run: Run, data: PreparedPairs, work: Path, device: torch.device) -> Step:
    """One expert's errors, on the noise levels that it answers at."""
    parts = Parts(work / f".unfinished-{run.config.expert}", decides(run, data))
    errors = Errors(run.config, open_family(run.config.model), data, device)
    return Step(run, Models(run, device), parts, errors)


@dataclass
class _Clips:
    """The clips of one step: of the models as they began, and of both as they were trained."""

    both: Both
    steps: dict[str, Step]
    samples: Samples
    parts: Parts

    def make(self) -> dict[str, str]:
        """Sample, decode and score what is missing. Returns the folders of the two models' parts, by WHICH."""
        aligned = f"step-{self.both.step:08d}-{self.both.identity['checkpoint_hash']}"
        whose = dict(zip(WHICH, ("reference", aligned), strict=True))
        for which, who in whose.items():
            latents = self.samples.latents(who)
            if self.parts.missing(list(latents)):
                self._sample(which, latents)
        for which, who in whose.items():
            self.samples.score(who, f"decode and score, {which}")
        return whose

    def _sample(self, which: str, latents: dict[str, list[Job]]) -> None:
        """All that is missing of one model's: both of its experts are in memory."""
        high, low = (step.models for step in self.steps.values())
        sampler = self.samples.sampler
        with high.opened(which) as first, low.opened(which) as second:
            sampler.family.experts.open_other = lambda: second
            guided = {"positive": high.positive} if which == "aligned" else {}

            def sample(jobs: list[Job]) -> dict[str, torch.Tensor]:
                with self._guided(which, second, low, len(jobs)):
                    return stored(sampler.sample(first, jobs, **guided))

            self.parts.make(f"clips, {which}", latents, sample, in_step=high.in_step)
            sampler.family.release()
            sampler.family.experts.open_other = None
        for models in (high, low):
            models.release()

    def _guided(
        self, which: str, transformer: torch.nn.Module, models: Models, count: int
    ) -> AbstractContextManager[None]:
        """Around the low-noise expert what the sampler puts around the one that it is given."""
        if which == "aligned" and self.both.config.trains_negative_branch:
            return negative_branch(transformer, models.positive, count)
        return contextlib.nullcontext()


def _results(
    both: Both,
    steps: dict[str, Step],
    samples: Samples,
    whose: dict[str, str],
    data: PreparedPairs,
    started: float,
) -> dict:
    """Write a step's results and clips down."""
    config = both.config
    excess = {name: step.excess() for name, step in steps.items()}
    first, second = excess.values()
    betas = {beta_at(run) for run in both.parts}
    results = {
        "objective": config.objective["name"],
        "run": both.folder.name,
        "beta": betas.pop() if len(betas) == 1 else None,
        "checkpoint": ", ".join(str(run.checkpoint.relative_to(both.folder)) for run in both.parts),
        **both.identity,
        "steps": both.step,
        "settings": settings_of(config, data, samples.sampler.how),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "ranks": dist.get_world_size(),
        "versions": versions(),
        **compared(first + second, data),
        "experts": {
            name: {"steps": run.step, "beta": beta_at(run), **compared(excess[name], data)}
            for name, run in both.experts.items()
        },
        **samples.publish(both, whose),
    }
    results["seconds"] = round(time.perf_counter() - started, 1)
    results["objectives"] = objective_table(config.output_dir, results)
    write_json(both.evaluation / "results.json", results)
    write_json(both.out / "results.json", results)
    return results
