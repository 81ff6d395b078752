"""The benchmarks compare like with like, and claim no speed where there is no GPU."""

import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs

from benchmarks.conftest import run
from benchmarks.gpu import harness
from benchmarks.gpu.driver import CACHE
from benchmarks.gpu.harness import Case
from benchmarks.ops import (
    exactness,
    test_diffusion_dpo,
    test_group_errors,
    test_hidden_ops,
    test_noise_pair,
    test_pair_errors,
)

ON_LATENTS = test_diffusion_dpo, test_group_errors, test_noise_pair, test_pair_errors


@pytest.mark.parametrize("module", [test_diffusion_dpo, test_group_errors, test_pair_errors])
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
    for case in [case for module in ON_LATENTS for case in module.CASES]:
        assert case.moved == 3 * case.tensor_bytes
    sizes = [case.tensor_bytes for case in [*test_pair_errors.CASES, *test_hidden_ops.CASES]]
    assert min(sizes) == 64 << 10
    assert max(sizes) > 10**9


def test_exactness_figures_hold_on_a_small_case():
    result = exactness.figures("triton", DEVICE, *exactness.TINY)
    assert exactness.failures(result) == []
    assert result["logit_error_bf16_reference"] > 1e3 * result["logit_error_ours"]


def small_case(**variants) -> Case:
    """Of functions that are handed a number of their own inputs."""
    seeds = iter(range(10**6))
    return Case(
        op="counted",
        direction="forward",
        shape=(2, 8),
        dtype=torch.float32,
        moved=64,
        launches=1,
        make=lambda seed: (next(seeds),),
        variants={name: lambda inputs, call=call: lambda: call(*inputs) for name, call in variants.items()},
    )


def test_variants_take_turns_at_being_first_and_share_no_warm_input(monkeypatch):
    monkeypatch.setattr(harness.driver(), "rounds", 12)
    calls = []
    case = small_case(**{name: lambda one, name=name: calls.append((name, one)) for name in "abc"})
    times = harness.measure(case, list("abc"), lambda *_: pytest.fail("nothing fails"))
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 12)
    assert all(one.host_us > 0 for values in times.values() for one in values)
    timed = calls[-36:]  # before them, the warm-up
    assert {name for name, _ in timed[::3]} == set("abc")
    assert len({one for _, one in timed}) == 36


def test_large_inputs_rotate_against_each_other(monkeypatch):
    monkeypatch.setattr(harness.driver(), "rounds", 12)
    case = dataclasses.replace(small_case(), moved=CACHE // 3)
    rotating = [one[0] for one in harness.make_inputs(case, 2)]
    assert len(rotating) == 4  # of a third of the cache each
    used = []
    harness.timed({name: [functools.partial(used.append, one) for one in rotating] for name in "ab"})
    assert all(one != other for one, other in zip(used, used[1:], strict=False))


def test_a_variant_that_raises_leaves_the_others():
    def broken(one):
        raise RuntimeError("no such kernel")

    found = {}
    times = harness.measure(small_case(good=lambda one: one, bad=broken), ["bad", "good"], found.setdefault)
    assert set(times) == {"good"} and str(found["bad"]) == "no such kernel"


def test_pytest_benchmark_compiles_more_shapes_than_torch_keeps():
    """torch.compile gives up a function after eight shapes; each benchmark begins with none."""
    timer = SimpleNamespace(extra_info={}, pedantic=lambda call, **_: call())
    shapes = [((2, 2, 1, 1, n), torch.float32) for n in range(2, 3 + torch._dynamo.config.recompile_limit)]
    for case in test_pair_errors.cases(shapes):
        if case.direction == "forward":
            run(timer, case, "compile")
