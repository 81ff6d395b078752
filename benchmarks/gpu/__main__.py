"""`python -m benchmarks.gpu --minutes M --out DIR`: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import __doc__ as about
from .driver import VARIABLE
from .rows import ALWAYS
from .rows import STAGES as ALL_STAGES

STAGES = [stage for stage in ALL_STAGES if stage not in ALWAYS]
OF_OPS = ("smoke", "wide", "pairs", "compile")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ops", nargs="*", help="only smoke and speed of these ops")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default 9)")
    parser.add_argument(
        "--from", dest="start", choices=STAGES, default=STAGES[0], help="the stage to begin with"
    )
    parser.add_argument("--out", type=Path, help="folder (default benchmarks/results/<device>-<date>)")
    parser.add_argument(
        "--assemble", action="store_true", help="only make JSON, table and picture of --out's rows"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="the whole flow on a CPU; its times say nothing"
    )
    given = parser.parse_args()
    try:
        return run(**vars(given))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(
    *,
    ops: list[str] | None = None,
    minutes: float = 9.0,
    start: str = STAGES[0],
    out: Path | None = None,
    assemble: bool = False,
    dry_run: bool = False,
) -> int:
    """Measure, or assemble, or print the bytes where there is no GPU. Returns an exit code: 1 if anything failed.

    Raises:
        ValueError: an unknown op or stage, or a folder of another machine's or other kernels' rows.
        FileNotFoundError: nothing to assemble.
    """
    deadline = time.monotonic() + 60 * minutes  # asking for the device and all imports count
    if start not in STAGES:
        raise ValueError(f"--from {start}: there are {', '.join(STAGES)}")
    if ops and start not in OF_OPS:
        raise ValueError(f"--from {start}: ops alone have only {', '.join(OF_OPS)}")
    if assemble and (ops or dry_run or start != STAGES[0]):
        raise ValueError("--assemble takes --out DIR alone: it measures nothing")
    if not assemble:
        device = choose_driver(dry_run)
    from . import assembly, stages, supervisor  # after the driver is chosen: importing asks for it

    if assemble:
        if out is None:
            raise ValueError("--assemble takes --out DIR, the folder of rows.jsonl")
        return assembly.write(out)
    if os.environ[VARIABLE] == "stub" and not dry_run:
        stages.print_bytes(ops)
        return 0
    if out is None:
        if dry_run:
            raise ValueError("--dry-run takes --out DIR: its times belong to no result")
        out = assembly.default_folder(device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        supervisor.Supervisor(out, deadline, start, ops).run()
    except ValueError:  # refused: nothing was measured
        raise
    except BaseException:
        assembly.write(out)
        raise
    return assembly.write(out)


def choose_driver(dry_run: bool) -> str:
    """The device's name, empty without one. Asked in another process: one that has asked CUDA can fork no worker."""
    asked = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    device = ""
    if not dry_run:
        probe = subprocess.run([sys.executable, "-c", asked], stdout=subprocess.PIPE, text=True)
        device = probe.stdout.strip()
    os.environ[VARIABLE] = "cuda" if device else "stub"
    if not device:
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return device


if __name__ == "__main__":
    raise SystemExit(main())
