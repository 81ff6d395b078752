"""Where one objective must become another, or must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objective_oracle import Errors
from objective_samples import FIELDS, random_errors, to_torch

from pgdpo.messages.errors import InputError
from pgdpo.objectives import PairInfo, available, build_objective, check_options, get_spec
from pgdpo_kernels import pair_errors

pytestmark = pytest.mark.quick

BETA = 2000.0


def run(name, errors, pairs=None, **options):
    """Losses `[B]` and gradients by every field."""
    output = build_objective(name, **{"beta": BETA, **options})(errors, pairs)
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    gradients = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
    return output.per_group.detach(), gradients


def assert_same(one, other, *, exact: bool = False):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(one, other, **tolerance)


def sample(segments: int = 1, pairs: int = 5, dtype=torch.float64):
    return to_torch(random_errors(np.random.default_rng(0), pairs, segments), dtype)


ONES = torch.ones(5)
DPO_IN_DISGUISE = [
    ("rdpo", {"label_smoothing": 0.0}, {}),
    ("cdpo", {"label_smoothing": 0.0}, {}),
    ("f_dpo", {"divergence": "reverse_kl"}, {}),
    ("dpop", {"penalty": 0.0}, {}),
    ("poly_dpo", {"alpha": 0.0}, {}),
    ("reg_dpo", {"sft_weight": 0.0}, {}),
    ("inpo", {}, {}),
    ("lpo", {}, {}),
    ("ld_dpo", {"alpha": 1.0}, {"tail": torch.rand(5, 2)}),
    ("local_dpo", {"mask_weight": 0.0, "mask_sft": 0.0, "full_sft": 0.0}, {"masked": sample(2)}),
    ("uncertainty_dpo", {}, {"uncertainty": 0 * ONES}),
    ("adaptive_dpo", {}, {"uncertainty": 0 * ONES}),
    ("video_dpo", {}, {"gap_frequency": 0.72 * ONES.double()}),
    ("phygdpo", {}, {"reward_margin": ONES}),
    ("madpo", {"threshold": 0.3}, {"reward_margin": 0.3 * ONES.double()}),
    ("smpo", {"gamma": 1.0}, {"probability": ONES}),
    ("adpo", {}, {"probability": ONES}),
    ("beta_dpo", {"keep": 1.0, "sensitivity": 0.0}, {}),
    ("balanced_dpo", {"limit": 1.0}, {}),
    ("pg_dpo", {"ars": "none", "ipr_weight": 0.0}, {}),
]


@pytest.mark.parametrize(
    ("name", "options", "pairs"), DPO_IN_DISGUISE, ids=[row[0] for row in DPO_IN_DISGUISE]
)
def test_becomes_dpo(name, options, pairs):
    errors = sample(2)
    assert_same(run(name, errors, PairInfo(**pairs), **options), run("dpo", errors))


def test_pg_dpo_without_ars_and_ipr_is_dpo_to_the_bit():
    for segments in (1, 3):
        errors = sample(segments, dtype=torch.float32)
        assert_same(run("pg_dpo", errors, ars="none", ipr_weight=0.0), run("dpo", errors), exact=True)


def test_pg_dpo_starts_at_one_half():
    """Policy equal to reference: alpha = 1/2 and the first term is ln 2."""
    errors = random_errors(np.random.default_rng(0), 3, 1)
    errors.segments["e_w"][:] = errors.segments["e_l"][:] = 0
    output = build_objective("pg_dpo", ipr_weight=0.0)(to_torch(errors))
    assert (output.stats["ars/alpha"] == 0.5).all()
    torch.testing.assert_close(output.per_group.detach(), torch.full((3,), np.log(2), dtype=torch.float64))


@pytest.mark.parametrize("form", ["inside", "mean"])
def test_dense_dpo_with_one_segment_is_dpo(form):
    errors = sample(1)
    assert_same(
        run("dense_dpo", errors, PairInfo(segment_labels=ONES[:, None]), form=form), run("dpo", errors)
    )


@pytest.mark.parametrize("form", ["inside", "mean"])
def test_dense_dpo_labels(form):
    """Label -1 swaps chosen and rejected; a tie is as if the segment's margin were zero."""
    errors = sample(1)
    flipped = build_objective("dense_dpo", beta=BETA, form=form)(
        errors, PairInfo(segment_labels=-ONES[:, None])
    )
    torch.testing.assert_close(flipped.per_group, build_objective("npo", beta=BETA)(errors).per_group)


def test_dmpo_is_exo():
    errors = sample()
    assert_same(run("dmpo", errors, a=0.02), run("exo", errors, label_smoothing=0.02))


