"""One file per model family, `families/NAME.py` with its class as `FAMILY`; `open_family` takes the configured one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.config.families import family_class, family_of
from pgdpo.files.pipeline import pipeline_at

if TYPE_CHECKING:
    from pgdpo.config import ModelConfig
    from pgdpo.models.family import Family


def open_family(model: ModelConfig) -> Family:
    """The configured model family at `model.path`; no weights are loaded.

    `model.family: auto`, which a configuration that was read from a file no longer has, is that of the folder. Raises
    InputError if `model.path` is no pipeline of that family, or `model.transformer` no such transformer.
    """
    from pgdpo.models.weights.start import check_start

    name = model.family
    if name == "auto":
        name = family_of(pipeline_at(model.path, model.revision, bare=model.encoders == "toy"), model.path)
    opened = family_class(name)
    if name != model.family or type(model) is not opened.settings:
        # A ModelConfig that was made by hand lacks the keys that this family has besides.
        model = opened.settings(**model.model_dump() | {"family": name})
    family = opened(model)
    check_start(family)
    return family
