"""A transformer built under ZeRO-3 without any rank ever holding all of it.

The architecture is laid out on the meta device; then, module by module, the main rank reads the module's tensors, all
ranks get them by DeepSpeed's broadcast, and each keeps its share alone. What a rank holds at any moment is its shares
and one module. (DeepSpeed's own `zero.Init` around `from_pretrained` leaves the weights empty, and it casts the modules
that a model wants in fp32.)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from deepspeed.utils import groups
from safetensors import safe_open

from pgdpo.messages.console import is_main_rank
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models.family import Family
from pgdpo.models.weights.kept import held_dtype

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name, also of the index's shards


def load_sharded(
    family: Family,
    *,
    dtype: torch.dtype,
    device: torch.device,
    deepspeed_config: dict,
    random_init_seed: int | None = None,
    folder: str | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> torch.nn.Module:
    """What `family.load_transformer` gives, each parameter partitioned over all ranks; every rank must call it.

    `folder`: of another transformer of the pipeline, of the same architecture. `weights`: to take in the place of the
    pipeline's, of the same names and shapes.
    Raises InputError if the folder's safetensors lack a tensor of the architecture, or have it in another shape.
    """
    with init_empty_weights(include_buffers=False):
        transformer = family.from_architecture(family.architecture())
    folder = folder or family.transformer_folder
    if weights is not None:
        read = weights.__getitem__ if is_main_rank() else None
    else:
        read = _reader(family, folder, transformer, dtype, random_init_seed)
    shard = _Sharder(deepspeed_config)
    for prefix, module in transformer.named_modules():
        for name, meta in module.named_parameters(prefix, recurse=False):
            value = _value(transformer, name, meta, dtype, read)
            setattr(module, name.rpartition(".")[2], torch.nn.Parameter(value.to(device)))
        shard(list(module.parameters(recurse=False)))
        moved(f"loading {prefix}")
        for name in _saved_buffers(module, prefix):
            value = _value(transformer, name, transformer.get_buffer(name), dtype, read).to(device)
            dist.broadcast(value, 0)
            setattr(module, name.rpartition(".")[2], value)
    return transformer.to(device)


def gather_in_forward(transformer: torch.nn.Module) -> None:
    """Let what `load_sharded` gave run forward without an engine: each module's parameters are whole while it runs.

    DeepSpeed's engines gather ahead and are faster, but what they have run is never freed: a cache of theirs keeps it.
    """
    for module in transformer.modules():
        own = [p for p in module.parameters(recurse=False) if hasattr(p, "ds_id")]  # an adapter's are whole
        if own:
            module.register_forward_pre_hook(functools.partial(_gather, own))
            module.register_forward_hook(functools.partial(_part, own))


def share_expert(family: Family, *, dtype: torch.dtype, device: torch.device, deepspeed_config: dict) -> None:
    """Where the family asks a second expert, which doesn't train: let each rank hold its share of it alone. All ranks
    ask for it at one time."""
    if family.experts is None:
        return

    def open_other() -> torch.nn.Module:
        folder = family.experts.other_folder
        options = {"dtype": dtype, "device": device, "deepspeed_config": deepspeed_config}
        other = load_sharded(family, folder=folder, **options)
        gather_in_forward(other)
        family.experts.adapt(other)
        return other.eval().requires_grad_(False)

    family.experts.open_other = open_other


def _gather(parameters: list[torch.nn.Parameter], *_: object) -> None:
    parameters[0].all_gather(param_list=parameters)


def _part(parameters: list[torch.nn.Parameter], *_: object) -> None:
    parameters[0].partition(param_list=parameters, has_been_updated=False)


def _value(
    transformer: torch.nn.Module, name: str, like: torch.Tensor, dtype: torch.dtype, read: Callable | None
) -> torch.Tensor:
    """A tensor of the checkpoint in the dtype that diffusers' `from_pretrained` gives it; its room on other ranks."""
    kind = held_dtype(transformer, name, dtype)
    return read(name).to(kind).contiguous() if read else torch.empty(like.shape, dtype=kind)


def _saved_buffers(module: torch.nn.Module, prefix: str) -> list[str]:
    names = dict(module.named_buffers(prefix, recurse=False))
    return [name for name in names if name.rpartition(".")[2] not in module._non_persistent_buffers_set]


class _Sharder:
    """Partitions lists of parameters, all through one `zero.Init`: it may hold buffers for NVMe."""

    def __init__(self, deepspeed_config: dict) -> None:
        self._config = deepspeed_config
        self._convert: Callable | None = None

    def __call__(self, parameters: list[torch.nn.Parameter]) -> None:
        if not parameters:
            return
        if self._convert is None:
            # `zero.Init` takes a module, and would take its submodules too.
            first = torch.nn.ParameterList(parameters)
            # The second model's would make the group of zero_hpz_partition_size again, which DeepSpeed refuses.
            group = groups._get_zero_param_intra_parallel_group()
            deepspeed.zero.Init(
                module=first, config_dict_or_path=self._config, zero_param_parallel_group=group
            )
            self._convert = parameters[0].convert_to_zero_parameters
        else:
            self._convert(param_list=parameters)


def _reader(
    family: Family,
    folder: str,
    transformer: torch.nn.Module,
    dtype: torch.dtype,
    random_init_seed: int | None,
) -> Callable[[str], torch.Tensor] | None:
    """Name -> tensor on the CPU, on the main rank; None on the others.

    Fresh random weights are drawn in the main rank's host memory, so that they are those of a single process.
    """
    if not is_main_rank():
        return None
    if random_init_seed is not None:
        fresh = family.load_transformer(dtype=dtype, random_init_seed=random_init_seed)
        return fresh.state_dict().pop
    return _Safetensors(weights_folder(family, folder), transformer).read


def weights_folder(family: Family, part: str) -> Path:
    """The folder with a transformer's safetensors; that of a hub id is downloaded first."""
    local = family.part_folder(part)
    if local is not None:
        return local
    family.fetch(part)
    return Path(family.source) / part


def check_files(family: Family) -> None:
    """Raises InputError as `load_sharded` would, by the headers of the files alone; a hub id's are not looked at."""
    folder = family.part_folder(family.transformer_folder)
    if folder is not None:
        with torch.device("meta"):
            _Safetensors(folder, family.from_architecture(family.architecture()))


class _Safetensors:
    """Tensors by name out of one safetensors file or of an index's shards, checked against an architecture first."""

    def __init__(self, folder: Path, transformer: torch.nn.Module) -> None:
        self._files = {name: folder / file for name, file in _files_by_name(folder).items()}
        self._open: dict[Path, object] = {}
        for name, tensor in transformer.state_dict().items():
            if name not in self._files:
                raise InputError(
                    f"{folder}: no tensor `{name}`, which the transformer's config.json asks for"
                )
            shape = tuple(self._handle(name).get_slice(name).get_shape())
            if shape != tuple(tensor.shape):
                raise InputError(
                    f"{self._files[name]}: `{name}` is {shape}, the transformer's config.json asks for "
                    f"{tuple(tensor.shape)}"
                )

    def _handle(self, name: str):
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def read(self, name: str) -> torch.Tensor:
        return self._handle(name).get_tensor(name)


def _files_by_name(folder: Path) -> Mapping[str, str]:
    """Tensor name -> file name."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: neither {WEIGHTS} nor its index: ZeRO-3 reads safetensors alone")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS)