def test_flex_dpo_with_equal_betas_is_dpo():
    errors = sample()
    flex = build_objective("flex_dpo", beta_chosen=BETA, beta_rejected=BETA)(errors)
    torch.testing.assert_close(flex.per_group, build_objective("dpo", beta=BETA)(errors).per_group)


def test_sgdpo_with_one_segment_has_dpo_s_value_and_half_its_gradient():
    errors = sample()
    (value, gradients), (dpo_value, dpo_gradients) = run("sgdpo", errors), run("dpo", errors)
    torch.testing.assert_close(value, dpo_value)
    torch.testing.assert_close(gradients, tuple(gradient / 2 for gradient in dpo_gradients))


def test_cal_dpo_at_large_beta_is_dpo_near_the_reference():
    """The targets ±1/2β vanish; what is left of the calibration is r²."""
    errors = sample()
    difference = run("cal_dpo", errors, beta=1e7)[0] - run("dpo", errors, beta=1e7)[0]
    squares = (errors.excess_chosen.square() + errors.excess_rejected.square())[:, 0]
    torch.testing.assert_close(difference, squares.detach(), rtol=1e-3, atol=1e-9)


def test_aot_on_sorted_rewards_is_dpo():
    errors = sample()
    order = errors.excess_chosen.argsort(0)[:, 0], errors.excess_rejected.argsort(0)[:, 0]
    ordered = type(errors)(
        errors.policy_chosen,
        errors.policy_rejected,
        excess_chosen=errors.excess_chosen[order[0]],
        excess_rejected=errors.excess_rejected[order[1]],
    )
    aot = build_objective("aot", beta=BETA)(ordered).per_group
    torch.testing.assert_close(aot, build_objective("dpo", beta=BETA)(ordered).per_group)
    torch.testing.assert_close(aot.mean(), build_objective("aot", beta=BETA)(errors).loss)


def test_gdro_with_a_hard_target_is_lpo():
    errors = sample()
    reward = torch.tensor([[1.0, 0.0]] * 5)
    assert_same(
        run("gdro", errors, PairInfo(reward=reward), tau=1e-3, gamma=0.0), run("lpo", errors), exact=False
    )


def test_rank_dpo_of_two_is_dpo_times_a_constant():
    errors = sample()
    loss = run("rank_dpo", errors, PairInfo(reward=torch.tensor([[1.0, 0.0]] * 5)))[0]
    factor = 1 / np.log(2) - 1 / np.log(3)  # gain 1, discounts of places 1 and 2
    torch.testing.assert_close(loss, factor * run("dpo", errors)[0])


def test_dgpo_of_two_pulls_as_dpo():
    """Advantages ±1: the gradient is that of σ(−z)·(E_pw − E_pl)/2, with z of half the β."""
    errors = sample()
    loss = build_objective("dgpo", beta=BETA)(errors, PairInfo(advantage=ONES)).per_group
    z = build_objective("dpo", beta=BETA)(errors).logits
    wanted = torch.sigmoid(-z) * (errors.policy_chosen - errors.policy_rejected)[:, 0] / 2
    torch.testing.assert_close(loss, wanted)


def test_kto_of_pairs_around_zero():
    """A negative mean reward leaves z₀ at 0: 1 − σ(βr_w) and σ(βr_l), halved."""
    errors = random_errors(np.random.default_rng(0), 4, 1)
    errors.segments["e_w"], errors.segments["e_l"] = (np.abs(errors.segments[k]) for k in ("e_w", "e_l"))
    errors = Errors(errors.segments, errors.count)
    output = build_objective("kto", beta=BETA)(to_torch(errors))
    assert output.stats["kto/reference_point"] == 0
    sigma = 1 / (1 + np.exp(-BETA * np.stack([errors.r_w, errors.r_l])))
    np.testing.assert_allclose(output.per_group.detach(), (1 - sigma[0] + sigma[1]) / 2, rtol=1e-9)


def test_timestep_weight_scales_beta():
    """ω_t = 2 is β doubled, wherever β is a factor of the logit alone."""
    fixed_target = {"ipo", "cal_dpo", "sppo"}  # these also regress to 1/2β
    scaled = [n for n in available() if "beta" in get_spec(n).options and n not in fixed_target]
    for name in scaled:
        if "timestep_weight" in get_spec(name).needs.pairs or name in ("pg_dpo", "dspo"):
            continue
        needs = build_objective(name).needs.pairs
        brought = {"segment_labels": (5, 2), "tail": (5, 2), "reward": (5, 2)}
        info = {key: torch.rand(brought.get(key, (5,))) for key in needs if key != "masked"}
        info |= {"masked": sample(2)} if "masked" in needs else {}
        doubled = run(name, sample(2), PairInfo(**info, timestep_weight=2 * ONES), beta=300.0)[0]
        assert_same(doubled, run(name, sample(2), PairInfo(**info), beta=600.0)[0])


