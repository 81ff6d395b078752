"""A LoRA file, whoever wrote it, as what it adds to each layer of a transformer.

Read are safetensors under diffusers' names (this trainer's exports), under those of the models' original repositories
(ComfyUI, diffusion-pipe, ...) and with underscores for dots (kohya, musubi). diffusers' own readers are made to load
what they know and to leave the rest: they pass over tensors, take HunyuanVideo's width for 3072 and its alphas for
weights. Here nothing of a file is left out: what does not fit is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open

from pgdpo.config import AdapterConfig
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.comfyui import PREFIX, original_layers
from pgdpo.models.adapters.targets import in_block, linear_layers, targeted
from pgdpo.models.family import Family

KOHYA = "lora_unet_"
_MATRIX = re.compile(
    r"(?P<layer>.+?)\.(?:(?P<down>lora_A|lora_down|lora\.down)|lora_B|lora_up|lora\.up)(?:\.default)?\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to one layer's weight: `scale * up @ down`."""

    down: torch.Tensor  # fp32 [rank, inputs]
    up: torch.Tensor  # fp32 [outputs, rank]
    scale: float


def find_file(init: Path) -> Path:
    """The safetensors file at `model.adapter.init`. Raises InputError where there is none, or more than one."""
    if init.is_file():
        return init
    if not init.exists():
        raise _refused(init, "it is not there: name a LoRA's safetensors file, or a folder that holds one")
    files = sorted(init.glob("*.safetensors"))
    own = [file for file in files if file.name == LORA_WEIGHT_NAME_SAFE]
    if len(own or files) == 1:
        return (own or files)[0]
    if files:
        raise _refused(init, f"it holds {', '.join(file.name for file in files)}: name the one that is meant")
    hint = f" ({init / 'export'} is there)" if (init / "export").is_dir() else ""
    raise _refused(init, f"no safetensors file is in it{hint}: name a LoRA's file, or an export's folder")


def open_lora(family: Family, adapter: AdapterConfig) -> dict[str, Update]:
    """The LoRA at `adapter.init`, by the transformer's layers, checked against the model and the configured adapter.

    Loads none of the model's weights. Says in a line what is read, once. Raises InputError for a file that is no LoRA
    of this model, and for one of a larger rank or of other layers than the configuration's.
    """
    with torch.device("meta"):
        transformer = family.from_architecture(family.architecture())
    file = find_file(adapter.init)
    reader = _Reader(adapter.init, file, family, transformer)
    updates = reader.updates()
    _check_fits(updates, file, adapter)
    wanted = [name for name in linear_layers(transformer) if targeted(name, adapter.target_modules)]
    fresh = [name for name in wanted if name not in updates]
    say_once(  # policy and frozen reference start from the same file
        f"the adapter starts from {file}: {len(updates)} layers, rank {max(len(u.down) for u in updates.values())}"
        + ("; it says no alpha: taken for its rank" if reader.no_alpha else "")
        + (f"; {len(fresh)} layers of target_modules are not in it ({fresh[0]}, ...)" if fresh else "")
    )
    return updates


def init_digest(adapter: AdapterConfig | None) -> str | None:
    """Digest of the LoRA file that an adapter starts from; None where it starts from none. Raises as `find_file`."""
    return None if adapter is None or adapter.init is None else sha256_of(find_file(adapter.init))[:12]


def _refused(init: Path, what: str) -> InputError:
    return InputError(f"model.adapter.init is {str(init)!r}: {what}")


