"""The benchmarks compare like with like, and claim no speed where there is no GPU."""

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs

from benchmarks import exactness, suite, test_diffusion_dpo, test_noise_pair, test_pair_errors


@pytest.mark.parametrize("module", [test_diffusion_dpo, test_pair_errors])
def test_variants_compute_the_same(module):
    inputs = make_pairs((4, 2, 3, 5, 5), distance=1e-3)
    theirs = module.published if module is test_diffusion_dpo else module.eager
    fused, eager = (
        torch.cat([x.flatten() for x in variant(*inputs)[0]]) for variant in (module.fused, theirs)
    )
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-4)


def test_noise_variants_have_the_same_form():
    latents, level = torch.zeros(4, 2, 8, device=DEVICE), torch.tensor([0.0, 1.0], device=DEVICE)
    for variant in (test_noise_pair.fused, test_noise_pair.eager):
        noisy, target = variant(latents, level, torch.arange(2, device=DEVICE))
        assert not noisy[[0, 2]].any()
        assert torch.equal(noisy[[1, 3]], target[[1, 3]])
        assert torch.equal(target[:2], target[2:])


def test_bytes_of_pairs_are_three_tensors():
    for case in [*test_diffusion_dpo.CASES, *test_pair_errors.CASES, *test_noise_pair.CASES]:
        assert case.moved == 3 * case.tensor_bytes
    assert min(case.tensor_bytes for case in suite.CASES) == 64 << 10
    assert max(case.tensor_bytes for case in suite.CASES) > 10**9


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_no_speed_is_claimed(capsys):
    assert suite.run() is None
    printed = capsys.readouterr().out
    assert "No speed was measured" in printed
    assert "GB/s" not in printed
    with pytest.raises(ValueError, match="unknown ops.*'attention'.*pair_errors"):
        suite.run(ops=["attention"])


def test_exactness_figures_hold_on_a_small_case(monkeypatch):
    monkeypatch.setattr(exactness, "SHAPE", (4, 4, 3, 20, 20))
    result = exactness.figures("triton", DEVICE, (8, 2, 2, 10, 10))
    assert exactness.failures(result) == []
    assert result["logit_error_bf16_reference"] > 1e3 * result["logit_error_ours"]
