"""What a file costs to read: `peaks(reader, paths)` -> what each reading said, and its peak of memory.

Run as a program, a process that has imported no torch forks one child per file: a child's peak then is the reading's,
over a few tens of megabytes. (A child that is started by fork and exec would count its parent's peak as its own.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def peaks(reader: str, paths: Iterable[Path]) -> list[dict]:
    """For each path: `text`, what the reader of that name returned or the InputError it raised; `peak_bytes`."""
    command = [sys.executable, "-m", "tests.faults.inputs.peaks", reader, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
    if done.returncode:
        raise AssertionError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_pairs(manifest: str) -> str:
    """What `pgdpo prepare` does with a manifest's clips before it encodes them, at 24 frames of 160x256."""
    from pgdpo.config import DataConfig
    from pgdpo.data.clips import Sampling, clip_identity, plan_pair, read_pair
    from pgdpo.data.sources import read_rows

    for row in read_rows(DataConfig(train=manifest), "train"):
        clip_identity(row)
        for _ in read_pair(row, plan_pair(row, (24, 160, 256), Sampling(8))):
            pass
    return "read"


def read_table(path: str) -> str:
    """The records of a file, one by one."""
    from pgdpo.files.tables import read_records

    return f"{sum(1 for _ in read_records(path))} records"


def measure(reader: str, path: str) -> dict:
    """One reading in a child of its own."""
    from pgdpo.messages.errors import InputError

    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = globals()[reader](path)
        except InputError as error:
            text = str(error)
        except BaseException as error:
            text = f"{type(error).__name__}, which is no InputError: {error}"
        os.write(target, text.encode()[:4000])
        os._exit(0)
    os.close(target)
    with os.fdopen(source, errors="replace") as stream:
        text = stream.read()
    _, _, usage = os.wait4(child, 0)
    return {"text": text, "peak_bytes": usage.ru_maxrss * 1024}


def main(reader: str, paths: list[str]) -> None:
    import av  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401

    import pgdpo.data.clips
    import pgdpo.data.sources  # noqa: F401

    assert "torch" not in sys.modules
    for path in paths:
        print(json.dumps(measure(reader, path)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
