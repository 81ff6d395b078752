"""What lies in a pipeline's folder, held against what its family needs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pgdpo.messages.errors import InputError

if TYPE_CHECKING:
    from pgdpo.models.family import Family


def check_parts(family: Family) -> None:
    """Raises InputError unless the parts that the pipeline's constructor asks for are there, with its VAE class."""
    folder, path = Path(family.source), family.model.path
    parameters = inspect.signature(family.pipeline_class).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [f"{name}/" for name in needed if not any((folder / name).glob("*config.json"))]
    if missing:
        raise InputError(
            f"model.path is {path!r}: {folder} has no {', '.join(missing)}; a diffusers folder of a "
            f"{family.pipeline_class.__name__} holds {', '.join(needed)}: copy it whole, or give its hub id"
        )
    wanted = parameters["vae"].annotation.__name__
    found = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if found != wanted:
        raise InputError(
            f"model.path is {path!r}: its vae is a {found}, a {family.pipeline_class.__name__} needs a {wanted}"
        )


def read_architecture(family: Family) -> dict:
    """The transformer's configuration, as diffusers stores it.

    Raises InputError if it cannot be read or is of another class.
    """
    path, wanted = family.model.path, family.transformer_class.__name__
    try:
        config = dict(
            family.transformer_class.load_config(family.source, subfolder=family.transformer_folder)
        )
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.path is {path!r}: the transformer's configuration cannot be read ({reason}): give a local "
            "diffusers folder, or a hub id that this machine reaches"
        ) from error
    if config.get("_class_name") != wanted:
        raise InputError(
            f"model.path is {path!r}: its transformer is a {config.get('_class_name')}, model.family "
            f"`{family.model.family}` needs a {wanted}"
        )
    return config
