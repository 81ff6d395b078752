"""Whether `model.transformer` holds weights of the path's own architecture."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING

from pgdpo.messages.errors import InputError

if TYPE_CHECKING:
    from pgdpo.models.family import Family


def check_start(family: Family) -> None:
    """Raises InputError unless `model.transformer`, where it is set, holds a transformer like the path's own."""
    folder = family.start_folder
    if folder is None:
        return
    if not (folder / "config.json").is_file():
        raise _no_start(
            family,
            f"neither {family.transformer_folder}/config.json nor config.json is there: name a folder of weights as "
            "diffusers saves them, such as what `pgdpo export --format merged` writes",
        )
    found = dict(family.transformer_class.load_config(str(folder)))
    if found.get("_class_name") != family.transformer_class.__name__:
        raise _no_start(
            family,
            f"it is a {found.get('_class_name')}, model.family `{family.model.family}` needs a "
            f"{family.transformer_class.__name__}",
        )
    theirs, ours = (
        _with_defaults(family.transformer_class, config) for config in (found, family.architecture())
    )
    other = [
        f"{key} is {theirs.get(key)}, there {ours.get(key)}" for key in ours if theirs.get(key) != ours[key]
    ]
    if other:
        raise _no_start(
            family,
            f"it is another architecture than model.path's ({', '.join(other[:3])}): take the model that it was "
            "trained from as model.path",
        )


def _no_start(family: Family, what: str) -> InputError:
    return InputError(f"model.transformer is {str(family.model.transformer)!r}: {what}")


def _with_defaults(kind: type, config: dict) -> dict:
    """A model's configuration as JSON types, with the defaults of what its file leaves out, as an older one does."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    found = {name: config.get(name, default) for name, default in defaults.items()}
    return {
        name: None if value is inspect.Parameter.empty else json.loads(json.dumps(value))
        for name, value in found.items()
    }
