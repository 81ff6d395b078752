"""omega(sigma) against the weighting that each form means, worked out on samples; a table against numpy's lines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.diffusion.timestep_weight import timestep_weight

pytestmark = pytest.mark.quick

SIGMAS = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6)
ON_THE_CLIP = {"snr": lambda snr: snr, "min_snr": lambda snr: min(snr, 5.0)}


def by_samples(form: str, prediction: str, alpha: float, s: float) -> float:
    """The weight of the clip's squared error, times that error over the squared error of what the model predicts."""
    clip, noise, missed = np.random.default_rng(0).normal(size=(3, 4))
    noisy = alpha * clip + s * noise
    truth = {"flow": noise - clip, "v": alpha * noise - s * clip, "epsilon": noise}[prediction]

    def clip_of(predicted):
        """What a prediction says of the clip."""
        if prediction == "flow":
            return (noisy - s * predicted) / (alpha + s)
        return alpha * noisy - s * predicted if prediction == "v" else (noisy - s * predicted) / alpha

    assert clip_of(truth) == pytest.approx(clip)
    error = (clip_of(truth + missed) - clip) @ (clip_of(truth + missed) - clip)
    return ON_THE_CLIP[form](alpha**2 / s**2) * error / (missed @ missed)


@pytest.mark.parametrize("form", ON_THE_CLIP)
@pytest.mark.parametrize("prediction", ["flow", "v", "epsilon"])
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_form_weighs_the_clips_error(form, prediction, levels):
    level = torch.tensor(levels, dtype=torch.float32)
    sigma = (
        level if prediction == "flow" else torch.rand(len(levels))
    )  # elsewhere it is the level that says it
    found = timestep_weight(form, sigma, level=level, prediction=prediction)
    assert found.dtype == torch.float32
    for omega, at in zip(found.tolist(), level.double().tolist(), strict=True):
        alpha, s = (1 - at, at) if prediction == "flow" else (at**0.5, (1 - at) ** 0.5)
        assert omega == pytest.approx(by_samples(form, prediction, alpha, s), rel=1e-5)


@given(SIGMAS)
def test_flow_dpo_is_the_papers_and_snr_of_a_flow(sigmas):
    sigma = torch.tensor(sigmas, dtype=torch.float32)
    found = timestep_weight("flow_dpo", sigma, level=sigma, prediction="flow")
    np.testing.assert_allclose(found, (1 - sigma.double()) ** 2, rtol=1e-6, atol=1e-14)
    assert torch.equal(found, timestep_weight("snr", sigma, level=sigma, prediction="flow"))
    assert timestep_weight("none", sigma, level=sigma, prediction="flow") is None


@pytest.mark.parametrize("prediction", ["flow", "v", "epsilon"])
@pytest.mark.parametrize("form", ON_THE_CLIP)
def test_clip_and_noise_alone_have_finite_weights(form, prediction):
    """Where the SNR is 0, as at the last step of a zero-terminal-SNR schedule, or has no bound."""
    level = torch.tensor([0.0, 1.0])
    found = timestep_weight(form, level, level=level, prediction=prediction)
    assert found.isfinite().all() and (found >= 0).all() and (found <= 1).all()


@st.composite
def tables(draw) -> list[list[float]]:
    places = sorted(draw(st.sets(st.integers(0, 1000), min_size=2, max_size=6)))
    return [[place / 1000, draw(st.floats(0, 100, allow_subnormal=False))] for place in places]


@given(tables(), SIGMAS)
@settings(deadline=None)
def test_a_table_is_linear_between_its_points_and_constant_beyond(points, sigmas):
    sigmas += [place for place, _ in points]
    sigma = torch.tensor(sigmas, dtype=torch.float32)
    found = timestep_weight(points, sigma, level=sigma, prediction="v")
    wanted = np.interp(sigma.double(), *np.array(points).T)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)
