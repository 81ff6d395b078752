"""What stands behind a name: an objective that trains here, a formula alone, or ours under a published name."""

from __future__ import annotations

from pgdpo.objectives.registry import REGISTRY
from pgdpo.objectives.spec import Spec

GROUPS = {
    "trains here": "the published objective; a test trains it through the trainer with the data that it needs",
    "formula only": "the published loss; no prepared data hold the samples, or the start, that it was published with",
    "ours under a published name": "the idea is published, the form is ours, in part or whole; a test trains it too",
}
PLAIN = (
    *(
        "sft",
        "dpo",
        "pg_dpo",
        "dense_dpo",
        "ipo",
        "hinge",
        "cdpo",
        "rdpo",
        "simpo",
        "dpop",
        "cal_dpo",
        "exo",
        "nca",
    ),
    *(
        "bco",
        "sppo",
        "apo_zero",
        "apo_down",
        "discopop",
        "aot",
        "f_dpo",
        "madpo",
        "beta_dpo",
        "asft",
        "adpo",
        "sgdpo",
    ),
    *(
        "balanced_dpo",
        "uncertainty_dpo",
        "flex_dpo",
        "reg_dpo",
        "ld_dpo",
        "kto",
        "mapo",
        "dspo",
        "dmpo",
        "pso",
    ),
    *("rank_dpo", "lpo", "gdro", "phygdpo", "local_dpo", "poly_dpo", "capo", "adaptive_dpo", "sipo", "npo"),
)  # with no settings of their own
INVERTED = ("diffusion.inversion_steps=2",)

# Objectives that a test trains through the real trainer, with the settings beside the columns of `Needs.pairs`. The
# test goes through this table, so that nothing is listed as training that is not trained.
TRAINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PLAIN, ()),
    "smpo": INVERTED,
    "inpo": INVERTED,
    "linear_dpo": ("train.reference=ema",),
    "video_dpo": ("data.weight={by: gap_frequency, score: total, bins: 4}",),
}


def group_of(spec: Spec) -> str:
    """A key of GROUPS."""
    if spec.name not in TRAINS:
        return "formula only"
    ours = spec.confidence in ("ours", "reconstructed")
    return "ours under a published name" if ours else "trains here"


def grouped() -> dict[str, list[Spec]]:
    """The registry's objectives by group, each in the registry's order."""
    return {group: [spec for spec in REGISTRY.values() if group_of(spec) == group] for group in GROUPS}
