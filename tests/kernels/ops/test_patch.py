"""The ops inside real diffusers models: as exact as eager code, and gone without a trace when reverted."""

import pytest
import torch
from parity import check_parity
from tiny_models import build

pytest.importorskip("diffusers")

CASES = {
    "wan": ("wan", {"num_layers": 2}),
    "wan 2.2, a timestep per token": ("wan", {"per_token": True}),
    "wan, image conditioning": ("wan", {"image": True}),
    "wan without cross-attention norm": ("wan", {"cross_attn_norm": False}),
    "hunyuan_video": ("hunyuan_video", {}),
    "hunyuan_video, token replace": ("hunyuan_video", {"image": "token_replace"}),
    "cogvideox 5b": ("cogvideox", {}),
    "cogvideox 2b": ("cogvideox", {"rotary": False}),
    "ltx": ("ltx", {}),
    "ltx, a timestep per token": ("ltx", {"per_token": True}),
}

LONG = ("wan, image conditioning", "wan without cross-attention norm", "hunyuan_video, token replace")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.bfloat16) for case in CASES if case not in LONG]
    + [("wan", torch.float32)]
    + [pytest.param(case, torch.bfloat16, marks=pytest.mark.slow) for case in LONG]
    + [
        pytest.param(case, torch.float32, marks=pytest.mark.slow)
        for case in ("hunyuan_video", "cogvideox 5b", "ltx")
    ],
)
def test_parity(case, dtype):
    family, options = CASES[case]
    replaced, _, _ = check_parity(*build(family, dtype, **options), dtype, "triton")
    assert any("processor" in name for name in replaced)
    assert any("forward" in name for name in replaced) or "token replace" in case
