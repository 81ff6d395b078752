"""High dynamic range and wide gamut -> what an ordinary display shows: BT.709 primaries, BT.1886's gamma, 8 bits.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67, ITU-R BT.2100 table 5) are decoded to the light of a display of 1,000 cd/m2.
White of an ordinary picture stands at 203 cd/m2 in them (ITU-R BT.2408), which becomes the full scale here. Up to
about 89 cd/m2 nothing changes; above, the curve of ITU-R BT.2390 (EETF, section 5.4) rolls off, so that 1,000 cd/m2
become white and an ordinary picture's white 230 of 255. It acts on the largest of R, G and B, so that no hue turns.
Primaries are turned after that, and what BT.709 cannot show is clipped. Mastering metadata are not read.
"""

from __future__ import annotations

import functools

import numpy as np

from pgdpo.video.info import Light

WHITE = 203.0  # cd/m2 of an ordinary picture's white in HDR, ITU-R BT.2408
PEAK = 1000.0  # cd/m2 that the curve makes white, and the peak of HLG's reference display
GAMMA = 2.4  # ITU-R BT.1886
HLG_SYSTEM_GAMMA = 1.2  # at 1,000 cd/m2
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's primaries
# x, y of red, green, blue; the white of all is D65.
PRIMARIES = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)
# SMPTE ST 2084's constants.
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def to_sdr(frame: np.ndarray, light: Light, wide: str) -> np.ndarray:
    """A frame as coded, uint16 RGB `[H, W, 3]` -> uint8. `wide`: its primaries, where they are not BT.709's."""
    linear = _decoding(light)[frame]  # (H, W, 3); 1 is the ordinary white
    if light == "hlg":
        scene = linear @ LUMINANCE  # (H, W)
        linear = linear * (PEAK / WHITE * scene ** (HLG_SYSTEM_GAMMA - 1))[..., None]
    if light != "sdr":
        largest = linear.max(-1)
        grid, rolled = _curve()
        linear = linear * (np.interp(largest, grid, rolled) / np.maximum(largest, 1e-9))[..., None]
    if wide:
        linear = linear @ primaries_matrix(wide, "bt709").astype(np.float32).T
    return (255 * linear.clip(0, 1) ** (1 / GAMMA)).round().astype(np.uint8)


def pq_to_light(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084's EOTF: code values 0 to 1 -> cd/m2."""
    power = np.asarray(code, float) ** (1 / M2)
    return 10000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """`pq_to_light`, undone."""
    power = (np.asarray(light, float) / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_to_scene(code: np.ndarray) -> np.ndarray:
    """The inverse of ARIB STD-B67's OETF: code values 0 to 1 -> scene light 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.asarray(code, float)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def eetf(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2390's curve from a display of PEAK to one of WHITE, both black at 0: cd/m2 -> cd/m2."""
    whole = light_to_pq(PEAK)
    code = np.minimum(light_to_pq(light) / whole, 1)
    most = light_to_pq(WHITE) / whole
    knee = 1.5 * most - 0.5
    t = (code - knee) / (1 - knee)
    rolled = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    )
    return pq_to_light(np.where(code < knee, code, rolled) * whole)


def primaries_matrix(source: str, target: str) -> np.ndarray:
    """Linear RGB of one set of PRIMARIES -> of another, `[3, 3]`."""
    return np.linalg.inv(_to_xyz(target)) @ _to_xyz(source)


def _to_xyz(name: str) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[name]]).T
    x, y = D65
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


@functools.lru_cache
def _decoding(light: Light) -> np.ndarray:
    """Linear light of every 16-bit code value, float32; of HLG the scene's."""
    codes = np.arange(65536) / 65535
    if light == "pq":
        return (pq_to_light(codes) / WHITE).astype(np.float32)
    return (hlg_to_scene(codes) if light == "hlg" else codes**GAMMA).astype(np.float32)


@functools.lru_cache
def _curve() -> tuple[np.ndarray, np.ndarray]:
    """The curve as points, dense where code values are; 1 is the ordinary white."""
    grid = pq_to_light(np.linspace(0, 1, 4097))
    return grid / WHITE, eetf(grid) / WHITE
