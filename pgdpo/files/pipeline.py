"""Which diffusers pipeline lies at a `model.path`: read from the JSON beside its weights, without torch or diffusers.

A pipeline names its class in `model_index.json`; of a hub id that file alone is fetched, and of a model whose
architecture ships (`assets/architectures`) nothing is.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from pgdpo.files.reach import reach, silent
from pgdpo.messages.errors import InputError

ASSETS = Path(__file__).parent.parent / "assets"
TOYS = {"toy": "toy_base", "toy_sound": "toy_base_sound"}  # models that ship whole, in ASSETS
INDEX, MODULAR, CONFIG = "model_index.json", "modular_model_index.json", "config.json"
LORA = "pytorch_lora_weights.safetensors"
CHECKPOINTS = (".safetensors", ".gguf", ".ckpt", ".pth", ".pt", ".bin")
WANTED = "give a diffusers folder (model_index.json, transformer/, vae/, ...) or its hub id"
# What a part that trains is named as, beside the pipeline that it is of.
BESIDE = "name the pipeline that it is of as model.path, and this as model.transformer"


def is_hub_id(path: str) -> bool:
    """Whether `model.path` names a repository of the hub: `owner/name`, where no such folder is."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def shipped_folder(path: str) -> Path:
    """Where the configuration files of a published model lie that ship with pgdpo, if they do."""
    return ASSETS / "architectures" / path.replace("/", "--")


def pipeline_at(path: str, revision: str | None = None, *, bare: bool = False) -> str:
    """The class of the pipeline that `model.path` names, by the files that are at hand before any weight is.

    `bare`: a transformer alone is enough, as it is beside the toy's encoders; then its class. Raises InputError for
    what is no pipeline, and for a hub id that can't be read.
    """
    return pipeline_in(_folder(path, revision), path, bare=bare)


def configurations(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in the index of the pipeline at `model.path`, and in its transformer's configuration."""
    folder = _folder(path, None)
    return _mapping(folder / INDEX), _mapping(folder / "transformer" / CONFIG)


def _folder(path: str, revision: str | None) -> Path:
    """Where the small files lie that say what a model is."""
    if path in TOYS:
        return ASSETS / TOYS[path]
    if not is_hub_id(path):
        return Path(path)
    known = shipped_folder(path)
    return known if known.is_dir() else _fetched(path, revision)


def pipeline_in(folder: Path, path: str, *, bare: bool = False) -> str:
    """As `pipeline_at`, of a folder on this machine; `path`: what `model.path` calls it."""
    if (folder / INDEX).is_file():
        return _class_in(folder / INDEX, path)
    if bare and (folder / "transformer" / CONFIG).is_file():
        return _class_in(folder / "transformer" / CONFIG, path)
    raise InputError(f"model.path is {path!r}: {_what_else(folder)}")


def _class_in(file: Path, path: str) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"model.path is {path!r}: its {file.name} is to name a class (_class_name) and cannot be read "
            f"({type(error).__name__}: {error}): copy it again"
        ) from error


def _what_else(folder: Path) -> str:
    """What a path without a pipeline's index is, and what to do."""
    if folder.is_file():
        return (
            "it is a file, as ComfyUI and the models' own repositories have checkpoints; diffusers makes a folder of "
            f"it (`TRANSFORMER_CLASS.from_single_file(FILE).save_pretrained(FOLDER)`): {BESIDE}"
        )
    if not folder.is_dir():
        return f"there is no such folder: {WANTED}"
    if (folder / MODULAR).is_file():
        return _modular(_mapping(folder / MODULAR))
    if (folder / LORA).is_file():
        return "it is a LoRA: name it as model.adapter.init, and the pipeline that it is of as model.path"
    configs = [folder / part / CONFIG for part in ("", "transformer") if (folder / part / CONFIG).is_file()]
    found = str(_mapping(configs[0]).get("_class_name")) if configs else ""
    if "Transformer" in found:
        return f"it is a transformer alone, a {found}: {BESIDE}"
    files = [file.name for file in sorted(folder.iterdir()) if file.suffix in CHECKPOINTS]
    if configs or files:
        own = files[0] if files else CONFIG
        return f"it has {own} and no {INDEX}, as ComfyUI and the models' own repositories do: {WANTED}"
    return f"no {INDEX} in {folder}: {WANTED}"


def _modular(index: dict) -> str:
    parts = [spec[-1] for spec in index.values() if isinstance(spec, list) and spec]
    named = [part.get("pretrained_model_name_or_path") for part in parts if isinstance(part, dict)]
    sources = ", ".join(sorted(set(filter(None, named))))
    mend = f"give the pipeline that its parts are of ({sources})" if sources else WANTED
    return f"it is a modular pipeline, a {index.get('_class_name')} of {MODULAR}: {mend}"


def _mapping(file: Path) -> dict[str, Any]:
    """A file's JSON; empty where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fetched(repository: str, revision: str | None) -> Path:
    """The hub's cache of a repository, with those of its files in it that say what it is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    names = [INDEX, MODULAR, CONFIG, f"transformer/{CONFIG}"]
    fetch = functools.partial(
        snapshot_download, repository, revision=revision, allow_patterns=names, tqdm_class=silent()
    )
    try:
        here = Path(fetch(local_files_only=True))
        if (here / INDEX).is_file() or (here / MODULAR).is_file():
            return here
    except (OSError, ValueError):  # it has never been asked for
        pass
    try:
        reach(repository)
        return Path(fetch())
    except (OSError, ValueError, HTTPError) as error:
        at = f" at model.revision {revision!r}" if revision else ""
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.path is {repository!r}: its {INDEX}, which names the family, cannot be read from the hub{at} "
            f"({reason}): give a hub id and a revision that this machine reaches, or a local diffusers folder; without "
            "a network, set model.family"
        ) from error
