"""The model families, whose classes stand in `pgdpo/models/families/NAME.py`, as a configuration knows them: by name,
and without torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pgdpo import plugins
from pgdpo.config.evaluate import EvaluateConfig


def families() -> tuple[str, ...]:
    """Their names."""
    return plugins.found(plugins.FAMILIES)


def family_class(name: str) -> type[Any]:
    """The class of one of `families()`, a `models.family.Family`, which is not opened at any path."""
    return plugins.load(plugins.FAMILIES, name, "FAMILY")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """What a pipeline is told besides prompt, size and noise."""

    steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None  # of Wan 2.2's low-noise expert
    flow_shift: float | None = None  # None: the scheduler's own
    negative_prompt: str = ""  # empty too where there is no guidance, which alone reads it

    def __str__(self) -> str:
        second = "" if self.guidance_scale_2 is None else f" (low-noise expert: {self.guidance_scale_2:g})"
        shift = "the scheduler's own" if self.flow_shift is None else f"{self.flow_shift:g}"
        negative = f"{self.negative_prompt!r}" if self.negative_prompt else "empty"
        return (
            f"{self.steps} steps, guidance {self.guidance_scale:g}{second}, flow shift {shift}, negative prompt "
            f"{negative}"
        )


TOY_CARD = SampleSettings(16, 2.0)  # as configs/quickstart.yaml was measured


def sample_settings(evaluate: EvaluateConfig, found: SampleSettings) -> SampleSettings:
    """`found` of the model (`Family.sampling`), with the keys of `evaluate` before it.

    Without guidance (a `guidance_scale` of 1) no negative prompt is read, and none is named.
    """
    if evaluate.guidance_scale is not None and found.guidance_scale_2 is not None:
        # As WanPipeline: one guidance scale that is given is that of both experts.
        found = dataclasses.replace(found, guidance_scale_2=evaluate.guidance_scale)
    given = {
        "steps": evaluate.sampling_steps,
        "guidance_scale": evaluate.guidance_scale,
        "guidance_scale_2": evaluate.guidance_scale_2,
        "flow_shift": evaluate.flow_shift,
        "negative_prompt": evaluate.negative_prompt,
    }
    found = dataclasses.replace(found, **{key: value for key, value in given.items() if value is not None})
    return found if found.guidance_scale > 1 else dataclasses.replace(found, negative_prompt="")
