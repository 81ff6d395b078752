"""What stands behind a name: an objective that trains here, a formula alone, or ours under a published name."""

from __future__ import annotations

from pgdpo.objectives.registry import REGISTRY
from pgdpo.objectives.spec import Spec

STANDINGS = {
    "trains here": "the published objective; a test trains it through the trainer with the data that it needs",
    "formula only": "the published loss; no prepared data hold the samples, or the start, that it was published with",
    "ours under a published name": "the idea is published, the form is ours, in part or whole; a test trains it too",
}
# Objectives that a test trains through the real trainer, and with what besides the columns of `Needs.pairs`. The test
# goes through this table, so that nothing is listed as training that is not trained.
TRAINS = {spec.name: spec.trained_with for spec in REGISTRY.values() if spec.trained_with is not None}


def standing_of(spec: Spec) -> str:
    """A key of STANDINGS."""
    if spec.name not in TRAINS:
        return "formula only"
    ours = spec.confidence in ("ours", "reconstructed")
    return "ours under a published name" if ours else "trains here"


def by_standing() -> dict[str, list[Spec]]:
    """The registry's objectives by standing, each in the registry's order."""
    return {
        standing: [spec for spec in REGISTRY.values() if standing_of(spec) == standing]
        for standing in STANDINGS
    }
