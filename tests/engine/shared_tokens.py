"""Ranks that share a clip's tokens against the same model on one rank: five steps of a kind, without a trainer.

`measure` runs on every rank. It returns for each case the largest relative difference of the five losses, of the
prediction, and of any weight's first gradient, and what share of the tokens the last block of this rank had.
"""

import copy
import functools
import itertools
import math
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.diffusion.streams import VIDEO, by_stream
from pgdpo.engine.memory import save_memory
from pgdpo.engine.ulysses import share_tokens
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo_kernels import apply_to, set_backend
from tests.models.families import KINDS, Kind

STEPS = 5
RANKS = 2
# name -> (model settings, fused ops)
HELD = {
    "selective": ({"gradient_checkpointing": "selective"}, True),
    "full": ({"gradient_checkpointing": "full"}, False),
    "compiled": ({"compile": "aot_eager"}, False),
}


def uneven(kind: Kind, family: Family) -> tuple[int, int, int]:
    """The smallest clip, from the kind's own size on, whose tokens the ranks can't divide; its own if there is none."""
    (frames, height, width), (more, side) = kind.size, kind.step
    for size in itertools.product((frames, frames + more), (height, height + side), (width, width + side)):
        try:
            family.check_clip(*size)
        except InputError:  # a table of positions may end before
            continue
        if family.tokens(family.latent_shape(*size)) % RANKS:
            return size
    return kind.size


def conditioning(family: Family, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Of two prompts at random, of two lengths where padding is masked."""
    found = {}
    for name, value in family.example_conditioning(2, shape).items():
        if value.dtype == torch.bool:
            lengths = torch.tensor([[2], [value.shape[1] // 2]])
            found[name] = torch.arange(value.shape[1]) < lengths
        else:
            found[name] = torch.randn(value.shape)
    return found


def steps(predict, model, target) -> tuple[list[float], torch.Tensor, dict[str, torch.Tensor]]:
    """(losses, first prediction, first gradients); gradients are averaged over all ranks, as DeepSpeed does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, first = [], None
    for _ in range(STEPS):
        prediction = predict(model)
        errors = (prediction - target).square().mean(1)
        loss = -torch.nn.functional.logsigmoid(errors[1] - errors[0])
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:  # of the last block's text: nothing comes of it
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        first = first or (
            prediction.detach(),
            {name: parameter.grad.clone() for name, parameter in model.named_parameters()},
        )
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, *first


def tokens_in_last_block(model, sharing, stream: str) -> list[int]:
    """A list that fills with the tokens of a stream that the last block is given."""
    counts = []
    last = model.get_submodule(sharing.blocks[-1])[-1]
    last.get_submodule(sharing.streams[stream].attention).register_forward_pre_hook(
        lambda module, args, kwargs: counts.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    return counts


def differences(name: str, folder: str, held: str) -> dict[str, float]:
    kind, (settings, fused) = KINDS[name], HELD[held]
    torch.manual_seed(0)
    family = kind.open(Path(folder), **settings)
    shapes = family.stream_shapes(*uneven(kind, family))
    whole = family.load_transformer(dtype=torch.float32).train()
    sigma = torch.tensor([0.1, 0.7]).clamp(*family.sigma_range)
    noisy = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    given = noisy if len(noisy) > 1 else noisy[VIDEO], sigma, conditioning(family, shapes[VIDEO])
    target = torch.randn(2, sum(map(math.prod, shapes.values())))
    shared = copy.deepcopy(whole)
    if fused:
        apply_to(shared, strict=True)
    save_memory(shared, family.model)
    share_tokens(shared, family.sharing, dist.group.WORLD)
    return compared(whole, shared, family.sharing, functools.partial(_predict, family, given), target)


def compared(whole, shared, sharing, predict, target) -> dict[str, float]:
    """How far `shared` is from `whole`; `share`: of the tokens of each stream, what this rank had."""
    counts = [
        {name: tokens_in_last_block(model, sharing, name) for name in sharing.streams}
        for model in (whole, shared)
    ]
    losses, prediction, gradients = steps(predict, whole, target)
    found, predicted, theirs = steps(predict, shared, target)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    return {
        "share": {name: counts[1][name][0] / counts[0][name][0] for name in sharing.streams},
        "loss": max(abs(a - b) / a for a, b in zip(losses, found, strict=True)),
        "learned": abs(losses[-1] - losses[0]) / losses[0],
        "prediction": float((prediction - predicted).abs().max() / prediction.abs().max()),
        # a weight whose gradient is nothing but rounding is measured by the largest one
        "gradient": max(
            float((theirs[n] - g).abs().max() / max(g.abs().max(), 1e-3 * largest))
            for n, g in gradients.items()
        ),
    }


def _predict(family: Family, given: tuple, model: torch.nn.Module) -> torch.Tensor:
    """`[N, all that is predicted]`, stream after stream."""
    made = by_stream(family.predict(model, *given)).values()
    return torch.cat([prediction.flatten(1) for prediction in made], dim=1)


def measure(cases: list[tuple[str, str, str]]) -> dict[str, dict[str, float]]:
    """Differences by name of each case, which is (a kind, its folder, one of `HELD`)."""
    dist.init_process_group("gloo")
    set_backend("eager")  # the patched modules' code, with eager maths
    return {f"{name} {held}": differences(name, folder, held) for name, folder, held in cases}
