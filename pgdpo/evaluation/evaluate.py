"""Reference against aligned model: clips at equal seeds on held-out prompts, errors on held-out pairs."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from pgdpo.console import progress_bar, say
from pgdpo.data.files import write_json
from pgdpo.data.prepared import PreparedPairs, collate, to_device, twice
from pgdpo.data.schema import MANIFEST
from pgdpo.data.video import write_video
from pgdpo.diffusion.draws import sigma_at
from pgdpo.errors import InputError
from pgdpo.evaluation.rewards import Reward, open_reward, try_reward
from pgdpo.evaluation.statistics import share
from pgdpo.models import open_family
from pgdpo.models.adapter import NAME, REFERENCE, add_reference_adapter, start_from
from pgdpo.models.family import Family
from pgdpo.models.guidance import negative_branch
from pgdpo.models.kept import compute_dtype
from pgdpo.models.lora_file import open_lora
from pgdpo.objectives import build_objective
from pgdpo.runs import Run, read_results
from pgdpo.settings import Config, SampleSettings
from pgdpo.settings.evaluate import NO_HELD_OUT
from pgdpo.training.export import load_trained
from pgdpo.training.metrics import BUCKETS, bucket_name
from pgdpo.training.policy import build_policy, check_init, open_pairs, require_images
from pgdpo.training.validation import how_sampled, sample_latents
from pgdpo_kernels import noise_pair, pair_errors

REPORT_SIDE = 192  # pixels; smaller clips are enlarged by whole factors


def evaluate(run: Run, *, samples: dict | None = None) -> dict:
    """Compare a run's checkpoint with the reference; writes its `results.json` and clips to `run.evaluation`.

    The results stand in `run.out / "results.json"` too: those of the step that was evaluated last. `samples`: a dict
    that keeps the reference's clips from one step of a run to the next. Returns the results. Raises InputError if there
    is no held-out split, or no reward where one is named.
    """
    config = run.config
    if config.data.held_out is None:
        raise InputError(NO_HELD_OUT)
    _check_results(run)
    reward = open_reward(config.evaluate.reward)
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = open_pairs(config, "held_out", compare=not samples)  # once for all steps
    if not samples:
        try_reward(config, data.rows[0]["prompt"])
    sampling = how_sampled(config, open_family(config.model), data)
    family, aligned = load_trained(run, device)
    require_images(data, family)
    pair = ModelPair(run, family, aligned, device)
    results = {
        "objective": config.objective["name"],
        "run": run.folder.name,
        "beta": build_objective(config.objective["name"], **config.objective_options).options.get("beta"),
        "checkpoint": str(run.checkpoint.relative_to(run.folder)),
        **run.identity,
        "steps": run.state["step"],
        "settings": settings_of(config, data, sampling),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **compare_errors(config, data, pair),
        **compare_samples(run, data, pair, reward, {} if samples is None else samples),
    }
    results["seconds"] = round(time.perf_counter() - started, 1)
    results["objectives"] = objective_table(config.output_dir, results)
    _publish_clips(run)
    write_json(run.evaluation / "results.json", results)
    write_json(run.out / "results.json", results)
    return results


def _check_results(run: Run) -> None:
    """Raises InputError where a folder that was named holds another run's results."""
    found = read_results(run.out / "results.json")
    if found is not None and run.out != run.folder and found.get("began") != run.identity["began"]:
        raise InputError(
            f"--out is {run.out}: it holds results of the run {found.get('run')}: name another folder"
        )


def _publish_clips(run: Run) -> None:
    """Put what was sampled in place of an earlier evaluation's clips, which its results need until then."""
    shutil.rmtree(run.evaluation / "clips", ignore_errors=True)
    os.rename(_sampled(run), run.evaluation / "clips")


def _sampled(run: Run) -> Path:
    return run.evaluation / ".clips"


