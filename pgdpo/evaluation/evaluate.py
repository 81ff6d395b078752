"""Reference against aligned model: clips at equal seeds on held-out prompts, errors on held-out pairs."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.resume import versions
from pgdpo.checkpoints.runs import Both, Run
from pgdpo.config import Config, SampleSettings
from pgdpo.config.evaluate import NO_HELD_OUT
from pgdpo.data.prepared import PreparedPairs
from pgdpo.engine.engine import forward_config
from pgdpo.engine.policy import start_ranks
from pgdpo.engine.zero.load import share_expert
from pgdpo.evaluation.errors import Errors, Excess, compared, displacement_by_part, margins
from pgdpo.evaluation.models import Models
from pgdpo.evaluation.rewards import open_reward, try_reward
from pgdpo.evaluation.samples import Samples, stored
from pgdpo.files.atomic import write_json
from pgdpo.guards.signals import StopSignals
from pgdpo.guards.watchdog import Watchdog
from pgdpo.messages.console import is_main_rank
from pgdpo.messages.errors import INTERRUPTED, InputError, Stopped
from pgdpo.models import open_family
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.objectives import build_objective
from pgdpo.sampling import Parts, Sampler
from pgdpo.training.opening import open_pairs, require_images

KEPT = "what is finished is kept: start the same command again"


def evaluate(*runs: Run) -> dict:
    """Compare a run's checkpoints with the reference; writes `results.json` and clips of each to its `run.evaluation`.

    `runs`: the run at one or more steps. All ranks call it; they share the batches of clips and pairs, and what they
    make is the same on any number of them. What is finished is kept in `evaluations/.unfinished` until the last step's
    results are written: stopped, it goes on from there. The results stand in `run.out / "results.json"` too: those of
    the step that was evaluated last, which are returned, on the main rank. Raises InputError if there is no held-out
    split, or no reward where one is named.
    """
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
    sampler = Sampler(config, family, data, device)
    require_images(data, family)
    models = [Models(run, device) for run in runs]
    if models[-1].in_step:
        share_expert(family, dtype=compute_dtype(config), device=device, deepspeed_config=forward_config())
    parts = Parts(last.out / "evaluations" / ".unfinished", decides(last, data))
    if config.evaluate.reward != "toy":
        parts.drop("*/scores-*.json")  # the function may be another than when they were made
    samples = Samples(sampler, parts, reward)
    errors = Errors(config, family, data, device)
    results = {}
    for run, pair in zip(runs, models, strict=True):
        started = time.perf_counter()
        step = Step(run, pair, parts, errors, samples)
        with watched(parts.folder, run):
            step.compute()
        if is_main_rank():
            results = _results(step, data, sampler.how, started)
    parts.remove()
    return results


@dataclass
class Step:
    """One checkpoint's evaluation."""

    run: Run
    models: Models
    parts: Parts
    errors: Errors
    samples: Samples | None = None

    @property
    def whose(self) -> dict[str, str]:
        """The folders of the two models' parts; the reference's serves all steps."""
        aligned = f"step-{self.run.step:08d}-{self.run.identity['checkpoint_hash']}"
        return {"reference": "reference", "aligned": aligned}

    def compute(self) -> None:
        """Each model's errors and clips, the reference first; then, with neither in memory, what the clips score."""
        for which, who in self.whose.items():
            self._of_model(which, who, f"{which}, step {self.run.step}" if which == "aligned" else which)
        self.models.release()
        if self.samples is not None:
            self.samples.sampler.family.release()
            for which, who in self.whose.items():
                self.samples.score(who, f"decode and score, {which}")

    def _of_model(self, which: str, who: str, said: str) -> None:
        errors = {f"{who}/{name}": items for name, items in self.errors.batches.items()}
        latents = {} if self.samples is None else self.samples.latents(who)
        if not self.parts.missing([*errors, *latents]):
            return
        with self.models.opened(which) as model:
            in_step = self.models.in_step
            self.parts.make(
                f"errors, {said}", errors, lambda items: self.errors.of(model, items), in_step=in_step
            )
            if self.samples is not None:
                sample, positive = self.samples.sampler.sample, self.models.positive
                guided = {"positive": positive} if which == "aligned" else {}
                self.parts.make(
                    f"clips, {said}",
                    latents,
                    lambda jobs: stored(sample(model, jobs, **guided)),
                    in_step=in_step,
                )

    def excess(self) -> Excess:
        """As `Errors.excess`."""
        read = {
            which: {name: self.parts.read(f"{who}/{name}") for name in self.errors.batches}
            for which, who in self.whose.items()
        }
        return self.errors.excess(**read)


