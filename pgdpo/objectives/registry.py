"""Every objective by name: one line each."""

from __future__ import annotations

from pgdpo.objectives import sft, sigmoid
from pgdpo.objectives.spec import Spec

REGISTRY: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        sft.SFT,
        sigmoid.DPO,
        sigmoid.PG_DPO,
        sigmoid.IPO,
        sigmoid.HINGE,
        sigmoid.NPO,
        sigmoid.INPO,
    )
}
