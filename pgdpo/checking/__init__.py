"""`pgdpo check`: everything that is wrong with a configuration and its data, at once, before any weight is loaded."""

from pgdpo.checking.findings import Findings
from pgdpo.checking.run import run_check

__all__ = ["Findings", "run_check"]
