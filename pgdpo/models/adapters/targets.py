"""Which layers of a transformer `model.adapter.target_modules` names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import torch

from pgdpo.config import AdapterConfig
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.comfyui import original_layers
from pgdpo.models.family import Family

SHOWN = 3  # names in a message


def linear_layers(transformer: torch.nn.Module) -> list[str]:
    """Names of the linear layers, in the model's order."""
    return [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


def targeted(module: str, targets: list[str]) -> bool:
    """As peft takes target_modules: whole names, or ends of them."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def in_block(layer: str) -> str:
    """A layer's name behind its block's number: the names of one block stand for those of all."""
    return re.sub(r"^.*?\.\d+\.", "", layer)


def check_targets(family: Family, adapter: AdapterConfig) -> None:
    """Hold `target_modules` against the architecture; loads no weights. Says which layers outside the blocks they take.

    Raises InputError for names that no linear layer has, with the nearest, and for those that other modules have too:
    peft refuses most of these, and adapts a convolution that nobody meant.
    """
    with torch.device("meta"):
        transformer = family.from_architecture(family.architecture())
    linear, key = linear_layers(transformer), f"model.adapter.target_modules is {adapter.target_modules}"
    absent = [target for target in adapter.target_modules if not any(targeted(n, [target]) for n in linear)]
    if absent:
        names = _names(linear)
        originals = original_layers(family.comfyui, transformer)
        named = ", ".join(f"`{target}`{_meant(target, names, originals)}" for target in absent)
        raise InputError(
            f"{key}: no linear layer of this model is called {named}; allowed are ends of their names: "
            f"{', '.join(dict.fromkeys(map(in_block, linear)))}"
        )
    for target in adapter.target_modules:
        for name, module in transformer.named_modules():
            if targeted(name, [target]) and not isinstance(module, torch.nn.Linear):
                meant = dict.fromkeys(in_block(layer) for layer in linear if targeted(layer, [target]))
                raise InputError(
                    f"{key}: `{target}` is also `{name}`, a {type(module).__name__}, and a LoRA is for linear layers: "
                    f"write what is meant of {', '.join(meant)}"
                )
    _say_outside(family, adapter.target_modules, linear)


def _names(linear: list[str]) -> list[str]:
    """Everything that a layer can be called by in target_modules, but for a block's number."""
    ends = dict.fromkeys(map(in_block, linear))
    return list(dict.fromkeys(name for end in ends for name in _ends(end)))


def _ends(name: str) -> Iterator[str]:
    """`attn1.to_q` -> `attn1.to_q`, `to_q`."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _meant(target: str, names: list[str], originals: Mapping[str, list[str]]) -> str:
    """The layers that the original repository calls so, else the nearest name."""
    theirs = [layer for name, layers in originals.items() if targeted(name, [target]) for layer in layers]
    if theirs:
        ours = ", ".join(map(_quoted, dict.fromkeys(map(in_block, theirs))))
        return f" (the original repository's name of {ours})"
    near = difflib.get_close_matches(target, names, n=SHOWN)
    return f" (the nearest: {', '.join(map(_quoted, near))})" if near else ""


def _say_outside(family: Family, targets: list[str], linear: list[str]) -> None:
    """Names that were meant for the blocks and that layers beside these have too: HunyuanVideo's refiner of text."""
    inside = tuple(f"{blocks}." for blocks in family.sharing.blocks)
    for target in targets:
        taken = [name for name in linear if targeted(name, [target])]
        outside = [name for name in taken if not name.startswith(inside)]
        if outside and len(outside) < len(taken):
            more = f" and {len(outside) - SHOWN} more" if len(outside) > SHOWN else ""
            say_once(
                f"model.adapter.target_modules: `{target}` names {len(taken) - len(outside)} layers of the blocks and, "
                f"outside them, {', '.join(outside[:SHOWN])}{more}: these get an adapter too"
            )


def _quoted(name: str) -> str:
    return f"`{name}`"