class _Reader:
    """One file's tensors, sorted by the layers that they are for."""

    def __init__(self, init: Path, file: Path, family: Family, transformer: torch.nn.Module) -> None:
        self.init, self.transformer = init, transformer
        self.no_alpha = False
        self._folder = family.transformer_folder
        self._prefixes = (PREFIX, "base_model.model.", "transformer.", f"{self._folder}.")
        self._modules: dict[str, list[str]] = {name: [name] for name in linear_layers(transformer)}
        originals = original_layers(family.comfyui, transformer)
        self._examples = [next(iter(self._modules)), *list(originals)[:1]]
        self._modules |= originals
        self._modules |= {KOHYA + name.replace(".", "_"): parts for name, parts in self._modules.items()}
        try:
            with safe_open(file, "pt") as opened:
                self._metadata = self._own_metadata(opened.metadata() or {})
                self._tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise _refused(
                init, f"{file.name} is no whole safetensors file ({reason}): nothing else is read"
            ) from error

    def updates(self) -> dict[str, Update]:
        """Layer of the transformer -> its update. Raises InputError for what is no LoRA of this transformer."""
        layers: dict[str, dict[str, torch.Tensor]] = {}
        strange = []
        for name, tensor in self._tensors.items():
            match = _MATRIX.fullmatch(name) or _ALPHA.fullmatch(name)
            layer = self._layer(match["layer"]) if match else None
            if layer is None:
                if tensor.any():  # zeros, as some files have for norms, change nothing
                    strange.append(name)
                continue
            kind = "alpha" if match.re is _ALPHA else "down" if match["down"] else "up"
            if layers.setdefault(layer, {}).setdefault(kind, tensor) is not tensor:
                raise _refused(self.init, f"it holds two LoRAs of `{layer}`, one of them `{name}`: keep one")
        if strange:
            raise self._strange(strange, bool(layers))
        if not layers:
            raise _refused(self.init, "no LoRA is in it (no tensor `....lora_A.weight`)")
        found: dict[str, Update] = {}
        for layer, parts in layers.items():
            for module, update in self._of_layer(layer, parts):
                if module in found:
                    raise _refused(
                        self.init, f"it holds `{module}` twice, also as a part of `{layer}`: keep one"
                    )
                found[module] = update
        return found

    def _layer(self, name: str) -> str | None:
        """The name without what trainers put before it; None where the model has no such layer."""
        while name not in self._modules:
            prefix = next((prefix for prefix in self._prefixes if name.startswith(prefix)), None)
            if prefix is None:
                return None
            name = name.removeprefix(prefix)
        return name

    def _strange(self, names: list[str], others: bool) -> InputError:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        known = "named as " + " or ".join(f"`{name}`" for name in self._examples)
        what = "it also holds" if others else "no LoRA of this model is in it: it holds"
        return _refused(
            self.init,
            f"{what} `{names[0]}`{more}: what is read are lora_A and lora_B (or lora_down, lora_up, alpha) of this "
            f"model's linear layers, {known}",
        )

    def _of_layer(self, layer: str, parts: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Update]]:
        """The updates of the modules that a layer of the file stands for: one, or those that the original fuses."""
        for kind, name in (("down", "lora_A"), ("up", "lora_B")):
            if kind not in parts:
                raise _refused(self.init, f"`{layer}` has no {name}: the file is cut off, or no LoRA")
        down, up = parts["down"].float(), parts["up"].float()
        modules = [(name, self.transformer.get_submodule(name)) for name in self._modules[layer]]
        inputs, outputs = modules[0][1].in_features, [module.out_features for _, module in modules]
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
            shapes = f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}"
            raise _refused(self.init, f"`{layer}` has {shapes}, which are no matrices of one rank")
        if (len(up), down.shape[1]) != (sum(outputs), inputs):
            raise _refused(
                self.init,
                f"`{layer}` is for a layer of {down.shape[1]} inputs and {len(up)} outputs, this model's has {inputs} "
                f"and {sum(outputs)}: it is a LoRA of another model",
            )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise _refused(self.init, f"`{layer}` holds numbers that are not finite")
        scale = self._scale(layer, modules[0][0], len(down), parts.get("alpha"))
        if len(modules) == 1:
            yield modules[0][0], Update(down, up, scale)
            return
        for (name, _), rows in zip(modules, up.split(outputs), strict=True):
            used = rows.any(0)  # of a LoRA per part, that stand as blocks, the part's own
            if used.any():
                yield name, Update(down[used], rows[:, used], scale)

    def _scale(self, layer: str, module: str, rank: int, alpha: torch.Tensor | None) -> float:
        """alpha / rank; alpha from beside the matrices, from the metadata, or the rank itself."""
        if alpha is not None:
            value = float(alpha) if alpha.numel() == 1 else math.nan
        else:
            by_layer = self._metadata.get("alpha_pattern") or {}
            own = [alpha for name, alpha in by_layer.items() if targeted(module, [name])]
            value = own[0] if own else self._metadata.get("lora_alpha")
        if value is None:
            self.no_alpha = True
            return 1.0
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value == 0:
            raise _refused(self.init, f"the alpha of `{layer}` is {value!r}: a number other than 0 is needed")
        return value / (math.sqrt(rank) if self._metadata.get("use_rslora") else rank)

    def _own_metadata(self, metadata: Mapping[str, str]) -> dict:
        """The LoraConfig that diffusers keeps beside the tensors, of the transformer that trains."""
        text = metadata.get(LORA_ADAPTER_METADATA_KEY)
        if text is None:
            return {}
        try:
            found = {key.partition(".")[::2]: value for key, value in json.loads(text).items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise _refused(self.init, f"its {LORA_ADAPTER_METADATA_KEY} is no JSON object") from error
        folders = {folder for folder, _ in found}
        mine = self._folder if self._folder in folders else "transformer"
        own = {key: value for (folder, key), value in found.items() if folder == mine}
        if not isinstance(own.get("alpha_pattern") or {}, dict):
            raise _refused(self.init, f"alpha_pattern in its {LORA_ADAPTER_METADATA_KEY} is no JSON object")
        return own


def _check_fits(updates: Mapping[str, Update], file: Path, adapter: AdapterConfig) -> None:
    """Raises InputError naming the key that leaves out a part of the file."""
    largest = max(updates, key=lambda name: len(updates[name].down))
    rank = len(updates[largest].down)
    if rank > adapter.rank:
        raise InputError(
            f"model.adapter.rank is {adapter.rank}: {file} has rank {rank} (`{largest}`): set model.adapter.rank to "
            f"{rank} or more, and model.adapter.alpha as you want it: the file's update stays what it is"
        )
    outside = [name for name in updates if not targeted(name, adapter.target_modules)]
    if outside:
        ends = dict.fromkeys(map(in_block, outside))
        raise InputError(
            f"model.adapter.target_modules is {adapter.target_modules}: {file} has a LoRA of {len(outside)} layers "
            f"that these leave out (`{outside[0]}`, ...): set it to [{', '.join([*adapter.target_modules, *ends])}]"
        )
