"""The ops inside real diffusers models: as exact as eager code, and gone without a trace when reverted."""

import copy

import pytest
import torch
from tiny_models import build, step

from pgdpo_kernels import apply_to, revert, set_backend

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


@pytest.fixture
def really_float64(monkeypatch):
    """diffusers casts to fp32 by `.float()` wherever it wants more than bf16: a float64 model must not lose by it."""
    to_float = torch.Tensor.float
    keep = lambda x, *a, **k: x if x.dtype == torch.float64 else to_float(x, *a, **k)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "float", keep)


def exact_step(model, inputs):
    doubles = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    return step(copy.deepcopy(model).double(), doubles)


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
def test_parity(case, dtype, really_float64):
    """Output and every gradient against float64: at most twice eager's error, and back to eager's bits."""
    family, options = CASES[case]
    model, inputs = build(family, dtype, **options)
    names = ["output", "latents", *(name for name, _ in model.named_parameters())]
    exact, eager = exact_step(model, inputs), step(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with set_backend("triton"):
        replaced = apply_to(model, strict=True)
        fused = step(model, inputs)
    assert any("processor" in name for name in replaced)
    assert any("forward" in name for name in replaced) or "token replace" in case
    ours_total, theirs_total = 0.0, 0.0
    for name, ours, theirs, truth in zip(names, fused, eager, exact, strict=True):
        assert ours.dtype == theirs.dtype, name
        scale = max(truth.norm().item(), 1e-3)
        error, bound = ((x.double() - truth).norm().item() / scale for x in (ours, theirs))
        # A small gradient's error is one draw of a few roundings, most of them outside the ops: one more is allowed.
        assert error <= 2 * bound + torch.finfo(dtype).eps, (name, error, bound, scale)
        ours_total, theirs_total = ours_total + error**2, theirs_total + bound**2
    assert ours_total <= 2**2 * theirs_total
    revert(model)
    assert all(torch.equal(a, b) for a, b in zip(step(model, inputs), eager, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
