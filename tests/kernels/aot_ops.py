"""The ops on hidden states, at the widths of the models that people train, as their launchers compile them."""

from __future__ import annotations

import itertools

from aot import Case

# Hidden size and head size: Wan-1.3B, LTX-2B, HunyuanVideo, LTX-13B, Wan-14B
WIDTHS = {1536: 128, 2048: 64, 3072: 128, 4096: 128, 5120: 128}


def cases(full: bool) -> list[Case]:
    """With `full` every width, dtype and switch; else what needs most registers: the widest, with all sums."""
    if not full:
        return [
            norm_forward(5120, "bf16", True),
            norm_backward(5120, "bf16", True),
            qk_backward(5120, "bf16", True),
        ]
    out = []
    for width, kind in itertools.product(WIDTHS, ["bf16", "fp32"]):
        out += [norm_forward(width, kind, branch) for branch in (False, True)]
        out += [gate_forward(width, kind), qk_forward(width, kind)]
        for trained in (False, True):
            out += [norm_backward(width, kind, trained), qk_backward(width, kind, trained)]
            out.append(gate_backward(width, kind, trained))
    return out + [column_sums(width) for width in WIDTHS]


def case(kernel, op, width, kind, tensors, modulations, constants, vectors=(), wide=(0, 0)) -> Case:
    """`tensors` have the hidden states' dtype, `modulations` are fp32 as Wan's, `vectors` bf16 as a norm's."""
    from pgdpo_kernels.hidden.rows import pieces, threads_and_rows

    launch = {"gate_forward": "gate", "gate_backward": "gate", "norm_backward": "gate_norm_backward"}.get(
        op, op
    )
    summed = constants.get("SUM_NORM") or constants.get("SUM_GATE") or constants.get("SUMS")
    launch = (
        op.partition("_")[0] + "_sums"
        if summed
        else "gate_norm_forward"
        if constants.get("BRANCH")
        else launch
    )
    a, b = pieces(width)
    threads, rows = threads_and_rows(launch, width)
    constants = {"ALIGN": 8, "CHUNK": rows, "A": a, "B": b} | constants
    constants |= {"EMULATE_BF16": False}
    name = f"{op} {width} {kind}" + " summed" * bool(summed) + " branch" * constants.get("BRANCH", False)
    pointers = (
        dict.fromkeys(tensors, kind) | dict.fromkeys(modulations, "fp32") | dict.fromkeys(vectors, "bf16")
    )
    return Case(
        name,
        kernel,
        pointers,
        constants,
        threads,
        floats=("eps",),
        wide_loads=wide[0],
        wide_stores=wide[1],
    )


def norm_forward(width, kind, branch) -> Case:
    from pgdpo_kernels.hidden.norm_kernels import norm_forward as kernel

    constants = dict(BRANCH=branch, GATE="tensor" if branch else "none", SCALE="pair", SHIFT="pair", D=width)
    constants |= dict(WEIGHT=branch, BIAS=branch, CENTER=True)
    tensors, modulations = ("x", "branch", "hidden", "y"), ("gate", "gate_table", "scale", "scale_table")
    wide = (2, 2) if branch else (1, 1)
    return case(
        kernel,
        "norm_forward",
        width,
        kind,
        tensors,
        (*modulations, "shift", "shift_table"),
        constants,
        ("weight", "bias"),
        wide,
    )


def norm_backward(width, kind, trained) -> Case:
    from pgdpo_kernels.hidden.norm_kernels import norm_backward as kernel

    constants = dict(DHIDDEN=True, GATE="pair", SCALE="pair", WEIGHT=trained, CENTER=True, D=width)
    constants |= dict(SUM_NORM=trained, SUM_GATE=trained)
    tensors = ("dy", "dhidden", "hidden", "branch", "dx", "dbranch")
    modulations = ("gate", "gate_table", "scale", "scale_table", "sums")
    wide = (4 if trained else 3, 2)
    return case(kernel, "norm_backward", width, kind, tensors, modulations, constants, ("weight",), wide)


def gate_forward(width, kind) -> Case:
    from pgdpo_kernels.hidden.gate_residual_kernels import gate_forward as kernel

    tensors, modulations = ("x", "branch", "hidden"), ("gate", "gate_table")
    constants = dict(GATE="pair", D=width)
    return case(kernel, "gate_forward", width, kind, tensors, modulations, constants, wide=(2, 1))


def gate_backward(width, kind, trained) -> Case:
    from pgdpo_kernels.hidden.gate_residual_kernels import gate_backward as kernel

    tensors, modulations = ("x", "branch", "dbranch"), ("gate", "gate_table", "sums")
    constants = dict(GATE="pair", SUM_GATE=trained, D=width)
    wide = (2 if trained else 1, 1)
    return case(kernel, "gate_backward", width, kind, tensors, modulations, constants, wide=wide)


def heads(width) -> dict:
    """LTX turns the full width by a table of pairs; the others every head by one table."""
    from pgdpo_kernels.hidden.rows import pieces

    head = WIDTHS[width]
    a, b = pieces(width // head)
    norm = {3072: "rms_head"}.get(width, "rms_full")
    half = width in (2048, 4096)
    shape = dict(NORM=norm, SHARED=not half, HALF=half, H=width // head, HEAD=head, A=a, B=b)
    return shape | dict(WEIGHT=True, ROPE=True)


def qk_forward(width, kind) -> Case:
    from pgdpo_kernels.hidden.qk_norm_rope_kernels import qk_forward as kernel

    tensors, vectors = ("q", "k", "q_out", "k_out"), ("q_weight", "k_weight", "q_bias", "k_bias")
    constants = heads(width) | dict(BIAS=False)
    return case(kernel, "qk_forward", width, kind, tensors, ("cos", "sin"), constants, vectors, (2, 2))


def qk_backward(width, kind, trained) -> Case:
    from pgdpo_kernels.hidden.qk_norm_rope_kernels import qk_backward as kernel

    tensors, vectors = ("dq_out", "dk_out", "q", "k", "dq", "dk"), ("q_weight", "k_weight")
    constants = heads(width) | dict(SUMS=trained)
    tables = ("cos", "sin", "sums")
    return case(kernel, "qk_backward", width, kind, tensors, tables, constants, vectors, (4, 2))


def column_sums(width) -> Case:
    from pgdpo_kernels.hidden.row_jit import column_sums as kernel
    from pgdpo_kernels.hidden.rows import SUM_TILE

    rows, columns = SUM_TILE
    pointers = dict.fromkeys(("partials", "out"), "fp32")
    return Case(f"column_sums {width}", kernel, pointers, dict(D=width, ROWS=rows, COLUMNS=columns), 128)
