"""A plan for people: one table, and what it assumes."""

from __future__ import annotations

from rich.table import Table

from pgdpo.diffusion.streams import VIDEO
from pgdpo.messages.units import duration_text, si, size_text
from pgdpo.planning import hardware
from pgdpo.planning.costs.step import Step
from pgdpo.planning.plan import Plan

LABELS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "reference": "reference's own weights",
    "inputs": "latents, predictions, prompt",
    "activations": "activations",
    "buffers": "communication, gathered weights",
    "validation": "other expert, at validation",
}


def table(plan: Plan, title: str) -> Table:
    machine, memory, step, disk = plan.machine, plan.memory, plan.step, plan.disk
    shown = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    shown.add_column()
    nodes = f" on {machine.nodes} nodes" if machine.nodes > 1 else ""
    shown.add_row("machine", f"{machine.gpus} x {machine.name}{nodes}", f"{size_text(machine.memory)} each")
    shown.add_row("parameters", f"{plan.parameters / 1e6:,.1f} M", f"{plan.trained / 1e6:,.1f} M train")
    shown.add_row("latents", "x".join(map(str, plan.latent_shape)), "channels, frames, height, width")
    for name, stream in plan.streams.items():
        if name != VIDEO:
            size = "x".join(map(str, stream["shape"]))
            shown.add_row(f"{name} latents", size, f"channels, times, bins; {stream['tokens']} tokens")
    shown.add_section()
    for name, size in memory.parts().items():
        if name == "validation" and not size:
            continue  # one model has two experts
        shown.add_row(LABELS[name], size_text(size), "")
    verdict = "[green]fits[/]" if plan.fits else "[red]does not fit[/]"
    limit = f"a GPU, at most at once; {verdict} in {size_text(machine.usable)}"
    shown.add_row("peak", size_text(memory.peak), limit)
    if memory.host:
        shown.add_row("host memory", size_text(memory.host * machine.per_node), "a node, offloaded")
    shown.add_section()
    shown.add_row("tokens a step", f"{step.tokens:,}", _clips(step))
    shown.add_row("FLOPs a step", si(step.flops), f"{si(step.executed_flops)} with what is computed again")
    shown.add_row("seconds a step", f"{step.seconds:.3g}", _parts(step))
    shown.add_row(
        "MFU", f"{step.mfu:.0%}", f"if the GPUs reach {machine.mfu:.0%} of {si(machine.peak)}FLOP/s"
    )
    training = plan.training
    more = f"steps {duration_text(training.steps)}, checkpoints {duration_text(training.checkpoints)}"
    more += f", validation {duration_text(training.validation)}" if training.validation else ""
    more += f", held-out {_kind(step)}s {duration_text(training.held_out)}" if training.held_out else ""
    shown.add_row("training", duration_text(training.seconds), more)
    _evaluation(shown, plan)
    shown.add_section()
    pairs = (
        f"{disk.pairs:,} {_kind(step)}s"
        if disk.pairs is not None
        else "1,000 pairs: the manifest cannot be read"
    )
    shown.add_row("prepared latents", size_text(disk.latents), pairs)
    shown.add_row("prompt embeddings", size_text(disk.text), "at most")
    shown.add_row("one checkpoint", size_text(disk.checkpoint), f"{disk.checkpoint_seconds:.2g} s to write")
    free = size_text(min(room.free for room in disk.rooms))
    shown.add_row(
        "disk in all", size_text(disk.total), f"{free} free" if disk.fits else f"[red]only {free} free[/]"
    )
    return shown


def _kind(step: Step) -> str:
    return "pair" if step.clips == 2 * step.pairs else "group"


def _clips(step: Step) -> str:
    if _kind(step) == "pair":
        return f"{step.pairs} pairs, two clips each"
    return f"{step.pairs} groups, {step.clips} clips"


def _parts(step: Step) -> str:
    parts = f"{step.compute_seconds:.3g} compute, {step.communication_seconds:.2g} communication"
    parts += f", {step.offload_seconds:.2g} offload" if step.offload_seconds else ""
    return parts + (f", {step.update_seconds:.2g} optimizer" if step.update_seconds >= 0.005 else "")


def _evaluation(shown: Table, plan: Plan) -> None:
    evaluation, usable = plan.evaluation, plan.machine.usable
    if evaluation is None:
        return
    shown.add_row(
        "evaluation",
        duration_text(evaluation.seconds),
        f"{evaluation.clips} clips {duration_text(evaluation.sampling)}, errors of {evaluation.pairs} "
        f"{_kind(plan.step)}s {duration_text(evaluation.errors)}; decoding not counted",
    )
    verdict = "" if evaluation.peak <= usable else f"; [red]does not fit[/] in {size_text(usable)}"
    shown.add_row("its peak", size_text(evaluation.peak), f"a GPU, one model at a time{verdict}")


def assumptions(plan: Plan) -> str:
    machine = plan.machine
    return " ".join(
        [
            *plan.notes,
            "Weights, gradients and optimizer follow DeepSpeed's rules; activations are traced for eager PyTorch with "
            "flash attention (compiled blocks and fused ops keep less); buffers are upper bounds. Times do not "
            f"overlap, at {machine.link / 1e9:.0f} GB/s between GPUs, {machine.between(machine.gpus + 1) / 1e9:.0f} "
            f"between nodes, {hardware.PCIE / 1e9:.0f} to the host, {machine.disk / 1e9:g} to disk.",
        ]
    )
