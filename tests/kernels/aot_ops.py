"""The ops on hidden states, at the widths of the models that people train, as their launchers compile them."""

from __future__ import annotations

import itertools

from aot import Case

# Hidden size and head size: Wan-1.3B, LTX-2B, HunyuanVideo, LTX-13B, Wan-14B
WIDTHS = {1536: 128, 2048: 64, 3072: 128, 4096: 128, 5120: 128}
PADDED = {1152: 72, 1920: 40, 3840: 120}  # heads that are no power of two


def cases(full: bool) -> list[Case]:
    """With `full` every width, dtype and switch; else what needs most registers: the widest, with all sums."""
    if not full:
        return [
            norm_forward(5120, "bf16", True, True),
            norm_backward(5120, "bf16", True),
            qk_backward(5120, "bf16", True),
            norm_rope_backward(2048, "bf16", True, halves=True),
            gate_heads_backward(4096, "bf16"),
        ]
    out = []
    for width, kind in itertools.product(WIDTHS, ["bf16", "fp32"]):
        out += [norm_forward(width, kind, *form) for form in itertools.product((False, True), repeat=2)]
        out += [gate_forward(width, kind), qk_forward(width, kind)]
        for trained in (False, True):
            out += [norm_backward(width, kind, trained), qk_backward(width, kind, trained)]
            out.append(gate_backward(width, kind, trained))
    for width, trained in itertools.product((2048, 4096), (False, True)):  # LTX-2's sound and picture
        out += [qk_backward(width, "bf16", trained, halves=True)]
    out += [qk_forward(width, "bf16", halves=True) for width in (2048, 4096)]
    for halves in (False, True):
        out += [norm_rope_forward(2048, "bf16", halves)]
        out += [norm_rope_backward(2048, "bf16", trained, halves) for trained in (False, True)]
    for width, kind in itertools.product((2048, 4096), ("bf16", "fp32")):
        out += [gate_heads_forward(width, kind), gate_heads_backward(width, kind)]
    for width in PADDED:
        out += [
            qk_forward(width, "bf16"),
            qk_backward(width, "bf16", False),
            qk_backward(width, "bf16", True),
        ]
    return out + [column_sums(width) for width in WIDTHS]


LAUNCH_OF = {"gate_forward": "gate", "gate_backward": "gate", "norm_backward": "gate_norm_backward"}
LAUNCH_OF |= {"gate_heads_forward": "gate", "gate_heads_backward": "gate"}
LAUNCH_OF |= {"norm_rope_forward": "qk_forward", "norm_rope_backward": "qk_backward"}
SUMS = ("SUM_NORM", "SUM_GATE", "SUM_WEIGHT")


def case(kernel, op, width, kind, tensors, modulations, constants, vectors=(), wide=(0, 0), narrow=0) -> Case:
    """`tensors` have the hidden states' dtype, `modulations` are fp32 as Wan's, `vectors` bf16 as a norm's."""
    from pgdpo_kernels.hidden.rows import LAUNCHES, pieces, threads_and_rows

    launch = LAUNCH_OF.get(op, op.replace(" ", "_"))
    if any(constants.get(name) for name in SUMS):
        op, launch = op + " summed", ("qk" if "NORM" in constants else op.partition("_")[0]) + "_sums"
    elif launch == "norm_forward" and constants["BRANCH"]:
        launch = "gate_norm_forward"
    a, b = pieces(width)
    constants = {"A": a, "B": b} | constants
    held = width
    if "H" in constants:
        held = (2 * constants["A"] if constants.get("HALVES") else constants["H"]) * constants["COLUMNS"]
    threads, rows = threads_and_rows(LAUNCHES[launch], held)
    constants |= {"ALIGN": 8, "CHUNK": rows}
    constants |= {"EMULATE_BF16": False}
    op, *form = op.split(" ") + ["branch"] * constants.get("BRANCH", False)
    form += ["halves"] * constants.get("HALVES", False)
    name = " ".join((op, str(width), kind, *form))
    pointers = (
        dict.fromkeys(tensors, kind) | dict.fromkeys(modulations, "fp32") | dict.fromkeys(vectors, "bf16")
    )
    return Case(
        name,
        kernel,
        pointers,
        constants,
        threads,
        floats=("eps", "scale") if "scale" in kernel.arg_names else ("eps",),
        wide_loads=wide[0],
        wide_stores=wide[1],
        narrow=narrow,
    )


