"""A pytest plugin for diffusers' own tests: `apply_to` on every model of a known class that they build.

    pytest -p diffusers_plugin tests/models/transformers/test_models_transformer_wan.py

in a checkout of diffusers with this folder on PYTHONPATH. PGDPO_PATCH=0 leaves the models as they are; either way the
installed diffusers is tested, not the checkout's. The last line says how many models were patched.
"""

from __future__ import annotations

import functools
import os

import diffusers  # before the checkout's conftest puts its own sources first

from pgdpo_kernels import apply_to
from pgdpo_kernels.patch.known import FAMILIES

built: list[str] = []


def patched(init):
    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapper:  # not on the way up from a subclass
            built.append(type(self).__name__)
            apply_to(self, strict=True)

    return wrapper


def pytest_configure(config):
    if os.environ.get("PGDPO_PATCH", "1") == "1":
        for name in FAMILIES:
            if hasattr(diffusers, name):
                kind = getattr(diffusers, name)
                kind.__init__ = patched(kind.__init__)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"models patched: {len(built)} ({', '.join(sorted(set(built)))})")
