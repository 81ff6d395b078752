"""What the ops on hidden states `[B, N, D]` share on the host: checks, groups of rows, launch settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..backend import interpreting
from ..checks import check_float
from ..launch import launch, next_power_of_2

# A scale, shift or gate as the user gives it: [B, D], [B, 1, D], [B, F, D], [B, N, D] or (table, embedding).
Modulation = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
# The same as the ops take it: values [B | 1, G | 1, D] and the table [D] to add to them.
Values = tuple[torch.Tensor | None, torch.Tensor | None]

MAX_WIDTH = 8192
SUM_ROWS = (
    64  # of a program where backward sums over rows: the partial sums are then 1/32 of the tensor or less
)
SUM_TILE = (16, 128)


# op: (D up to this, threads, rows a program), by benchmarks/results/h100-20261126/tuning.jsonl, of an H100.
LAUNCHES = {
    "gate": ((1536, 64, 4), (3072, 128, 4), (MAX_WIDTH, 256, 4)),
    "norm_forward": ((3072, 64, 2), (MAX_WIDTH, 256, 4)),
    "gate_norm_forward": ((1536, 64, 1), (3072, 128, 1), (MAX_WIDTH, 256, 4)),
    "norm_backward": ((3072, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "gate_norm_backward": ((1536, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "qk_forward": ((1536, 64, 4), (2048, 64, 2), (3072, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    "qk_backward": ((1536, 128, 1), (2048, 64, 1), (5120, 128, 1), (MAX_WIDTH, 256, 1)),
    # What also sums over rows holds the sums as well; not tuned. Above 5120 `norm_sums` spills registers.
    "gate_sums": ((1536, 64, SUM_ROWS), (3072, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
    "norm_sums": ((2048, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
    "qk_sums": ((1536, 64, SUM_ROWS), (3072, 128, SUM_ROWS), (MAX_WIDTH, 256, SUM_ROWS)),
}


def threads_and_rows(op: str, width: int) -> tuple[int, int]:
    """Threads and rows of a program, by op and D alone."""
    _, threads, rows = next(launch for launch in LAUNCHES[op] if width <= launch[0])
    return (threads, rows) if width > 512 else (32 if width <= 256 else 64, rows)


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two that hold a row: 5120 = 4096 + 1024, 4096 = 2048 + 2048, 1920 in 1024 + 1024."""
    first = next_power_of_2(width) // 2
    return first, next_power_of_2(width - first)


def check_hidden(op: str, name: str, x: torch.Tensor) -> None:
    check_float(op, name, x)
    if x.dim() != 3 or 0 in x.shape or x.shape[2] < 2:
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
    given = tuple(value.shape)
    value = value.unsqueeze(1) if value.dim() == 2 else value
    batch, tokens, width = x.shape
    fits = value.dim() == 3 and value.shape[0] in (1, batch) and value.shape[2] == width
    if not fits or value.shape[1] == 0 or tokens % value.shape[1]:
        raise ValueError(
            f"{op}: {name} must be [B, D], [B, 1, D], [B, F, D] with N a multiple of F, or [B, N, D], "
            f"for [B, N, D] = {tuple(x.shape)}; got shape {given}"
        )
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}, the hidden states on {x.device}")
    return value, table


def check_groups(op: str, *modulations: Values) -> None:
    sizes = {values.shape[1] for values, _ in modulations if values is not None} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"{op}: gate, scale and shift must have one vector per sample, or all the same number of vectors; "
            f"got {sorted(sizes)}"
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
    """How the tokens of each sample are cut: into groups of one modulation each, a group into parts."""

    batch: int
    groups: int  # of a sample
    rows: int  # of a group
    parts: int  # of a group
    chunk: int  # rows of a part

    @property
    def grid(self) -> tuple[int]:
        return (self.batch * self.groups * self.parts,)

    def sizes(self) -> tuple[int, int, int]:
        return self.groups, self.rows, self.parts


def group_count(*values: torch.Tensor | None) -> int:
    """Into how many groups, each with vectors of its own, the modulations cut a sample."""
    return max([1, *[tensor.shape[1] for tensor in values if tensor is not None]])


def cut_rows(op: str, x: torch.Tensor, groups: int) -> Groups:
    """A function of op and shapes alone, so that no sum depends on the device."""
    rows = x.shape[1] // groups
    _, chunk = threads_and_rows(op, x.shape[2])
    return Groups(x.shape[0], groups, rows, -(-rows // chunk), chunk)


def strides(*tensors: torch.Tensor | None) -> tuple[int, list[int]]:
    """ALIGN, and the batch and row strides of each tensor in units of it; 0 where a dimension is broadcast."""
    out = []
    for tensor in tensors:
        for dim in (0, 1):
            out.append(0 if tensor is None or tensor.shape[dim] == 1 else tensor.stride(dim))
    align = 8 if all(stride % 8 == 0 for stride in out) else 1
    return align, [stride // align for stride in out]


def kind(values: torch.Tensor | None, table: torch.Tensor | None) -> str:
    return "none" if values is None else "pair" if table is not None else "tensor"


def launch_rows(
    kernel,
    op: str,
    grid: tuple[int],
    tensors: tuple[torch.Tensor | None, ...],
    outputs: tuple[torch.Tensor, ...],
    strided: tuple[torch.Tensor | None, ...],
    numbers: tuple[float, ...],
    **constants: object,
) -> None:
    """Launch a kernel on rows: with the batch and row strides of `strided` before the numbers, as `op` is set."""
    threads, chunk = threads_and_rows(op, tensors[0].shape[2])
    align, steps = strides(*strided)
    constants |= {"ALIGN": align, "CHUNK": chunk, "EMULATE_BF16": interpreting()}
    launch(kernel, grid, tensors, outputs, (*steps, *numbers), threads=threads, **constants)


def in_pieces(width: int) -> dict[str, int]:
    """The constants by which a kernel holds a row of D elements."""
    a, b = pieces(width)
    return {"D": width, "A": a, "B": b}


def sum_parts(partials: torch.Tensor) -> torch.Tensor:
    """`[..., parts, D]` fp32 to `[..., D]`, contiguous."""
    from .row_jit import column_sums

    *shape, parts, width = partials.shape
    if parts == 1:
        return partials.reshape(*shape, width)
    out = partials.new_empty(*shape, width)
    rows, columns = SUM_TILE
    if out.numel():
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
