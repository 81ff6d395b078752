"""Weights that ZeRO-3 holds in fp32, gathered in bf16 where autocast would round them to it at their use.

DeepSpeed ties the dtype of a weight's gathers to that of its gradient's sum (`torch_autocast`'s
`lower_precision_safe_modules`), and goes by a module's class alone. Here gradients are summed in fp32 all the same, and
what diffusers keeps in fp32 is gathered so. A weight that is rounded before it is gathered is the number that autocast
would have made of it: losses are equal to the last bit.
"""

from __future__ import annotations

import deepspeed
import torch
from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

from pgdpo.models.weights.kept import held_dtype

CAST_BY_AUTOCAST = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def gather_in_bf16(engine: deepspeed.DeepSpeedEngine) -> None:
    """For an engine under autocast to bf16 with ZeRO-3: halve the bytes of its gathers. The shards stay fp32."""
    transformer = engine.module
    for prefix, module in transformer.named_modules():
        if (
            type(module) not in CAST_BY_AUTOCAST
            or held_dtype(transformer, prefix, torch.bfloat16) != torch.bfloat16
        ):
            continue
        for parameter in module.parameters(recurse=False):
            # Small ones stay whole from step to step, and may be read meanwhile.
            if parameter.dtype == torch.float32 and not parameter.ds_persist:
                setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)
    engine.optimizer.get_param_comm_dtype = _sum_as_held


def _sum_as_held(parameter: torch.nn.Parameter) -> torch.dtype:
    return parameter.dtype
