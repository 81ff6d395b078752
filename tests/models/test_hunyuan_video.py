"""HunyuanVideo's own: guidance that is told to the transformer."""

import pytest
import torch

from tests.models.families import FAMILIES


@pytest.mark.parametrize("guidance", [1.0, 3.3, 6.0, 6.02, 7.25])
def test_guidance_is_rounded_before_it_is_multiplied(guidance, saved):
    family = FAMILIES["hunyuan_video"].open(saved(FAMILIES["hunyuan_video"].save), guidance=guidance)
    for dtype in (torch.float32, torch.bfloat16):
        told = family.told_guidance(torch.zeros(2, 4, 1, 2, 2, dtype=dtype))
        assert torch.equal(told, torch.tensor([guidance] * 2, dtype=dtype) * 1000.0)
