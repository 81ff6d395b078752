"""One file per model family, each a `Family`; `open_family` takes the configured one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pgdpo.config import ModelConfig
from pgdpo.models.weights.start import check_start

if TYPE_CHECKING:
    from pgdpo.models.family import Family

FAMILIES = {
    "wan": "pgdpo.models.wan:Wan",
    "hunyuan_video": "pgdpo.models.hunyuan_video:HunyuanVideo",
    "cogvideox": "pgdpo.models.cogvideox:CogVideoX",
    "ltx": "pgdpo.models.ltx:LTX",
}


def open_family(model: ModelConfig) -> Family:
    """The configured model family at `model.path`; no weights are loaded.

    Raises InputError if a local folder is no pipeline of that family, or `model.transformer` no such transformer.
    """
    module, name = FAMILIES[model.family].split(":")
    family = getattr(importlib.import_module(module), name)(model)
    check_start(family)
    return family
