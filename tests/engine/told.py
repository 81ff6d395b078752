"""Run on ranks: a command of pgdpo whose fused ops have a backend."""

from pgdpo_kernels import set_backend
from tests.worlds import run_pgdpo


def told(backend: str, *words: str) -> None:
    """`backend`: of `pgdpo_kernels.set_backend`."""
    set_backend(backend)
    run_pgdpo(*words)
