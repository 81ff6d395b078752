"""What to compile ahead of time: a function per op lists its kernels as its launcher compiles them."""

from __future__ import annotations

import itertools

import aot_ops
from aot import Case


def cases(full: bool) -> list[Case]:
    """Every kernel; with `full` in every combination of dtypes and switches that changes its shape."""
    return [
        *pair_sums(full),
        *pair_second_stage(full),
        *pair_gradients(full),
        *noises(full),
        *aot_ops.cases(full),
    ]


def named(name: str, flags: dict[str, bool], members: int, separate: bool) -> str:
    words = (word for word, has in flags.items() if has)
    return " ".join((name, *words, *["alone"] * (members == 1), *["separate"] * separate))


# (members, separate): a pair's two rows, which have been timed, a sample's own, and either of separate samples.
ROWS = ((2, False), (1, False), (1, True), (2, True))


def pair_sums(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.pair_kernels import BLOCK, THREADS, partial_sums

    cases = [
        ("bf16", True, False, False, False, 2, False),
        ("fp32", True, False, False, False, 2, False),
        ("bf16", True, True, True, False, 1, True),
        ("bf16", True, True, True, True, 2, False),
    ]
    if full:
        cases += [
            (*case, *rows)
            for rows in ROWS
            for case in (
                ("fp16", True, False, False, False),
                ("bf16", False, False, False, False),
                ("bf16", True, False, True, rows[0] == 2),
                ("bf16", True, True, False, False),
            )
        ]
        cases += [("bf16", True, False, False, False, 1, False), ("fp32", True, False, False, False, 1, True)]
    out = []
    for kind, ref, mask, table, cross, members, separate in cases:
        flags = {"ref": ref, "mask": mask, "segments": table, "cross": cross}
        pointers = dict.fromkeys(("pred", "target", "ref"), kind)
        pointers |= {"mask": "fp32", "partials": "fp32"}
        pointers |= dict.fromkeys(("table", "addresses", "groups"), "i64")
        constants = dict(MEMBERS=members, SEPARATE=separate, HAS_REF=ref, HAS_MASK=mask, SHORT_MASK=False)
        constants |= dict(HAS_GROUPS=mask and members == 1, HAS_TABLE=table, CROSS=cross)
        constants |= dict(ALIGN=8, CHUNK=16384, BLOCK=BLOCK)
        loads = (3 if ref else 2) * members * (2 if kind == "fp32" else 1)
        registers = (208 if mask else 128) if members == 2 else (128 if mask else 96)
        name = named(f"partial_sums {kind}", flags, members, separate)
        wide = dict(wide_loads=loads, registers=registers)
        out.append(Case(name, partial_sums, pointers, constants, THREADS, **wide))
    return out


def pair_second_stage(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.dpo_kernel import PAIRS, preference_stage
    from pgdpo_kernels.pairs.pair_means_kernel import TILE, TILE_REGISTERS, TILE_THREADS, pair_means

    out = []
    # (members, counts of a pair): a sample's own, and a pair's whose rows were read together or apart.
    every = itertools.product(((1, 1), (2, 1), (2, 2)), (512, TILE, 16), (True, False))
    for (members, counts), parts, table in every if full else [((1, 1), 512, True), ((2, 1), 512, True)]:
        constants = dict(
            MEMBERS=members, COUNTS=counts, HAS_REF=True, HAS_TABLE=table, CROSS=members > counts
        )
        constants |= dict(PAIRS=TILE // parts, PARTS=parts)
        pointers = dict.fromkeys(("partials", "errors", "drift", "cross"), "fp32") | {"bounds": "i64"}
        name = f"pair_means {TILE // parts} x {parts}" + " segments" * table
        name += " alone" * (members == 1) + " apart" * (counts == 2)
        out.append(Case(name, pair_means, pointers, constants, TILE_THREADS, cuda_registers=TILE_REGISTERS))
    fp32 = (
        "policy",
        "count",
        "excess",
        "cross",
        "omega",
        "weight",
        "loss",
        "per_pair",
        "slopes",
        "loss_slopes",
    )
    pointers = dict.fromkeys(fp32, "fp32") | {"labels": "i64"}
    numbers = ("kappa", "half_inverse_beta", "smoothing", "ars_k", "ars_eps", "ars_clip", "ipr_weight")
    numbers += ("ipr_sharpness", "ipr_threshold", "logit_cap", "chosen_pull", "safeguard_keep")
    for objective, ipr, labels, limited in (
        ("pg_dpo", "bt", False, False),
        ("pg_dpo", "bt", False, True),
        ("pg_dpo", "sft", True, False),
        ("pg_dpo", "switch", False, False),
        ("dpo", "none", False, False),
        ("ipo", "none", False, False),
        ("hinge", "none", True, False),
    )[: None if full else 3]:
        constants = dict(OBJECTIVE=objective, ARS=objective == "pg_dpo", IPR=ipr, SAFEGUARD=labels)
        constants |= dict(
            CAPPED=limited, PULLED=limited, HAS_OMEGA=labels, HAS_WEIGHT=True, LABELLED=labels, PAIRS=PAIRS
        )
        name = f"preference_stage {objective} {ipr}" + " labels safeguard" * labels + " limited" * limited
        out.append(
            Case(
                name,
                preference_stage,
                pointers,
                constants,
                PAIRS,
                floats=numbers,
                fp_fusion=False,
                fused=None,
            )
        )
    return out


def pair_gradients(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.pair_kernels import BLOCK, THREADS, pair_gradient

    cases = [
        ("bf16", True, False, False, False, False, 2, False),
        ("fp32", True, False, False, False, False, 2, False),
        ("bf16", False, True, True, True, False, 1, True),
        ("bf16", False, True, True, True, True, 2, False),
    ]
    if full:
        cases += [
            ("fp16", True, False, False, False, False, 2, False),
            ("bf16", True, False, True, True, False, 2, False),
            ("bf16", False, True, True, True, True, 2, True),
            ("bf16", True, False, False, False, False, 2, True),
        ]
        cases += [("bf16", False, False, False, False, False, *rows) for rows in ROWS]
        cases += [("fp32", False, True, False, True, False, *rows) for rows in ROWS]
    out = []
    for kind, fused, drift, mask, table, cross, members, separate in cases:
        flags = {"fused": fused, "drift": drift, "mask": mask, "segments": table, "cross": cross}
        pointers = dict.fromkeys(("pred", "target", "ref", "out"), kind)
        fp32 = ("mask", "grad_loss", "pair_weight", "slopes", "drift_slopes", "cross_slopes", "count")
        pointers |= dict.fromkeys(fp32, "fp32") | dict.fromkeys(("table", "addresses", "groups"), "i64")
        constants = dict(FUSED=fused, HAS_WEIGHT=fused, MEMBERS=members, SEPARATE=separate, HAS_REF=True)
        constants |= dict(DRIFT=drift, HAS_MASK=mask, HAS_GROUPS=mask and members == 1, SHORT_MASK=False)
        constants |= dict(HAS_TABLE=table, CROSS=cross, ALIGN=8, CHUNK=16384, BLOCK=BLOCK, EMULATE_BF16=False)
        each = members * (2 if kind == "fp32" else 1)
        wide = dict(wide_loads=(3 if drift else 2) * each, wide_stores=each)
        name = named(f"pair_gradient {kind}", flags, members, separate)
        out.append(Case(name, pair_gradient, pointers, constants, THREADS, fp_fusion=False, **wide))
    return out


def noises(full: bool) -> list[Case]:
    from pgdpo_kernels.noise.noise_kernel import GROUPS, THREADS, noise_kernel

    out = []
    every = itertools.product(("bf16", "fp32"), ("flow", "epsilon", "v", "noise"))
    every = [(*case, 2) for case in every] + [("bf16", "v", 1), ("bf16", "flow", 8)]
    quick = [("bf16", "v", 2), ("fp32", "flow", 2), ("bf16", "noise", 2), ("bf16", "v", 1)]
    for kind, prediction, members in every if full else quick:
        pointers = dict.fromkeys(("latents", "noisy", "target"), kind)
        pointers |= {"level": "fp32", "pair_ids": "i64", "draw": "i64"}
        constants = dict(PREDICTION=prediction, MEMBERS=members, ALIGN=8, GROUPS=GROUPS, EMULATE_BF16=False)
        each = 2 if kind == "fp32" else 1
        loads = 0 if prediction == "noise" else 4 * members * each
        stores = 4 * each if prediction == "noise" else 8 * members * each
        out.append(
            Case(
                f"noise {kind} {prediction}" + f" K={members}" * (members != 2),
                noise_kernel,
                pointers,
                constants,
                THREADS,
                fp_fusion=False,
                fused=16 * 9,  # of 32 elements a thread; 4 of exact products, 5 of a root
                wide_loads=loads,
                wide_stores=stores,
            )
        )
    return out