def norm_forward(width, kind, branch, many) -> Case:
    """`many`: pairs, and a norm's own weight and bias where there is a branch; else one tensor each."""
    from pgdpo_kernels.hidden.norm_kernels import norm_forward as kernel

    form = "pair" if many else "tensor"
    constants = dict(BRANCH=branch, GATE=form if branch else "none", SCALE=form, SHIFT=form, D=width)
    constants |= dict(WEIGHT=branch and many, BIAS=branch and many, CENTER=True)
    tensors, modulations = ("x", "branch", "hidden", "y"), ("gate", "gate_table", "scale", "scale_table")
    modulations += ("shift", "shift_table")
    wide = (2, 2) if branch else (1, 1)
    op, vectors = "norm_forward" + " many" * many, ("weight", "bias")
    return case(kernel, op, width, kind, tensors, modulations, constants, vectors, wide)


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


def rows_of_heads(width, halves=False) -> dict:
    from pgdpo_kernels.hidden.rows import held_heads

    head = (WIDTHS | PADDED)[width]
    if halves:
        head = width // 32
    columns, a, b = held_heads(width // head, head, halves)
    return dict(H=width // head, HEAD=head, COLUMNS=columns, A=a, B=b)


def turned(width, halves=False) -> dict:
    """LTX turns the full width by a table of pairs; the others every head by one table."""
    norm = {1152: "layer_head", 3072: "rms_head"}.get(width, "rms_full")
    of_pairs = width in (2048, 4096)
    shape = dict(NORM=norm, HALVES=halves, SHARED=not of_pairs, PER_PAIR=of_pairs, WEIGHT=True, ROPE=True)
    return shape | rows_of_heads(width, halves)


def qk_forward(width, kind, halves=False) -> Case:
    from pgdpo_kernels.heads.qk_norm_rope_kernels import qk_forward as kernel
    from pgdpo_kernels.hidden.rows import LATE_TABLES

    tensors, vectors = ("q", "k", "q_out", "k_out"), ("q_weight", "k_weight", "q_bias", "k_bias")
    constants = turned(width, halves) | dict(BIAS=False, LATE_TABLES=width <= LATE_TABLES)
    return case(kernel, "qk_forward", width, kind, tensors, ("cos", "sin"), constants, vectors, (2, 2))


def qk_backward(width, kind, trained, halves=False) -> Case:
    from pgdpo_kernels.heads.qk_norm_rope_kernels import qk_backward as kernel

    tensors, vectors = ("dq_out", "dk_out", "q", "k", "dq", "dk"), ("q_weight", "k_weight")
    constants = turned(width, halves) | dict(SUM_WEIGHT=trained, SUM_BIAS=trained and width in (1152, 3072))
    tables = ("cos", "sin", "sums")
    return case(kernel, "qk_backward", width, kind, tensors, tables, constants, vectors, (4, 2))


def norm_rope_forward(width, kind, halves) -> Case:
    from pgdpo_kernels.heads.qk_norm_rope_kernels import norm_rope_forward as kernel
    from pgdpo_kernels.hidden.rows import LATE_TABLES

    constants = turned(width, halves) | dict(BIAS=False, LATE_TABLES=width <= LATE_TABLES)
    tensors, tables, vectors = ("x", "out"), ("cos", "sin"), ("weight", "bias")
    return case(kernel, "norm_rope_forward", width, kind, tensors, tables, constants, vectors, (1, 1))


def norm_rope_backward(width, kind, trained, halves) -> Case:
    from pgdpo_kernels.heads.qk_norm_rope_kernels import norm_rope_backward as kernel

    constants = turned(width, halves) | dict(SUM_WEIGHT=trained, SUM_BIAS=False)
    tensors, tables = ("dy", "x", "dx"), ("cos", "sin", "sums")
    return case(kernel, "norm_rope_backward", width, kind, tensors, tables, constants, ("weight",), (2, 1))


def gate_heads_forward(width, kind) -> Case:
    from pgdpo_kernels.heads.gate_heads_kernels import gate_heads_forward as kernel

    tensors, constants = ("x", "logits", "out"), rows_of_heads(width)
    return case(kernel, "gate_heads_forward", width, kind, tensors, (), constants, wide=(1, 1), narrow=2)


def gate_heads_backward(width, kind) -> Case:
    from pgdpo_kernels.heads.gate_heads_kernels import gate_heads_backward as kernel

    tensors, constants = ("dy", "x", "logits", "dx", "dlogits"), rows_of_heads(width)
    return case(kernel, "gate_heads_backward", width, kind, tensors, (), constants, wide=(2, 1), narrow=6)


def column_sums(width) -> Case:
    from pgdpo_kernels.hidden.row_jit import column_sums as kernel
    from pgdpo_kernels.hidden.rows import SUM_TILE

    rows, columns = SUM_TILE
    pointers = dict.fromkeys(("partials", "out"), "fp32")
    return Case(f"column_sums {width}", kernel, pointers, dict(D=width, ROWS=rows, COLUMNS=columns), 128)
