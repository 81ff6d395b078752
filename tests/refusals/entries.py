"""What a line of the table says of a raise."""

from __future__ import annotations

from enum import Enum


class Why(Enum):
    """Why no check can foresee a refusal."""

    RUN = (
        "it shows in the middle of a run: a step, a damaged checkpoint, a full disk, another rank that ended"
    )
    WEIGHTS = "weights are read for it"
    MACHINE = (
        "it hangs on what the machine has when the command starts: ranks, room on the disk, the GPU's memory"
    )
    ANOTHER = (
        "it is about the arguments of one command, or about a run that is there, not about the configuration"
    )
    STEP = "a command that comes in between makes what is missing"
    PASSED_ON = "it hands on what another raise said"
    EARLIER = "command and check refuse the same input earlier, by another raise"
    CLIP = "check decodes each clip to its end by the same functions; tests/faults/inputs/test_clips.py has such clips"
    CALLER = (
        "no configuration comes to it: it guards against callers in Python and other versions of libraries"
    )


class By:
    """Inputs on which the command refuses there, and `check` with the key's words, or `says` where it has its own."""

    def __init__(self, *inputs: str, says: tuple[str, ...] = ()) -> None:
        self.inputs, self._says = inputs, says

    def words(self, part: str) -> tuple[str, ...]:
        return self._says or (part,)