def settings_of(config: Config, data: PreparedPairs, sampling: dict[str, SampleSettings]) -> dict:
    """What results must share to be compared: how clips of each size were sampled, how scored, the held-out pairs."""
    shown = {"report_pairs", "report_clips", "every", "every_prompts", "fps", "batch"}
    resolved = {"sampling_steps", "guidance_scale", "guidance_scale_2", "flow_shift", "negative_prompt"}
    return {
        **config.evaluate.model_dump(mode="json", exclude=shown | resolved),
        "sampling": {size: asdict(how) for size, how in sampling.items()},
        "held_out": data.fingerprint,
    }


class ModelPair:
    """The aligned model and its reference, behind one context manager."""

    def __init__(self, run: Run, family: Family, aligned: torch.nn.Module, device: torch.device) -> None:
        """Raises InputError if the LoRA that the run started from, as its reference, is not at `model.adapter.init`."""
        config, adapter = run.config, run.config.model.adapter
        self.family = family
        self.device = device
        self.aligned = aligned
        self.base = None if adapter else build_policy(config, device)[1].eval()
        self.dtype = compute_dtype(config)
        self._at_init = adapter is not None and adapter.reference_starts_at_init
        if self._at_init:
            check_init(config, run.state["identity"])
            add_reference_adapter(aligned, identity=True)
            start_from(aligned, open_lora(family, adapter), adapter, REFERENCE)

    @contextlib.contextmanager
    def model(self, which: str) -> Iterator[torch.nn.Module]:
        """`which`: "reference" or "aligned"."""
        switched = which == "reference" and self.base is None
        if switched:
            self._switch(reference=True)
        try:
            half = self.dtype == torch.bfloat16
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                yield self.base if which == "reference" and self.base is not None else self.aligned
        finally:
            if switched:
                self._switch(reference=False)

    def _switch(self, *, reference: bool) -> None:
        """The aligned model's adapter: its own, or the reference's (none, or the one that the run started from)."""
        if self._at_init:
            self.aligned.set_adapter(REFERENCE if reference else NAME)
        elif reference:
            self.aligned.disable_adapters()
        else:
            self.aligned.enable_adapters()


def compare_errors(config: Config, data: PreparedPairs, pair: ModelPair) -> dict:
    """Excess errors of held-out pairs at `draws_per_pair` noise levels spread evenly over the training distribution."""
    excess = excess_errors(config, data, pair)
    return {
        "displacement": _displacement(excess, by="pair"),
        "buckets": _by_bucket(excess),
        **({"sources": _by_source(excess, data)} if data.sources else {}),
    }


def implicit_rewards(run: Run) -> dict:
    """Implicit reward margin of every training pair under a run's checkpoint; writes `implicit_rewards.json`.

    Returns `{"checkpoint", "data", "margin": {pair id: mean over draws_per_pair noise levels}}`: what
    `data.order: {by: implicit_reward}` reads.
    """
    config = run.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = open_pairs(config, "train", compare=False)  # `curate` did
    family, aligned = load_trained(run, device)
    require_images(data, family)
    excess = excess_errors(config, data, ModelPair(run, family, aligned, device))
    margins: dict[str, list[float]] = defaultdict(list)
    for name, chosen, rejected in zip(excess["pair"], excess["chosen"], excess["rejected"], strict=True):
        margins[name].append(rejected - chosen)
    found = {
        "checkpoint": run.checkpoint.name,
        "data": data.fingerprint,
        "margin": {name: sum(values) / len(values) for name, values in margins.items()},
    }
    write_json(run.out / "implicit_rewards.json", found)
    return found


