"""One file per model family, `families/NAME.py` with its class as `FAMILY`; `open_family` takes the configured one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.config.families import family_class

if TYPE_CHECKING:
    from pgdpo.config import ModelConfig
    from pgdpo.models.family import Family


def open_family(model: ModelConfig) -> Family:
    """The configured model family at `model.path`; no weights are loaded.

    Raises InputError if a local folder is no pipeline of that family, or `model.transformer` no such transformer.
    """
    from pgdpo.models.weights.start import check_start

    family = family_class(model.family)(model)
    check_start(family)
    return family
