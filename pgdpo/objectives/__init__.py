"""From pair errors to a loss: a registry of published preference objectives.

    objective = build_objective("pg_dpo", beta=500)
    output = objective(errors, PairInfo(weight=weight))
    output.loss.backward()

Importing this package, listing the objectives and checking their options doesn't import torch.
"""

from pgdpo.objectives.compared import Compared
from pgdpo.objectives.info import PairInfo
from pgdpo.objectives.objective import (
    Objective,
    ObjectiveOutput,
    available,
    build_objective,
    check_options,
    get_spec,
    needs_of,
)
from pgdpo.objectives.spec import Needs, Option, Spec

__all__ = [
    "Compared",
    "Needs",
    "Objective",
    "ObjectiveOutput",
    "Option",
    "PairInfo",
    "Spec",
    "available",
    "build_objective",
    "check_options",
    "get_spec",
    "needs_of",
]