@pytest.mark.parametrize("name", available())
def test_who_reads_omega(name):
    """Whose pairs lose otherwise by it may ask for omega(sigma); the others are refused."""
    spec = get_spec(name)
    if "timestep_weight" in spec.needs.pairs:
        assert not spec.reads_omega  # a step's own weight, which its data bring
    else:
        brought = {"segment_labels": (5, 2), "tail": (5, 2), "reward": (5, 2), "advantage": (5, 2)}
        needs = build_objective(name).needs.pairs
        info = {key: torch.rand(brought.get(key, (5,))) for key in needs if key != "masked"}
        info |= {"masked": sample(2)} if "masked" in needs else {}
        found = [
            build_objective(name)(sample(2), PairInfo(**info, timestep_weight=omega)).per_group
            for omega in (None, 0.3 * ONES)
        ]
        assert torch.equal(*found) != spec.reads_omega
    if spec.reads_omega:
        assert check_options(name, timestep_weight=[(0, 1), (1, 0)])["timestep_weight"] == [[0, 1], [1, 0]]
    else:
        assert check_options(name, timestep_weight="none")
        with pytest.raises(InputError, match=f"`{name}`: `timestep_weight` is a factor of β"):
            build_objective(name, timestep_weight="snr")


def test_weights_scale_each_pair_s_loss():
    errors, weight = sample(), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    plain = build_objective("dpo", beta=BETA)(errors)
    weighted = build_objective("dpo", beta=BETA)(errors, PairInfo(weight=weight))
    torch.testing.assert_close(weighted.per_group, plain.per_group * weight)
    torch.testing.assert_close(weighted.loss, (plain.per_group * weight).mean())


NEAR = [
    ("cal_dpo", {}),
    ("cal_dpo", {"beta": 50.0}),
    *(("f_dpo", {"divergence": divergence}) for divergence in ("reverse_kl", "forward_kl", "js", "alpha")),
    ("f_dpo", {"divergence": "alpha", "alpha": 1.5}),
    ("reg_dpo", {}),
    ("dspo", {}),
]


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize(("name", "options"), NEAR)
def test_what_nearly_is_another_objective_has_its_gradients(name, options):
    """As near as it says, at rewards of order 1e-3; and at options that make it differ it claims nothing."""
    near = get_spec(name).near(check_options(name, **options))
    other = {} if near.beta is None else {"beta": near.beta}
    found, wanted = (gradient_of(which, **given) for which, given in ((name, options), (near.name, other)))
    assert (found - wanted).norm() <= (near.within + 1e-5) * wanted.norm()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpo", {}),
        ("cal_dpo", {"beta": 2.0}),
        ("f_dpo", {"divergence": "alpha", "alpha": 100.0}),
        ("reg_dpo", {"sft_weight": 1250.0}),
        ("dspo", {"beta": 0.1}),
    ],
)
def test_what_is_itself_claims_to_be_near_nothing(name, options):
    assert get_spec(name).near(check_options(name, **options)) is None


@pytest.mark.usefixtures("eager_kernels")
def test_no_other_objective_is_dpo_or_sft_at_its_defaults():
    """Those that nearly are say so."""
    info = {
        "probability": 0.8, "reward_margin": 0.4, "uncertainty": 0.3, "timestep": 0.5, "gap_frequency": 0.2
    }  # fmt: skip
    pairs = PairInfo(**{key: torch.full((4,), value) for key, value in info.items()})
    for name in available():
        spec = get_spec(name)
        if (
            set(spec.needs_with(check_options(name)).pairs) - set(info)
            or name in ("dpo", "sft", "inpo")
            or spec.without
        ):
            continue
        found = gradient_of(name, pairs)
        likes = [gradient_of("sft", pairs)]
        beta = check_options(name).get("beta", 5000.0)
        likes += [gradient_of("dpo", pairs, beta=beta * factor) for factor in (0.5, 1.0, 2.0)]
        alike = any((found - like).norm() < 5e-3 * like.norm() for like in likes)
        assert alike <= (spec.near(check_options(name)) is not None), name


def gradient_of(name, pairs=None, **options):
    """d loss / d prediction, chosen and rejected, from errors of predictions near their reference's."""
    generator = torch.Generator().manual_seed(5)
    reference, target = torch.randn(2, 8, 1, 2, 4, 4, generator=generator) * 0.3
    policy = reference + 2e-3 * torch.randn(reference.shape, generator=generator)
    policy.requires_grad_()
    output = build_objective(name, **options)(pair_errors(policy, target, reference, cross=True), pairs)
    output.loss.backward()
    return policy.grad
