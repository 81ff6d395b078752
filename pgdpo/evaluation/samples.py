"""Clips of both models from the same noise on held-out prompts, decoded and scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from pgdpo.checkpoints.runs import Both, Run
from pgdpo.diffusion.streams import Latents, each
from pgdpo.evaluation.rewards import Reward
from pgdpo.messages.console import say
from pgdpo.messages.progress import moved
from pgdpo.models.encoders.decode import decode
from pgdpo.sampling import Parts, Sampler
from pgdpo.sampling.clips import Job
from pgdpo.training.held_out.statistics import share
from pgdpo.video import write_video

REPORT_SIDE = 192  # pixels; smaller clips are enlarged by whole factors


class Samples:
    """The jobs of an evaluation, in batches by number: `latents` -> `scores`."""

    def __init__(self, sampler: Sampler, parts: Parts, reward: Reward | None) -> None:
        self.sampler, self.parts, self.reward = sampler, parts, reward
        settings, held_out = sampler.config.evaluate, len(sampler.data)
        prompts = min(settings.num_prompts, held_out)
        if prompts < settings.num_prompts:
            say(
                f"evaluate.num_prompts is {settings.num_prompts}: {prompts} are sampled, one of each held-out pair"
            )
        jobs = [(index, seed) for index in range(prompts) for seed in range(settings.samples_per_prompt)]
        self.batches: dict[str, list[Job]] = {
            f"{number:05d}": batch for number, batch in enumerate(sampler.batches(jobs))
        }

    def latents(self, who: str) -> dict[str, list[Job]]:
        """The files of a model's latents; `who` names its folder."""
        return {f"{who}/latents-{number}.safetensors": batch for number, batch in self.batches.items()}

    def score(self, who: str, what: str) -> None:
        """Decode a model's clips and score them, spread over the ranks; write those that the report shows."""
        decoder = self.sampler.family.load_encoders(self.sampler.device)
        config, folder = self.sampler.config, self.parts.folder / who
        folder.mkdir(parents=True, exist_ok=True)

        def scored(jobs: list[Job]) -> list:
            tensors, rewards = self.parts.read(f"{who}/latents-{numbers[jobs[0]]}.safetensors"), []
            for place, (index, seed) in enumerate(jobs):
                clip = each(lambda latents, place=place: latents[place], unstored(tensors))
                frames, sound = decode(decoder, clip)
                if self._shown(index, seed):
                    scale = max(1, REPORT_SIDE // min(frames.shape[1:3]))
                    path = folder / f"{index:03d}.mp4"
                    write_video(path, frames, config.written_fps, scale=scale, sound=sound)
                prompt = self.sampler.data.rows[index]["prompt"]
                rewards.append(self.reward(frames, prompt, sound) if self.reward else None)
                moved(f"{what}: prompt {index + 1}, seed {seed}")
            return rewards

        numbers = {jobs[0]: number for number, jobs in self.batches.items()}
        wanted = {f"{who}/scores-{number}.json": jobs for number, jobs in self.batches.items()}
        self.parts.make(what, wanted, scored)
        decoder.release()

    def _shown(self, index: int, seed: int) -> bool:
        return seed == 0 and index < self.sampler.config.evaluate.report_clips

    def publish(self, run: Run | Both, whose: dict[str, str]) -> dict:
        """Put the shown clips into `run.evaluation`, in place of an earlier evaluation's, which its results need until
        then. `whose`: "reference" and "aligned" -> the folder of its parts. Returns what `results.json` says of all."""
        new, clips = run.evaluation / ".clips", run.evaluation / "clips"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        samples = []
        for number, jobs in self.batches.items():
            rewards = {which: self.parts.read(f"{who}/scores-{number}.json") for which, who in whose.items()}
            for place, (index, seed) in enumerate(jobs):
                sample = {"prompt": self.sampler.data.rows[index]["prompt"], "seed": seed}
                for which, who in whose.items():
                    clip = f"{index:03d}-{which}.mp4" if self._shown(index, seed) else None
                    if clip:
                        shutil.copy2(self.parts.folder / who / f"{index:03d}.mp4", new / clip)
                    sample[which] = {
                        "clip": _relative(clips / clip, run.out) if clip else None,
                        "reward": rewards[which][place],
                    }
                samples.append(sample)
        shutil.rmtree(clips, ignore_errors=True)
        new.rename(clips)
        return {**_rewards(samples, self.reward is not None), "samples": samples}


def stored(latents: Latents) -> dict[str, torch.Tensor]:
    """Sampled latents under the names that a file of them has; `unstored` is its inverse."""
    if not isinstance(latents, Mapping):
        return {"latents": latents}
    return {f"latents.{name}": tensor for name, tensor in latents.items()}


def unstored(tensors: Mapping[str, torch.Tensor]) -> Latents:
    if "latents" in tensors:
        return tensors["latents"]
    return {name.removeprefix("latents."): tensor for name, tensor in tensors.items()}


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


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
