"""What needs the model's files, but none of its weights: sizes, segments, token lengths, prepared data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pgdpo.config import Inspection
from pgdpo.console import say
from pgdpo.data.buckets import Size
from pgdpo.data.manifest import CheckedRow
from pgdpo.data.schema import columns
from pgdpo.errors import InputError, MachineError
from pgdpo.models import open_family
from pgdpo.models.family import Encoders, Family
from pgdpo.models.lora_file import open_lora
from pgdpo.problems import Problem, shown
from pgdpo.settings import Config
from pgdpo.training.engine import check_offload
from pgdpo.training.parallel import check_sequence_parallel
from pgdpo.training.policy import (
    check_attention,
    compare_prepared,
    open_pairs,
    prepared_folder,
    require_images,
)

TOKENIZED_AT_A_TIME = 1024


def model_problems(
    inspected: Inspection, splits: dict[str, Sequence[CheckedRow]], *, full: bool = False
) -> Iterator[Problem]:
    """All of them. What a model that is not on this machine would say is a warning: it was not asked.

    `full`: prepared data against the hashes of all clips, also of those of unchanged name, size and time.
    """
    config = inspected.loaded
    try:
        family = open_family(config.model)
        encoders = family.load_encoders(torch.device("cpu"))
    except InputError as error:
        yield _of_message(inspected, str(error), "model.path", config.model.path)
        return
    try:
        family.check_fps(config.data)
    except InputError as error:
        yield _of_message(inspected, str(error), "data.fps", config.data.fps)
    try:
        for size in config.data.sizes:
            try:
                encoders.check_size(*size)
            except InputError as error:
                yield _of_message(inspected, str(error), "data.buckets", list(size))
                return
        yield from _segments(family, config.data.sizes, splits)
        yield from _engine(inspected, family)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        yield inspected.problem(
            "model.path",
            f"sizes were not checked: the model's configuration is not here ({reason})",
            value=config.model.path,
            allowed="a local diffusers folder, or a hub id that can be reached",
            suggestion="check again where the model is",
            severity="warning",
        )
    for rows in splits.values():
        yield from _token_lengths(config, family, encoders, rows)
    for split in splits:
        yield from _prepared(config, split, full)
    if config.reference_mode == "cached":
        yield from _cached(config, family)


def _of_message(inspected: Inspection, message: str, key: str, value: object) -> Problem:
    """An InputError's text as a Problem: `data.height is 18; allowed ...`."""
    named = re.match(r"([a-z_]+(?:\.[a-z_]+)+) is ('[^']*'|\[[^\]]*\]|\S+?)[;:,]", message)
    what, _, allowed = message.partition("; ")
    if named:
        key, value = named[1], named[2].strip("'")
    mend = "take one of these" if allowed else ""
    allowed = allowed.removeprefix("allowed are ")
    return inspected.problem(key, what, value=value, allowed=allowed, suggestion=mend)


def _engine(inspected: Inspection, family: Family) -> Iterator[Problem]:
    """What the trainer refuses before its first step. What this machine alone lacks is a warning if it has no GPU."""
    config, gpu = inspected.loaded, torch.cuda.is_available()

    def share_tokens() -> None:
        for size in config.data.sizes:
            check_sequence_parallel(config, family, family.latent_shape(*size))

    checks: dict[str, Callable[[], None]] = {
        "train.sequence_parallel": share_tokens,
        "model.adapter.init": lambda: _open_init(config, family),
        "train.nvme_path": lambda: check_offload(config.train),
        "model.attention": lambda: check_attention(config, family, torch.device("cuda" if gpu else "cpu")),
    }
    for key, check in checks.items():
        try:
            check()
        except InputError as error:
            problem = _of_message(inspected, str(error), key, None)
            elsewhere = isinstance(error, MachineError) and not gpu
            yield replace(
                problem,
                severity="warning" if elsewhere else "error",
                suggestion="check again on a machine that trains" if elsewhere else problem.suggestion,
            )


def _open_init(config: Config, family: Family) -> None:
    adapter = config.model.adapter
    if adapter is not None and adapter.init is not None:
        open_lora(family, adapter)