def _results(step: Step, data: PreparedPairs, sampling: dict[str, SampleSettings], started: float) -> dict:
    """Write a step's results and clips down."""
    run, config = step.run, step.run.config
    results = {
        "objective": config.objective["name"],
        "run": run.folder.name,
        "beta": beta_at(run),
        "checkpoint": str(run.checkpoint.relative_to(run.folder)),
        **run.identity,
        "steps": run.state["step"],
        "settings": settings_of(config, data, sampling),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "ranks": dist.get_world_size(),
        "versions": versions(),
        **compared(step.excess(), data),
        **step.samples.publish(run, step.whose),
    }
    results["seconds"] = round(time.perf_counter() - started, 1)
    results["objectives"] = objective_table(config.output_dir, results)
    write_json(run.evaluation / "results.json", results)
    write_json(run.out / "results.json", results)
    return results


def beta_at(run: Run) -> float | None:
    """The objective's, which a steered run may have changed by this step; None of one without."""
    steered = run.state.get("steering", {}).get("options", {})
    config = run.config
    options = build_objective(config.objective["name"], **config.objective_options).options
    return steered.get("beta", options.get("beta"))


@contextlib.contextmanager
def watched(folder: Path, run: Run | Both) -> Iterator[None]:
    """Where ranks share the work, one that fails, dies or stands still ends all of them, and is named."""
    with contextlib.ExitStack() as stack:
        if dist.get_world_size() > 1:
            seconds = run.config.train.watchdog_seconds
            watchdog = stack.enter_context(Watchdog(folder, seconds, StopSignals()))
            watchdog.stage(f"evaluating step {run.step}")
        try:
            yield
        except KeyboardInterrupt as error:
            raise Stopped(f"Ctrl-C: {KEPT}", INTERRUPTED) from error


def check_results(run: Run | Both) -> None:
    """Raises InputError where a folder that was named holds another run's results."""
    found = read_results(run.out / "results.json")
    if found is not None and run.out != run.folder and found.get("began") != run.identity["began"]:
        raise InputError(
            f"--out is {run.out}: it holds results of the run {found.get('run')}: name another folder"
        )


def decides(run: Run, data: PreparedPairs) -> dict:
    """All that decides what a model's parts hold, but for the checkpoint."""
    config = run.config
    return {
        **run.state["identity"],
        **config.model_dump(mode="json", include={"model", "diffusion", "evaluate"}),
        "train": {"precision": config.train.precision, "seed": config.train.seed},
        "negative branch": config.trains_negative_branch,
        "held out": data.fingerprint,
        "fps": config.written_fps,
        "machine": machine(),
        "versions": versions(),
    }


def settings_of(config: Config, data: PreparedPairs, sampling: dict[str, SampleSettings]) -> dict:
    """What results must share to be compared: how clips of each size were sampled, how scored, the held-out pairs."""
    shown = {"report_pairs", "report_clips", "report_megabytes", "fps", "batch"}
    shown |= {"every", "every_pairs", "every_prompts"}
    resolved = {"sampling_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "negative_prompt"}
    return {
        **config.evaluate.model_dump(mode="json", exclude=shown | resolved),
        "sampling": {size: asdict(how) for size, how in sampling.items()},
        "held_out": data.fingerprint,
    }


def implicit_rewards(run: Run) -> dict:
    """Implicit reward margin of every training pair under a run's checkpoint; writes `implicit_rewards.json`.

    Returns `{"checkpoint", "data", "margin": {pair id: mean over draws_per_pair noise levels}}`: what
    `data.order: {by: implicit_reward}` reads.
    """
    config = run.config
    device = start_ranks(config, clips=True)
    data = open_pairs(config, "train", compare=False)  # `curate` did
    family = open_family(config.model)
    require_images(data, family)
    parts = Parts(run.out / ".implicit_rewards", decides(run, data))
    step = Step(run, Models(run, device), parts, Errors(config, family, data, device))
    with watched(parts.folder, run):
        step.compute()
    found = {
        "checkpoint": run.checkpoint.name,
        "data": data.fingerprint,
        "margin": margins(step.excess()),
    }
    if is_main_rank():
        write_json(run.out / "implicit_rewards.json", found)
    parts.remove()
    return found


def objective_table(output_dir: Path, current: dict) -> list[dict]:
    """One row for every run in `output_dir` that was evaluated, `current` among them; `alike`: in the same settings;
    `parts`: of samples of several parts each one's displacement."""
    shown = ("run", "objective", "beta", "steps", "win_rate", "displacement", "reward")
    found = {current["run"]: current}
    for path in sorted(output_dir.glob("*/results.json")):
        other = read_results(path)
        if other is not None:
            found.setdefault(path.parent.name, other)
    return [
        {
            **{name: each.get(name) for name in shown},
            "alike": each.get("settings") == current["settings"],
            **displacement_by_part(each),
        }
        for _, each in sorted(found.items())
    ]


def machine() -> str:
    """What a figure was measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {memory:.0f} GiB, no GPU"
