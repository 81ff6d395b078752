"""`torchrun -m tests.faults.hooked HOOK OPTIONS COMMAND ...`: pgdpo with a fault in it, under a real launcher.

`HOOK`: of `hooks.py`; `OPTIONS`: its options as JSON.
"""

import json
import os
import sys

from pgdpo.cli import main
from tests.faults import hooks

if __name__ == "__main__":
    arguments = [
        word for word in sys.argv[1:] if not word.startswith("--local_rank")
    ]  # deepspeed's, put in front
    getattr(hooks, arguments[0])(int(os.environ.get("RANK", "0")), **json.loads(arguments[1]))
    sys.argv[1:] = arguments[2:]
    main()
