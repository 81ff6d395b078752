"""Several commands in one group of ranks, because starting one takes longer than a small run.

python -m torch.distributed.run ... -m tests.many_runs '[["train", "config.yaml", "name=a", "train.zero_stage=1"], ...]'
"""

import json
import sys

from tests.worlds import run_pgdpo

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        run_pgdpo(*command)
