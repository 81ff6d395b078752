"""Preference optimisation for video diffusion models: Diffusion-DPO, PG-DPO and their family.

from pgdpo import Trainer, load_config
"""

import importlib
from typing import TYPE_CHECKING

from pgdpo.version import __version__

if TYPE_CHECKING:
    from pgdpo.config.read import load_config
    from pgdpo.training.trainer import Trainer

__all__ = ["Trainer", "__version__", "load_config"]

_HOMES = {"Trainer": "pgdpo.training.trainer", "load_config": "pgdpo.config.read"}


def __getattr__(name: str):
    """Import torch and the rest only when they are used: `import pgdpo` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pgdpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