def excess_errors(config: Config, data: PreparedPairs, pair: ModelPair) -> dict[str, list]:
    """Lists `pair`, `sigma`, `chosen`, `rejected` with one entry per draw and pair."""
    settings = config.evaluate
    excess: dict[str, list] = defaultdict(list)
    with progress_bar("excess errors", total=settings.draws_per_pair * len(data)) as bar:
        for draw in range(settings.draws_per_pair):
            quantile = (draw + 0.5) / settings.draws_per_pair
            level = sigma_at(config.diffusion, quantile, pair.family.sigma_range)
            for items in data.batches([(i, draw) for i in range(len(data))], settings.batch):
                batch = collate([data[item] for item in items])
                errors = _errors(batch, level, settings.seed, pair)
                excess["pair"] += batch["ids"]
                excess["sigma"] += [level] * len(batch["ids"])
                excess["chosen"] += errors.excess_chosen[:, 0].tolist()
                excess["rejected"] += errors.excess_rejected[:, 0].tolist()
                bar.advance(len(batch["ids"]))
    return excess


def _errors(batch: dict, level: float, seed: int, pair: ModelPair):
    latents = to_device({"latents": batch["latents"]}, pair.device)["latents"]
    conditioning = twice(to_device(pair.family.trimmed(batch["conditioning"]), pair.device))
    sigma = torch.full((len(batch["ids"]),), level, device=pair.device)
    keys = {"pair_ids": batch["pair_ids"].to(pair.device), "draw": batch["draw"].to(pair.device)}
    noisy, target = noise_pair(
        latents, pair.family.level(sigma), seed=seed, prediction=pair.family.prediction, **keys
    )
    predictions = {}
    for which in ("reference", "aligned"):
        with pair.model(which) as model:
            predictions[which] = pair.family.predict(
                model, noisy.to(pair.dtype), torch.cat([sigma, sigma]), conditioning
            )
    mask = pair.family.loss_mask(latents, conditioning)
    return pair_errors(predictions["aligned"], target, predictions["reference"], mask=mask)


def _displacement(excess: dict[str, list], by: str) -> dict:
    """Means per pair over its draws, then shares over pairs."""
    per_pair = defaultdict(list)
    for key, chosen, rejected in zip(excess[by], excess["chosen"], excess["rejected"], strict=True):
        per_pair[key].append((chosen, rejected))
    means = [
        tuple(sum(column) / len(column) for column in zip(*rows, strict=True)) for rows in per_pair.values()
    ]
    displaced = sum(chosen > 0 for chosen, _ in means)
    accurate = sum((rejected > chosen) + 0.5 * (rejected == chosen) for chosen, rejected in means)
    mean_chosen, mean_rejected = (sum(column) / len(means) for column in zip(*means, strict=True))
    return {
        **share(displaced, len(means)),
        "pairs": len(means),
        "excess/chosen": mean_chosen,
        "excess/rejected": mean_rejected,
        "margin": mean_rejected - mean_chosen,
        "implicit_accuracy": accurate / len(means),
    }


def _by_bucket(excess: dict[str, list]) -> dict:
    buckets = {}
    for number in range(BUCKETS):
        rows = [
            i for i, sigma in enumerate(excess["sigma"]) if min(int(sigma * BUCKETS), BUCKETS - 1) == number
        ]
        if rows:
            buckets[bucket_name(number)] = _part(excess, rows)
    return buckets


def _by_source(excess: dict[str, list], data: PreparedPairs) -> dict:
    """Of each manifest that has held-out pairs."""
    source = {row["id"]: row[MANIFEST] for row in data.rows}
    parts = {
        name: [i for i, pair in enumerate(excess["pair"]) if source[pair] == name] for name in data.sources
    }
    return {name: _part(excess, rows) for name, rows in parts.items() if rows}


def _part(excess: dict[str, list], rows: list[int]) -> dict:
    whole = _displacement({name: [values[i] for i in rows] for name, values in excess.items()}, by="pair")
    return {"displacement": whole.pop("value"), **whole}


