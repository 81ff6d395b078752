"""Everything that needs a GPU, within a given time: correctness, then speed, then whole training steps.

    PYTHONPATH=.:kernels python -m benchmarks.gpu --minutes 9 --out DIR

runs with torch, triton, numpy and pytest alone; what needs diffusers, deepspeed, av or pydantic is left out by name
where they are not installed. Stages, in order:

    smoke      each op once, both ways, against eager maths
    tests      tests/kernels in parallel
    exactness  logits and gradients against float64
    wide       ops on hidden states, fused and eager, widest first
    pairs      pair errors, loss and noising, fused and eager
    compile    the same ops, fused and torch.compile
    block      one block of Wan, forward and backward: fused, eager, compiled
    steps      whole training steps, each variant in a process of its own

Every row is appended to DIR/rows.jsonl when it is known; a case that raises, hangs or takes its process down is a row.
Killed at any second, the folder holds what was known: the same command goes on from there, and `--assemble` makes
result.json, table.txt and roofline.png of what there is. Without a GPU it prints the bytes that each op must move;
`--dry-run` runs the whole flow on a CPU with tiny shapes.
"""
