"""Run a trainer's script, print every loss that it takes gradients of: `python record.py [STEPS] SCRIPT [ARGUMENTS]`.

Its own logs round to a few digits. STEPS ends the run after so many losses: some scripts go on forever.
"""

import itertools
import runpy
import sys

import torch

backward, steps, last = torch.Tensor.backward, itertools.count(), None


def recorded(loss: torch.Tensor, *arguments, **keywords) -> None:
    step = next(steps)
    print(f"step {step}: loss {loss.item()!r}", flush=True)
    backward(loss, *arguments, **keywords)
    if step == last:
        sys.exit()


if __name__ == "__main__":
    torch.Tensor.backward = recorded
    sys.argv = sys.argv[1:]
    if sys.argv[0].isdecimal():
        last = int(sys.argv.pop(0)) - 1
    runpy.run_path(sys.argv[0], run_name="__main__")
