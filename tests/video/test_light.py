"""HDR and wide gamut: the standards' own values, and what becomes of an ordinary picture that was put into them."""

import numpy as np
import pytest

from pgdpo.video.light import (
    PEAK,
    WHITE,
    eetf,
    hlg_to_scene,
    light_to_pq,
    pq_to_light,
    primaries_matrix,
    to_sdr,
)
from tests.video.odd_clips import Odd, in_light


@pytest.mark.parametrize(
    ("code", "light"),
    [
        (0, 0),
        (0.150, 1.0),
        (0.2996, 10),
        (0.508, 100),
        (0.5807, 203),
        (0.7518, 1000),
        (0.9026, 4000),
        (1, 10000),
    ],
)
def test_pq_has_the_standards_values(code, light):
    """SMPTE ST 2084 and ITU-R BT.2408's table 1, to the digits that are given there."""
    assert pq_to_light(code) == pytest.approx(light, rel=0.02, abs=1e-6)
    assert light_to_pq(light) == pytest.approx(code, abs=1e-3)


def test_hlg_has_the_standards_values():
    """ITU-R BT.2100, table 5; by BT.2408 75% of the signal is 203 cd/m2 on a display of 1,000."""
    assert hlg_to_scene(np.array([0, 0.5, 1])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)
    assert 1000 * hlg_to_scene(0.75) ** 1.2 == pytest.approx(203, rel=0.01)


def test_the_curve_is_bt2390s():
    """Nothing changes up to the knee, the peak becomes white, and between them it rises without a bend at the knee."""
    light = np.linspace(0, PEAK, 4000)
    shown = eetf(light)
    assert shown[light < 88] == pytest.approx(light[light < 88], abs=1e-6)
    assert shown[-1] == pytest.approx(WHITE) and eetf(4000) == pytest.approx(WHITE)
    slope = np.diff(shown) / np.diff(light)
    assert (slope > -1e-9).all() and np.abs(np.diff(slope)).max() < 0.02
    assert 255 * (eetf(WHITE) / WHITE) ** (1 / 2.4) == pytest.approx(230, abs=0.5)


def test_primaries_are_bt2087s():
    """ITU-R BT.2087, the matrix from BT.709 to BT.2020; and there and back is nothing."""
    wanted = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    assert primaries_matrix("bt709", "bt2020") == pytest.approx(np.array(wanted), abs=1e-4)
    assert primaries_matrix("p3", "bt709") @ np.ones(3) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("light", ["pq", "hlg", "sdr"])
def test_an_ordinary_picture_in_another_light_is_itself(light):
    """Greys and colours up to the curve's knee, of 16-bit codes by formulas that share nothing with ours."""
    ramp = np.random.default_rng(0).uniform(0, 175, (32, 32, 3))
    ramp[:16] = ramp[:16, :, :1]
    odd = Odd("x", light=light, primaries="bt2020")
    coded = (65535 * in_light(ramp / 255, odd)).round().astype(np.uint16)
    found = to_sdr(coded, light, "bt2020").astype(float)
    assert np.abs(found - ramp).max() < 2  # the matrix has four digits
