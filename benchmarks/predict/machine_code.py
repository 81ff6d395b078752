"""Kernels compiled for GPUs that are not here, and the instructions of what came out: for tests and predictions.

Needs the tools that ship with Triton, and a process without TRITON_INTERPRET, which would make kernels plain Python.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# sm_80: A100; sm_89: RTX 4090, L40S; sm_90: H100, H200; sm_100: B200; sm_120: RTX 5090; gfx942: MI300X.
TARGETS = {f"sm_{arch}": ("cuda", arch, 32) for arch in (80, 89, 90, 100, 120)}
TARGETS |= {"gfx942": ("hip", "gfx942", 64)}


@dataclass(frozen=True)
class Source:
    """A kernel with its arguments' types and its constants, as a launch hands them to the compiler."""

    kernel: object
    types: dict[str, str]  # argument -> "*bf16", "i32", "fp32" ...
    constants: dict[str, object]  # the other arguments
    aligned: frozenset[str]  # whose address or value 16 divides
    threads: int
    fp_fusion: bool = True
    cuda_registers: int | None = None  # the launcher's `maxnreg`


def build(source: Source, target: str):
    """Triton's compiled kernel: `.asm["ptx" | "cubin" | "amdgcn"]`, `.metadata.shared`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = source.kernel.arg_names
    types = source.types | dict.fromkeys(source.constants, "constexpr")
    backend, arch, width = TARGETS[target]
    options = {"num_warps": source.threads // width or 1, "enable_fp_fusion": source.fp_fusion}
    if source.cuda_registers and backend == "cuda":
        options["maxnreg"] = source.cuda_registers
    given = ASTSource(
        fn=source.kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in source.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in names if name in source.aligned},
    )
    return triton.compile(given, target=GPUTarget(backend, arch, width), options=options)


def usage(compiled, target: str) -> tuple[int, int]:
    """Registers a thread, and what spills: bytes of stack (CUDA, without function calls) or registers (AMD)."""
    if TARGETS[target][0] == "cuda":
        text = cuobjdump(compiled, "-res-usage")
        return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])
    text = compiled.asm["amdgcn"]
    registers, spill = (re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count"))
    return int(registers[1]), int(spill[1])


def instructions(compiled) -> list[Instruction]:
    """Of a kernel for CUDA, in the order of their addresses."""
    return parse(cuobjdump(compiled, "-sass"))


def cuobjdump(compiled, what: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        output = subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True)
    return output.stdout + output.stderr


@dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool  # by a predicate
    opcode: str  # without modifiers
    operands: str
    bytes: int  # of a thread, for what loads or stores
    reads: frozenset[str]  # registers
    writes: frozenset[str]

    @property
    def ends(self) -> bool:
        return self.opcode == "EXIT" and not self.guarded

    @property
    def jump(self) -> int | None:
        """The address that a branch goes to."""
        target = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(target[1], 16) if self.opcode == "BRA" and target else None


LINE = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*)([\w.]*)([^;]*);")
SCHEDULE = re.compile(
    r"\s[&?].*"
)  # `&req={1,0} &wr=0x2 ?WAIT2`, which some versions print after the operands
REGISTER = re.compile(r"\b(U?R)(\d+)\b(\.64)?")
LOADS, STORES = ("LDG", "LDS", "LDL"), ("STG", "STS", "STL")
WITHOUT_RESULT = ("BRA", "EXIT", "BAR", "RED", "RET", "CALL", "NOP", "WARPSYNC", "BSYNC", "BSSY", "DEPBAR")


def parse(sass: str) -> list[Instruction]:
    """What `cuobjdump -sass` prints, with the registers that each instruction reads and writes."""
    return [instruction(*match.groups()) for match in LINE.finditer(sass)]


def instruction(address: str, guard: str | None, opcode: str, modifiers: str, operands: str) -> Instruction:
    operands, size = SCHEDULE.sub("", operands).strip(), 4
    if width := re.search(r"\.[SU]?(128|64|16|8)\b", modifiers):
        size = int(width[1]) // 8
    if opcode in STORES:
        address_part, _, value = operands.rpartition(",")
        reads, writes = registers(address_part) | registers(value, size // 4), frozenset()
    elif opcode in WITHOUT_RESULT:
        reads, writes = registers(operands), frozenset()
    else:
        result, _, given = operands.partition(",")
        wide = 2 if ".WIDE" in modifiers or ".64" in modifiers else 1
        reads, writes = registers(given), registers(result, size // 4 if opcode in LOADS else wide)
    return Instruction(int(address, 16), bool(guard), opcode, operands, size, reads, writes)


def registers(text: str, count: int = 1) -> frozenset[str]:
    """Those that are named, each with the `count - 1` that follow it; an address of 64 bits is in two."""
    found = set()
    for kind, number, wide in REGISTER.findall(text):
        found |= {f"{kind}{int(number) + i}" for i in range(max(count, 2 if wide else 1))}
    return frozenset(found)