def compare_samples(
    run: Run, data: PreparedPairs, pair: ModelPair, reward: Reward | None, kept: dict
) -> dict:
    """Clips of both models from the same noise on held-out prompts, scored by `reward`.

    `kept`: the reference's latents by (prompt, seed), filled in here.
    """
    config, settings = run.config, run.config.evaluate
    prompts = min(settings.num_prompts, len(data))
    if prompts < settings.num_prompts:
        say(
            f"evaluate.num_prompts is {settings.num_prompts}: {prompts} are sampled, one of each held-out pair"
        )
    jobs = [(i, k) for i in range(prompts) for k in range(settings.samples_per_prompt)]
    decoder = pair.family.load_encoders(pair.device)
    shutil.rmtree(_sampled(run), ignore_errors=True)
    _sampled(run).mkdir(parents=True)
    samples = []
    with progress_bar(f"sample both models, step {run.step}", total=2 * len(jobs)) as bar:
        for part in data.batches(jobs, settings.batch):
            if not kept.keys() >= set(part):
                kept.update(zip(part, _sample(config, data, part, "reference", pair).cpu(), strict=True))
            bar.advance(len(part))
            aligned = _sample(config, data, part, "aligned", pair).cpu()
            bar.advance(len(part))
            for (index, seed), latents in zip(part, aligned, strict=True):
                sample = {"prompt": data.rows[index]["prompt"], "seed": seed}
                shown = seed == 0 and index < settings.report_clips
                for which, clip in (("reference", kept[index, seed]), ("aligned", latents)):
                    frames = decoder.decode_video(clip)
                    name = f"{index:03d}-{which}.mp4" if shown else None
                    if name:
                        scale = max(1, REPORT_SIDE // min(frames.shape[1:3]))
                        write_video(_sampled(run) / name, frames, config.written_fps, scale=scale)
                    sample[which] = {
                        "clip": str((run.evaluation / "clips" / name).relative_to(run.out)) if name else None,
                        "reward": reward(frames, sample["prompt"]) if reward else None,
                    }
                samples.append(sample)
    pair.family.release()
    return {**_rewards(samples, reward is not None), "samples": samples}


def _sample(config: Config, data: PreparedPairs, jobs: list[tuple[int, int]], which: str, pair: ModelPair):
    with pair.model(which) as model, contextlib.ExitStack() as stack:
        if which == "aligned" and config.trains_negative_branch:
            stack.enter_context(negative_branch(model, lambda: pair.model("reference"), len(jobs)))
        return sample_latents(config, pair.family, model, data, jobs, pair.device)


def _rewards(samples: list[dict], scored: bool) -> dict:
    if not scored:
        return {"win_rate": None, "reward": None}
    totals = [(s["aligned"]["reward"]["total"], s["reference"]["reward"]["total"]) for s in samples]
    wins, ties = sum(a > r for a, r in totals), sum(a == r for a, r in totals)
    means = {
        which: {
            name: sum(s[which]["reward"][name] for s in samples) / len(samples)
            for name in samples[0][which]["reward"]
        }
        for which in ("reference", "aligned")
    }
    counts = {"wins": wins, "ties": ties, "losses": len(totals) - wins - ties, "samples": len(totals)}
    return {"win_rate": {**share(wins + 0.5 * ties, len(totals)), **counts}, "reward": means}


def objective_table(output_dir: Path, current: dict) -> list[dict]:
    """One row for every run in `output_dir` that was evaluated, `current` among them; `alike`: in the same settings."""
    shown = ("run", "objective", "beta", "steps", "win_rate", "displacement", "reward")
    found = {current["run"]: current}
    for path in sorted(output_dir.glob("*/results.json")):
        other = read_results(path)
        if other is not None:
            found.setdefault(path.parent.name, other)
    return [
        {**{name: each.get(name) for name in shown}, "alike": each.get("settings") == current["settings"]}
        for _, each in sorted(found.items())
    ]


def machine() -> str:
    """What a figure was measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {memory:.0f} GiB, no GPU"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    names = ("pgdpo", "torch", "triton", "diffusers", "deepspeed", "peft")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
