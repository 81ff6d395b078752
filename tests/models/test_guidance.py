"""The unconditional branch of guidance with weights of its own: through every family's own sampling, on real parts."""

import pytest
import torch

from pgdpo.config import AdapterConfig, SampleSettings
from pgdpo.diffusion.streams import video_of
from pgdpo.models.adapters.adapter import add_adapter
from pgdpo.models.guidance import negative_branch, without_adapter
from tests.models.families import FAMILIES


def told(family, samples: int, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A prompt's conditioning at random; a mask, where there is one, lets all of it through."""
    found = family.example_conditioning(samples, shape)
    return {
        name: torch.ones_like(value) if "mask" in name else torch.randn_like(value.float())
        for name, value in found.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_base_answers_the_prompt_and_the_adapter_the_empty_one(name, saved, samples=2):
    """Every answer of the transformer while a pipeline samples, against those of two models of their own."""
    family = FAMILIES[name].open(saved(FAMILIES[name].save))
    torch.manual_seed(0)
    policy, base = (
        family.load_transformer(dtype=torch.float32, random_init_seed=None).eval() for _ in range(2)
    )
    add_adapter(policy, AdapterConfig(rank=4, alpha=4, target_modules=["to_q", "to_v"]), 0)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    policy.requires_grad_(False)
    alone = policy.forward
    shape = family.latent_shape(*FAMILIES[name].size)
    prompt, empty = told(family, samples, shape), told(family, samples, shape)
    seen = []
    policy.register_forward_hook(
        lambda module, _, inputs, output: seen.append((inputs, output[0].clone())), with_kwargs=True
    )
    noise = FAMILIES[name].noise(family, samples)
    with negative_branch(policy, lambda: without_adapter(policy), samples):
        sampled = family.sample(policy, noise, prompt, empty, SampleSettings(2, 3.0))
    assert video_of(sampled).shape == video_of(noise).shape and policy.forward == alone

    branches = {"prompt": 0, "empty": 0}
    for inputs, output in seen:
        by_base, by_policy = base(**inputs)[0], alone(**inputs)[0]
        assert (by_base - by_policy).abs().max() > 1e-2
        text = inputs["encoder_hidden_states"]
        for row, states in enumerate(text):
            sample = row % samples
            is_prompt = torch.equal(states, prompt["prompt"][sample][: len(states)])
            assert is_prompt or torch.equal(states, empty["prompt"][sample][: len(states)])
            branches["prompt" if is_prompt else "empty"] += 1
            torch.testing.assert_close(output[row], (by_base if is_prompt else by_policy)[row])
    beside = 2 if FAMILIES[name].hears else 0  # its other guidance, of the prompt too
    assert branches == {"prompt": 2 * samples * (1 + beside), "empty": 2 * samples}
