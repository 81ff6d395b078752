"""Run a trainer's script and print every loss that it takes gradients of: `python record.py SCRIPT [ARGUMENTS]`.

Its own logs round to a few digits.
"""

import itertools
import runpy
import sys

import torch

backward, steps = torch.Tensor.backward, itertools.count()


def recorded(loss: torch.Tensor, *arguments, **keywords) -> None:
    print(f"step {next(steps)}: loss {loss.item()!r}", flush=True)
    backward(loss, *arguments, **keywords)


if __name__ == "__main__":
    torch.Tensor.backward = recorded
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
