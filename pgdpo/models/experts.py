"""Two transformers in one pipeline, each for its share of the noise levels (Wan 2.2 A14B).

The pipeline asks `transformer` from `boundary_ratio` of the way to pure noise up, and `transformer_2` below it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.later import torch
from pgdpo.models.weights.held import OneAtATime

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it in a folder
FOLDERS = {"high_noise": "transformer", "low_noise": "transformer_2"}


class Experts:
    """The expert that a run trains, and the other one, which is loaded when sampling first asks for it. With
    `model.expert: both` the high-noise one, on behalf of the two: each of them trains in a part of the run.

    `boundary`: the noise level at which the pipeline changes over; `load(folder, dtype)`: one of its transformers;
    `pipeline`: its class in diffusers. Raises InputError where a transformer or `model.other_adapter` is missing.
    """

    def __init__(
        self,
        model: ModelConfig,
        source: str,
        boundary: float,
        *,
        load: Callable[[str, torch.dtype], torch.nn.Module],
        pipeline: type,
    ) -> None:
        _check(model, source)
        self.boundary = boundary
        self.trains_high = model.expert != "low_noise"
        self.folder, self.other_folder = sorted(FOLDERS.values(), reverse=not self.trains_high)
        ranges = {"high_noise": (boundary, 1.0), "low_noise": (0.0, boundary), "both": (0.0, 1.0)}
        self.sigma_range = ranges[model.expert]
        # What gives the other one in place of a whole one on this rank, as ZeRO-3 wants it.
        self.open_other: Callable[[], torch.nn.Module] | None = None
        self._adapter, self._load, self._pipeline = model.other_adapter, load, pipeline
        self._held = OneAtATime()

    def at(self, transformer: torch.nn.Module, sigma: float) -> torch.nn.Module:
        """The one that the pipeline asks at `sigma`, given the one that trains."""
        if (sigma >= self.boundary) == self.trains_high:
            return transformer
        load = self.open_other or functools.partial(self._load_other, transformer)
        return self._held.get("other expert", load)

    def guidance(self, sigma: float, first: float, second: float | None) -> float:
        """Of the two guidance scales the one at `sigma`; without a second one the first is that of both."""
        return first if second is None or sigma >= self.boundary else second

    def release(self) -> None:
        """Let go of the other one."""
        self._held.drop_others()

    def adapt(self, other: torch.nn.Module) -> None:
        """Put `model.other_adapter` into the other one, where it is named."""
        if self._adapter is not None:
            state, metadata = self._pipeline.lora_state_dict(self._adapter, return_lora_metadata=True)
            self._pipeline.load_lora_into_transformer(state, other, metadata=metadata)

    def _load_other(self, like: torch.nn.Module) -> torch.nn.Module:
        """Whole, beside the one that trains and in its dtype."""
        other = self._load(self.other_folder, like.dtype)
        self.adapt(other)
        return other.to(like.device).eval().requires_grad_(False)


def has_experts(model: ModelConfig, boundary: float | None) -> bool:
    """Whether a pipeline has two experts, by the `boundary_ratio` in its index.

    Raises InputError unless `model.expert` is set where it has, and nowhere else.
    """
    if (model.expert is None) == (boundary is None):
        return boundary is not None
    if model.expert is None:
        raise _refused(
            model,
            f"it has two experts, above and below sigma {boundary:g}: set model.expert to both, high_noise or "
            "low_noise",
        )
    raise _refused(
        model,
        f"model.expert is {model.expert!r}, but it has one transformer for all noise levels (no boundary_ratio in "
        "model_index.json): leave model.expert out",
    )


def _check(model: ModelConfig, source: str) -> None:
    for folder in FOLDERS.values():
        if Path(source).is_dir() and not (Path(source) / folder / "config.json").is_file():
            raise _refused(model, f"its boundary_ratio asks for two experts and {folder}/ is missing")
    start = model.transformer
    missing = [folder for folder in FOLDERS.values() if start is not None and not (start / folder).is_dir()]
    if model.expert == "both" and missing:
        raise InputError(
            f"model.transformer is {str(start)!r}, and model.expert `both`: {missing[0]}/ is missing in it; name a "
            "merged export of both"
        )
    adapter = model.other_adapter
    if adapter is not None and not (adapter / LORA_FILE).is_file():
        raise InputError(
            f"model.other_adapter is {str(adapter)!r}: no {LORA_FILE} in it; name an export's folder"
        )


def _refused(model: ModelConfig, what: str) -> InputError:
    return InputError(f"model.path is {model.path!r}: {what}")
