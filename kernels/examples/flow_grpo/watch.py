"""What flow_grpo's DPO script trains on: `python watch.py SCRIPT [ARGUMENTS]` prints counts of its first gradient step.

`clean` of `rows` latents are pictures as the sampler left them; `mixed` of `pairs` have another prompt on each side.
"""

import runpy
import sys

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

pictures, decode, forward, randn_like = (
    [],
    AutoencoderKL.decode,
    SD3Transformer2DModel.forward,
    torch.randn_like,
)


def decoded(self, latents, *arguments, **keywords):
    pictures.extend((latents - self.config.shift_factor) * self.config.scaling_factor)
    return decode(self, latents, *arguments, **keywords)


def noised(latents: torch.Tensor) -> torch.Tensor:
    clean = sum(any(torch.allclose(row, x, atol=1e-4) for x in pictures) for row in latents)
    print(f"rows {len(latents)} clean {clean}", flush=True)
    return randn_like(latents)


def predicted(self, *arguments, encoder_hidden_states, **keywords):
    if torch.is_grad_enabled():
        chosen, rejected = encoder_hidden_states.chunk(2)
        mixed = sum(not torch.equal(a, b) for a, b in zip(chosen, rejected, strict=True))
        print(f"pairs {len(chosen)} mixed {mixed}", flush=True)
        sys.exit()
    return forward(self, *arguments, encoder_hidden_states=encoder_hidden_states, **keywords)


AutoencoderKL.decode, SD3Transformer2DModel.forward, torch.randn_like = decoded, predicted, noised
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
