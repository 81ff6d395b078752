"""The namespace of this package's operators: its own name, so that a copy under another name has others.

A build for the kernel hub puts a file of its own in this one's place, with a namespace that no other build has.
"""

import torch

_OPS_NAME = __package__.replace(".", "_")

ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{_OPS_NAME}::{op_name}"
