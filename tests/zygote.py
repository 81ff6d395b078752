"""Starts ranks in a blink: a process that has imported everything and forks one child per rank.

A run on two ranks costs ten seconds under torchrun, nearly all of it imports. The children are ordinary processes: they
get the launcher's environment and can be killed, stopped and starved one by one, and no job finds what another left
behind. Speaks JSON lines: a request on stdin, an answer on stdout. `tests/ranks.py` holds the other end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

IMPORTED = (
    "pgdpo.cli",
    "pgdpo.training.trainer",
    "pgdpo.models.families.wan",
    "torch.utils.tensorboard",
    "peft",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # by ZeRO's engine, and Inductor with it: a second a rank
)


def serve() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for module in IMPORTED:
        importlib.import_module(module)
    import deepspeed.ops

    from tests import counted

    counted.keep()
    if os.environ["TRITON_INTERPRET"] == "1":
        from tests.interpreter import speed_up_interpreter

        speed_up_interpreter()
    _ = deepspeed.ops.__compatible_ops__  # found out by compiling a probe: half a second a rank

    gc.collect()
    gc.freeze()  # a rank's collections need not walk over what was imported
    exits: dict[int, dict] = {}
    for line in sys.stdin:
        request = json.loads(line)
        starts = "ranks" in request
        answer = (
            {"pids": _start(request, exits)} if starts else _wait(exits, request["pids"], request["timeout"])
        )
        answers.write(json.dumps(answer) + "\n")
    gc.unfreeze()


def _start(request: dict, exits: dict[int, dict]) -> list[int]:
    """The ranks' pids; what an earlier child of that number left in `exits` is no longer its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            _become_rank(rank, port, request)
        exits.pop(pid, None)
        pids.append(pid)
    return pids


def _become_rank(rank: int, port: int, request: dict) -> None:
    world = request["ranks"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world)}
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(f"{request['log']}-rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    from pgdpo.messages.console import console

    console.file = sys.stdout
    code = 1
    try:
        _work(rank, request)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _work(rank: int, request: dict) -> None:
    """The request's commands, one after another, up to one that fails; or its function, whose value is written down."""
    if request["hook"]:
        from tests.faults import hooks

        getattr(hooks, request["hook"])(rank, **request["hook_options"])
    for command in request["commands"]:
        from pgdpo.cli import main

        sys.argv = ["pgdpo", *command]
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise
    if request["function"]:
        module, name = request["function"]
        sys.path[:] = request["path"]
        value = getattr(importlib.import_module(module), name)(*request["arguments"])
        Path(f"{request['log']}-rank{rank}.json").write_text(json.dumps(value))


def _wait(exits: dict[int, dict], pids: list[int], timeout: float) -> dict:
    """Exit codes (negative: killed by that signal) and the times of the exits; None for a child that still runs."""
    until = time.monotonic() + timeout
    while True:
        for pid in [pid for pid in pids if pid not in exits]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                exits[pid] = {"code": os.waitstatus_to_exitcode(status), "time": time.time()}
        if all(pid in exits for pid in pids) or time.monotonic() > until:
            return {"exits": [exits.get(pid) for pid in pids]}
        time.sleep(0.005)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
