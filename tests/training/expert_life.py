"""Run by test_validation on one rank or two: a training of a tiny Wan 2.2 whose validation asks both experts."""

import gc
import weakref

import torch

from pgdpo.config.read import load_config
from pgdpo.sampling import clips
from pgdpo.training.trainer import Trainer


def lives(path: str, overrides: list[str]) -> dict:
    """Train. Returns how many of the other expert's tensors there were, were whole on this rank, and are alive after
    the run; and the last validation's latents, as validation had them and with the other expert whole."""
    seen, whole, shown = {}, 0, []
    sample = clips.sample_latents

    def recorded(config, family, transformer, data, jobs, device):
        expert_at = family.expert_at

        def noted(asked, sigma):
            nonlocal whole
            expert = expert_at(asked, sigma)
            if expert is not asked:
                for name, parameter in expert.named_parameters():
                    seen.setdefault((len(shown), name), weakref.ref(parameter))
                whole = max(whole, sum(parameter.numel() > 0 for parameter in expert.parameters()))
            return expert

        family.expert_at = noted
        try:
            shown.append(sample(config, family, transformer, data, jobs, device))
        finally:
            del family.expert_at
        return shown[-1]

    clips.sample_latents = recorded
    try:
        trainer = Trainer(load_config(path, overrides))
        trainer.train()
    finally:
        clips.sample_latents = sample
    gc.collect()
    alive = sum(reference() is not None for reference in seen.values())
    ours, family = trainer.held_out._clips, trainer.policy.family
    family.experts.open_other = None
    trainer.policy.engine.module.eval()
    again = [
        sample(trainer.config, family, trainer.policy.engine.module, ours._data, [job], torch.device("cpu"))
        for job in ours._jobs
    ]
    last = shown[-len(again) :]
    return {
        "seen": len(seen),
        "whole": whole,
        "alive": alive,
        "equal": all(torch.equal(a, b) for a, b in zip(last, again, strict=True)),
        "latents": [clip.flatten().tolist()[:64] for clip in last],
    }
