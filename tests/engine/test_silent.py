"""Clips without sound: what all modules compute together is, to the bit, what the picture's own compute apart."""

import copy

import pytest
import torch

from pgdpo.config import ModelConfig
from pgdpo.engine.memory import save_memory
from pgdpo.engine.silent import run_all_streams
from pgdpo.models.families.ltx2 import LTX2
from tests.engine.two_streams import GATED, LATER, PLAIN, inputs, transformer


def trained(model, given: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """(the picture's prediction, gradients of all weights)."""
    video, _ = model(**given)
    video.square().mean().backward()
    return video.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize(("rope", "flags"), [("split", PLAIN), ("interleaved", GATED), ("split", LATER)])
def test_all_modules_run_and_the_picture_is_to_the_bit_what_it_is_apart(checkpointing, rope, flags):
    apart = transformer(rope, flags)
    together = copy.deepcopy(apart)
    run_all_streams(together, LTX2.sharing)
    for model in (apart, together):
        save_memory(model, ModelConfig(path="tiny", gradient_checkpointing=checkpointing))
    ran = set()
    for name, module in together.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    given = inputs("one", flags, image=True, isolated=True)
    (video, gradients), (same, theirs) = trained(apart, given), trained(together, given)
    assert torch.equal(video, same)
    assert {f"transformer_blocks.1.{attention}" for attention in LTX2.sharing.across} <= ran
    assert all(gradient is not None for gradient in theirs.values())
    for name, gradient in gradients.items():
        assert torch.equal(theirs[name], torch.zeros_like(theirs[name]) if gradient is None else gradient), (
            name
        )
    assert gradients["audio_proj_out.weight"] is None


def test_clips_with_sound_are_computed_as_ever():
    given = inputs("usual", PLAIN)
    apart = transformer("split", PLAIN)
    together = copy.deepcopy(apart)
    run_all_streams(together, LTX2.sharing)
    trained(together, given | {"isolate_modalities": True})  # the last clips were silent
    for mine, theirs in zip(apart(**given), together(**given), strict=True):
        assert torch.equal(mine, theirs)
