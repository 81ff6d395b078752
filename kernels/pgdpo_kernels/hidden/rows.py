"""What the ops on hidden states `[B, N, D]` share on the host: checks, groups of rows, launch settings."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..backend import interpreting
from ..checks import check_float
from ..launch import launch, next_power_of_2

# A scale, shift or gate as the user gives it: [B, D], [B, 1, D], [B, F, D], [B, N, D] or (table, embedding).
Modulation = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
# The same as the ops take it: values [B | 1, G | 1, D] and the table [D] to add to them.
Values = tuple[torch.Tensor | None, torch.Tensor | None]
Line = tuple[tuple[int, int, int], ...]  # of LAUNCHES

MAX_WIDTH = 8192
SUM_ROWS = (
    64  # of a program where backward sums over rows: the partial sums are then 1/32 of the tensor or less
)
SUM_TILE = (16, 128)


# Up to this width the rotary tables are asked for after a row's norm in `qk_forward`, above it before: at 1536 the
# former has 97% of a copy's speed where the latter has 87 to 90, at 5120 90 where the latter has 94 (tuning.jsonl).
LATE_TABLES = 1536

FEW_VECTORS = 3

# op: (D up to this, threads, rows a program), by tuning.jsonl of an H100 and of an H200 in benchmarks/results.
# Where they differ: what gains more on one than it loses on the other.
LAUNCHES = {
    "gate": ((1536, 64, 1), (3072, 128, 1), (MAX_WIDTH, 256, 1)),
    "norm_forward": ((1536, 32, 4), (2048, 64, 2), (3072, 64, 4), (MAX_WIDTH, 256, 4)),
    "gate_norm_forward": ((1536, 64, 2), (2048, 128, 1), (3072, 128, 2), (5120, 128, 1), (MAX_WIDTH, 256, 4)),
    # With more than FEW_VECTORS of D elements for a group (pairs, a norm's own weight and bias), which fill registers:
    # by count, so that a program reads at most half as many bytes of them as of its rows; not timed.
    "norm_forward_many": ((2048, 128, 8), (MAX_WIDTH, 256, 8)),
    "norm_backward": ((3072, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "gate_norm_backward": ((1536, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "qk_forward": ((1536, 64, 1), (2048, 64, 2), (3072, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "qk_backward": ((1536, 128, 1), (2048, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    # What also sums over rows holds the sums as well. Above 5120 `norm_sums` spills registers; with 128 threads at 5120
    # too, up to 192 bytes, although an H200 had 53% of a copy there, 40% with these.
    "gate_sums": ((1536, 64, SUM_ROWS), (3072, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
    "norm_sums": ((2048, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
    "qk_sums": ((1536, 64, SUM_ROWS), (3072, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
}


def norm_forward_launch(branch: torch.Tensor | None, *vectors: torch.Tensor | None) -> str:
    """The line of LAUNCHES, by how many vectors a program holds for a group.

    No sum goes over rows there; the order of the sums within a row follows from the line: from D and that number.
    """
    if sum(vector is not None for vector in vectors) > FEW_VECTORS:
        return "norm_forward_many"
    return "norm_forward" if branch is None else "gate_norm_forward"


def threads_and_rows(line: Line, width: int) -> tuple[int, int]:
    """Threads and rows of a program, by the op's line of LAUNCHES and D alone."""
    _, threads, rows = next(launch for launch in line if width <= launch[0])
    return (threads, rows) if width > 512 else (32 if width <= 256 else 64, rows)


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two that hold a row: 5120 = 4096 + 1024, 4096 = 2048 + 2048, 1920 in 1024 + 1024."""
    first = next_power_of_2(width) // 2
    return first, next_power_of_2(width - first)


def check_hidden(op: str, name: str, x: torch.Tensor) -> None:
    check_float(op, name, x)
    shape = x.shape
    if len(shape) != 3 or 0 in shape or shape[2] < 2:
        raise ValueError(f"{op}: {name} must be [B, N, D] with D of 2 or more, got shape {tuple(x.shape)}")


def check_branch(op: str, residual: torch.Tensor, branch: torch.Tensor) -> None:
    check_hidden(op, "residual", residual)
    check_hidden(op, "branch", branch)
    if branch.shape != residual.shape:
        raise ValueError(
            f"{op}: branch must have the residual's shape {tuple(residual.shape)}, got {tuple(branch.shape)}"
        )


def check_vector(op: str, name: str, vector: torch.Tensor | None, width: int) -> None:
    if vector is None:
        return
    check_float(op, name, vector)
    if vector.shape != (width,):
        raise ValueError(f"{op}: {name} must have shape ({width},), got {tuple(vector.shape)}")


def modulation(op: str, name: str, value: Modulation, x: torch.Tensor) -> Values:
    """Values `[B | 1, G | 1, D]`, a view, and the table `[D]`; two times None where there is none."""
    if value is None:
        return None, None
    table = None
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"{op}: {name} must be a tensor or a pair (table, embedding)")
        table, value = value
        check_float(op, f"{name}'s table", table)
        if table.numel() != x.shape[2]:
            raise ValueError(
                f"{op}: {name}'s table must have {x.shape[2]} elements, got shape {tuple(table.shape)}"
            )
        table = table.reshape(-1)
    check_float(op, name, value)
    given = value.shape
    if len(given) == 2:
        value = value.unsqueeze(1)
    shape = value.shape
    batch, tokens, width = x.shape
    fits = len(shape) == 3 and shape[0] in (1, batch) and shape[2] == width
    if not fits or shape[1] == 0 or tokens % shape[1]:
        raise ValueError(
            f"{op}: {name} must be [B, D], [B, 1, D], [B, F, D] with N a multiple of F, or [B, N, D], "
            f"for [B, N, D] = {tuple(x.shape)}; got shape {tuple(given)}"
        )
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}, the hidden states on {x.device}")
    return value, table


def check_groups(op: str, *modulations: Values) -> None:
    sizes = {values.shape[1] for values, _ in modulations if values is not None}
    if len(sizes) > 1 and len(sizes - {1}) > 1:
        raise ValueError(
            f"{op}: gate, scale and shift must have one vector per sample, or all the same number of vectors; "
            f"got {sorted(sizes - {1})}"
        )


def obstacle(x: torch.Tensor, *modulations: torch.Tensor | None) -> str | None:
    """Why the kernels cannot take these arguments; rows that are no rows in memory are copied instead."""
    if x.shape[2] > MAX_WIDTH:
        return f"D is {x.shape[2]}, beyond {MAX_WIDTH}"
    for tensor in modulations:
        if tensor is not None and tensor.stride(-1) != 1:
            return "a modulation's last dimension is not contiguous"
    return None


def as_rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


@dataclass(frozen=True)
class Groups:
    """How the tokens of each sample are cut: into groups of one modulation, a group into parts of a program each."""

    batch: int
    sizes: tuple[int, int, int]  # groups of a sample, rows of a group, parts of a group
    programs: int
    threads: int  # of a program
    constants: dict[str, int]  # the kernel's, of shapes alone


def group_count(*values: torch.Tensor | None) -> int:
    """Into how many groups, each with vectors of its own, the modulations cut a sample."""
    groups = 1
    for tensor in values:
        if tensor is not None and tensor.shape[1] > groups:
            groups = tensor.shape[1]
    return groups


def cut_rows(op: str, x: torch.Tensor, groups: int, heads: int = 0, halves: bool = False) -> Groups:
    """A function of op and shapes alone, so that no sum depends on the device. With `heads` a row is one of heads."""
    return _cut_rows(LAUNCHES[op], *x.shape, groups, heads, halves)


@functools.lru_cache(1024)
def _cut_rows(
    line: Line, batch: int, tokens: int, width: int, groups: int, heads: int, halves: bool
) -> Groups:
    if heads:
        head = width // heads
        columns, a, b = held_heads(heads, head, halves)
        held = {"H": heads, "HEAD": head, "COLUMNS": columns}
        width = 2 * a * columns if halves else heads * columns
    else:
        held = {"D": width}
        a, b = pieces(width)
    threads, chunk = threads_and_rows(line, width)
    rows = tokens // groups
    parts = -(-rows // chunk)
    # Whether kernels are interpreted was decided when Triton was imported.
    constants = held | {"A": a, "B": b, "CHUNK": chunk, "EMULATE_BF16": interpreting()}
    return Groups(batch, (groups, rows, parts), batch * groups * parts, threads, constants)


def held_heads(heads: int, head: int, halves: bool) -> tuple[int, int, int]:
    """Columns of a row's two tiles, and the heads of each: as wide as a power of two each, or all in halves."""
    if halves:
        count = next_power_of_2(heads)
        return next_power_of_2(head // 2), count, count
    return next_power_of_2(head), *(pieces(heads) if heads > 1 else (1, 1))


def strides(*tensors: torch.Tensor | None) -> tuple[int, list[int]]:
    """ALIGN, and the batch and row strides of each tensor in units of it; 0 where a dimension is broadcast."""
    out, union = [], 0
    for tensor in tensors:
        batch = row = 0
        if tensor is not None:
            shape, steps = tensor.shape, tensor.stride()
            if shape[0] > 1:
                batch = steps[0]
            if shape[1] > 1:
                row = steps[1]
        out += batch, row
        union |= batch | row
    return (1, out) if union % 8 else (8, [step // 8 for step in out])


def kind(values: torch.Tensor | None, table: torch.Tensor | None) -> str:
    return "none" if values is None else "pair" if table is not None else "tensor"


def launch_rows(
    kernel,
    cut: Groups,
    programs: int,
    tensors: tuple[torch.Tensor | None, ...],
    outputs: tuple[torch.Tensor, ...],
    strided: tuple[torch.Tensor | None, ...],
    numbers: tuple[float, ...],
    **constants: object,
) -> None:
    """Launch a kernel on rows as they are cut: with the batch and row strides of `strided` before the numbers."""
    align, steps = strides(*strided)
    constants |= cut.constants
    launch(
        kernel,
        (programs,),
        tensors,
        outputs,
        (*steps, *numbers),
        threads=cut.threads,
        ALIGN=align,
        **constants,
    )


def sum_parts(partials: torch.Tensor) -> torch.Tensor:
    """`[..., parts, D]` fp32 to `[..., D]`, contiguous."""
    *shape, parts, width = partials.shape
    if parts == 1:
        return partials.squeeze(-2)
    from .row_jit import column_sums

    out = partials.new_empty(*shape, width)
    rows, columns = SUM_TILE
    grid, constants = (out.numel() // width, -(-width // columns)), {"ROWS": rows, "COLUMNS": columns}
    launch(column_sums, grid, (partials,), (out,), (parts,), threads=128, D=width, **constants)
    return out


def modulation_gradients(
    sums: torch.Tensor, values: torch.Tensor | None, table: torch.Tensor | None, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """From fp32 sums over each group's rows, `[B, G, D]`, to the gradients of values and table."""
    by_values = sums.sum_to_size(values.shape).to(values.dtype) if wanted[0] else None
    by_table = sums.sum((0, 1)).to(table.dtype) if wanted[1] else None
    return by_values, by_table
