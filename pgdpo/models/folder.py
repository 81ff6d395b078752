"""What lies in a pipeline's folder, held against what its family needs."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from pgdpo.messages.errors import InputError


def check_parts(pipeline_class: type, folder: Path, path: str) -> None:
    """Raises InputError unless the parts that the pipeline's constructor asks for are there, with its VAE class."""
    parameters = inspect.signature(pipeline_class).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [f"{name}/" for name in needed if not any((folder / name).glob("*config.json"))]
    if missing:
        raise InputError(
            f"model.path is {path!r}: {folder} has no {', '.join(missing)}; a diffusers folder of a "
            f"{pipeline_class.__name__} holds {', '.join(needed)}: copy it whole, or give its hub id"
        )
    wanted = parameters["vae"].annotation.__name__
    found = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if found != wanted:
        raise InputError(
            f"model.path is {path!r}: its vae is a {found}, a {pipeline_class.__name__} needs a {wanted}"
        )


def read_architecture(
    transformer_class: type, source: str, subfolder: str, *, path: str, family: str
) -> dict:
    """The transformer's configuration, as diffusers stores it.

    Raises InputError if it cannot be read or is of another class.
    """
    wanted = transformer_class.__name__
    try:
        config = dict(transformer_class.load_config(source, subfolder=subfolder))
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.path is {path!r}: the transformer's configuration cannot be read ({reason}): give a local "
            "diffusers folder, or a hub id that this machine reaches"
        ) from error
    if config.get("_class_name") != wanted:
        raise InputError(
            f"model.path is {path!r}: its transformer is a {config.get('_class_name')}, model.family "
            f"`{family}` needs a {wanted}"
        )
    return config