def _segments(
    family: Family, sizes: Sequence[Size], splits: dict[str, Sequence[CheckedRow]]
) -> Iterator[Problem]:
    frames = min(family.latent_shape(*size)[1] for size in sizes)
    for rows in splits.values():
        for row in rows:
            labels = {**columns(row.values), **row.values}.get("segment_labels")
            if labels is not None and len(labels) > frames:
                yield row.problem(
                    f"{len(labels)} segments, and the latents have {frames} frames",
                    key="segments",
                    value=len(labels),
                    allowed=f"at most {frames} segments",
                    suggestion="join segments, or take more frames (data.num_frames)",
                )


def _token_lengths(
    config: Config, family: Family, encoders: Encoders, rows: Sequence[CheckedRow]
) -> Iterator[Problem]:
    """Prompts that are empty, or longer than what the text encoder reads."""
    lengths = _lengths(config, family, encoders, [row.values["prompt"] for row in rows])
    for row in rows:
        prompt = row.values["prompt"]
        length, limit = lengths.get(prompt), encoders.text_length
        if not prompt.strip():
            yield row.problem(
                f"`prompt` of pair `{row.values['id']}` is empty",
                key="prompt",
                value=prompt,
                allowed="what both clips were made for",
                suggestion="write the prompt, unless the model is trained without any",
                severity="warning",
            )
        elif length is not None and length > limit:
            cut = config.model.encoders != "toy"
            yield row.problem(
                f"`prompt` of pair `{row.values['id']}` has {length} tokens, {shown(prompt)}"
                + (": the end is cut off" if cut else ""),
                key="prompt",
                value=length,
                allowed=f"at most {limit} tokens",
                suggestion="shorten the prompt",
                severity="warning" if cut else "error",
            )


def _lengths(config: Config, family: Family, encoders: Encoders, prompts: Sequence[str]) -> dict[str, int]:
    """Tokens of each distinct prompt; empty where the tokenizer is not on this machine."""
    distinct = sorted(set(prompts))
    if config.model.encoders == "toy":
        return {prompt: len(set(re.findall(r"\w+", prompt.lower()))) for prompt in distinct}
    folder = Path(family.source) / "tokenizer"
    if not folder.is_dir():
        return {}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    lengths: dict[str, int] = {}
    for start in range(0, len(distinct), TOKENIZED_AT_A_TIME):
        batch = distinct[start : start + TOKENIZED_AT_A_TIME]
        lengths |= {
            prompt: len(ids) for prompt, ids in zip(batch, tokenizer(batch)["input_ids"], strict=True)
        }
    return lengths


def _prepared(config: Config, split: str, full: bool) -> Iterator[Problem]:
    """Prepared data that is there, but not of what this configuration names, or damaged."""
    folder = prepared_folder(config, split)
    if not (folder / "index.json").is_file():
        return
    try:
        compared = compare_prepared(config, split, full=full)
        for note in compared.notes:
            say(note)
        for one in compared.found:
            yield replace(one.problem, allowed=f"what {folder} was prepared from", suggestion=compared.mend)
        if compared.found:
            return
        if not full:
            say(f"{folder}: a clip replaced by one of the same size and time isn't seen without --full")
        require_images(open_pairs(config, split, compare=False), open_family(config.model))
    except InputError as error:
        yield Problem(
            str(folder),
            str(error).removeprefix(f"{folder}/"),
            f"prepared/{split}",
            str(folder),
            "what `pgdpo prepare` makes of this configuration",
            "run `pgdpo prepare` again",
        )


def _cached(config: Config, family: Family) -> Iterator[Problem]:
    """Errors of the reference that are missing, or another's."""
    from pgdpo.training.references import open_cached, reference_folder

    try:
        data = open_pairs(config, "train", compare=False)
    except InputError:
        return  # said of the prepared data
    try:
        open_cached(config, family, data, torch.device("cpu"))
    except InputError as error:
        yield Problem(
            str(reference_folder(config)),
            str(error),
            "train.reference",
            config.train.reference,
            "errors of this reference, on these pairs and draws",
            "run `pgdpo reference` with this configuration",
            severity="warning",
        )
