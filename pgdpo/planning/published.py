"""Published models whose configuration files ship with pgdpo, so that a machine without network can plan for them.

`assets/architectures/<owner>--<name>/` holds what planning reads: the transformer's and the VAE's configuration, the
pipeline's index and its scheduler. The other parts' files are empty: no weights, no tokenizer, nothing to train with.
Those of CogVideoX 1.5, of CogVideoX's image-to-video models and of LTX-2 are what diffusers' conversion scripts make
(scripts/convert_cogvideox_to_diffusers.py, convert_ltx2_to_diffusers.py), not checked against the published weights.
"""

from __future__ import annotations

from pgdpo.config import ModelConfig
from pgdpo.files.pipeline import shipped_folder
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.family import Family


def open_to_plan(model: ModelConfig) -> tuple[Family, str | None]:
    """(the family, where its configuration was taken from if not from `model.path`).

    A hub id that cannot be reached is looked up among the published models. Raises InputError as `open_family` does.
    """
    try:
        return open_family(model), None
    except InputError:
        if not shipped_folder(model.path).is_dir():
            raise
    return published(
        model
    ), f"{model.path} was not reached: planned for the architecture that pgdpo knows it by"


def published(model: ModelConfig) -> Family:
    """The family of a published model's own configuration files, without a look at the network."""
    return open_family(model.model_copy(update={"path": str(shipped_folder(model.path)), "revision": None}))
