"""Record the golden losses anew, after a change that is meant to move them.

    python -m tests.golden.renew --reason "pairs are weighted by ..."

The reason is written beside the losses, so that a commit's diff holds both; give it in the commit's message too. The
runs are made twice, and nothing is written if the two differ.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests import counted
from tests.golden.record import STACK, differences, read, write
from tests.golden.runs import RUNS, run_all
from tests.ranks import Ranks, Zygote


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.renew", description=__doc__.splitlines()[0])
    parser.add_argument("--reason", required=True, help="What moved the losses, and why that is right.")
    reason = parser.parse_args(arguments).reason.strip()
    if not reason:
        parser.error("--reason is empty: say what moved the losses, and why that is right")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[counted.FOLDER] = folder
        zygote = Zygote()
        try:
            ranks = Ranks({False: zygote}, Path(folder))
            found, again = (run_all(Path(folder) / name, ranks) for name in ("first", "second"))
        finally:
            zygote.close()
    unsteady = differences({run: found.tables[run] for run in RUNS}, again.tables, exact=True)
    if unsteady:
        parser.exit(1, "nothing recorded: two runs in a row differ\n" + "\n".join(map(str, unsteady)) + "\n")
    try:
        moved = [str(one) for one in differences(read().tables, found.tables, exact=True)]
    except AssertionError:  # nothing, or not all, was recorded
        moved = []
    write(found, reason)
    print("\n".join(["recorded in " + str(STACK.parent), *moved]))


if __name__ == "__main__":
    main()
