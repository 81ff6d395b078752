"""`pgdpo make`: a list of real clips (or prompts) -> a folder with pairs and their manifest, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pgdpo.config import Config
from pgdpo.data.clips import PairPlan, Sampling, check_clip, views_said
from pgdpo.evaluation.rewards import Reward, open_reward, reward_source, try_reward
from pgdpo.files.atomic import atomic_path, hold, read_json_lines, sha256_of, write_json
from pgdpo.files.locations import clip_location, folder_of
from pgdpo.files.tables import Record, read_records
from pgdpo.making.corrupt import CORRUPTIONS
from pgdpo.making.prompts import corrupt_prompt
from pgdpo.messages.console import is_main_rank, progress_bar, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.ranks.joined import Ranks
from pgdpo.rows.manifest import SPAN_MARK
from pgdpo.rows.schema import TIE
from pgdpo.video import probe_video, read_frames, write_video

# What each way does, and whether it needs real clips or prompts alone, and a model.
KINDS = {
    "corrupt": "real clip against the same clip with corrupted frames; no model",
    "guided": "two clips denoised from one re-noised real clip (DenseDPO); the reward decides",
    "masked": "real clip against itself with a box made anew by the model (LocalDPO)",
    "real": "real clip against the model's own clip for its prompt (Reg-DPO)",
    "prompts": "the model's clip for the prompt against its clip for a corrupted prompt (Tango 2); needs prompts alone",
}
PARTIAL = ".rows.partial{}.jsonl"  # a rank's own


@dataclasses.dataclass(frozen=True)
class Source:
    """One row of the list: what a pair is made from."""

    id: str
    prompt: str
    video: str | None


@dataclasses.dataclass(frozen=True)
class Made:
    """A pair before it is written; `plan`: what was taken of the real clip, None without one; `extra`: columns of its
    row."""

    chosen: np.ndarray
    rejected: np.ndarray
    plan: PairPlan | None
    extra: dict


def make(kind: str, config: Config, source: str, out: Path, ranks: Ranks | None = None) -> Path:
    """Make `make.pairs_per_clip` pairs of every row of `source` in the folder `out`. Returns its manifest.

    `source`: JSONL, CSV or Parquet rows with `id`, `prompt` and (not for `prompts`) `video`, a path relative to it.
    Both clips of a pair go through the same decoding, size and encoding, so that no codec gives one away. The reward
    of `evaluate.reward`, where there is one, scores both; for `guided` it decides which one is chosen, and what it
    cannot tell apart is kept as a tie. How a model was sampled stands in `sampling.json` beside the manifest.
    All `ranks` call it together and share the pairs; each holds a whole model. What stands in `out` from a stopped call
    of the same settings, on any number of ranks, is kept where its row is as it was.
    Raises InputError for rows, clips, models and settings that don't fit, before anything is written.
    """
    if kind not in KINDS:
        raise InputError(f"KIND is {kind!r}: allowed are {', '.join(KINDS)}")
    ranks = ranks or Ranks()
    sources = list(read_sources(source, needs_video=kind != "prompts"))
    reward = open_reward(config.evaluate.reward)
    for key in ("height", "width"):
        if getattr(config.data, key) % 2:
            raise InputError(
                f"data.{key} is {getattr(config.data, key)}: clips are written with even sides: take one"
            )
    if kind == "real" and config.fps is None:
        raise InputError(
            "data.fps is `own`, and the model's clips have one rate, which the real ones must have too: leave it out, "
            f"for {config.model.fps:g}, or set it"
        )
    if kind == "guided" and reward is None:
        raise InputError(
            "guided pairs need a reward that decides: set evaluate.reward to `package.module:function`"
        )
    try_reward(config, sources[0].prompt)
    made_from = _hashes(config, sources, ranks)
    digest = _digest(kind, config)
    held = ranks.main_first(lambda: hold(out) if ranks.rank == 0 else None)
    done = ranks.gather(ranks.main_first(lambda: _done(out, digest, made_from)))[
        0
    ]  # read before anybody writes
    jobs = {_name(config, row, n): (row, n) for row in sources for n in range(config.make.pairs_per_clip)}
    mine = dict([job for job in jobs.items() if job[0] not in done][ranks.rank :: ranks.count])
    pair_of = _maker(kind, config, list(mine.values()), reward, out)
    seen, share = [], f" (rank 0's share of {ranks.count})" if ranks.count > 1 else ""
    with (
        progress_bar(f"make {kind}{share}", total=len(mine)) as bar,
        _partial(out, ranks, digest).open("a", encoding="utf-8") as file,
    ):
        for name, (row, number) in mine.items():
            made = pair_of(row, number)
            if made is not None:
                seen += [(made.plan.like.fps, made.plan.view)] if made.plan is not None else []
                done[name] = _write(out, name, row, made, kind, config, reward)
                file.write(json.dumps({"row": done[name], "made_from": made_from[row.id]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            moved(f"made pair `{name}`")
            bar.advance()
    parts = ranks.gather((done, seen))
    if ranks.rank == 0:
        made_of = {name: row for part, _ in parts for name, row in part.items()}
        _publish(out, [made_of[name] for name in jobs if name in made_of], asked=len(jobs), rows=len(sources))
        for line in views_said([each for _, part in parts for each in part]):
            say(f"  {line}")
    ranks.gather(None)  # the manifest is there
    if held is not None:
        held.close()
    return out / "manifest.jsonl"


def _name(config: Config, row: Source, number: int) -> str:
    return row.id if config.make.pairs_per_clip == 1 else f"{row.id}-{number}"


def _publish(out: Path, pairs: list[dict], *, asked: int, rows: int) -> None:
    """Write the manifest of what all ranks made."""
    with atomic_path(out / "manifest.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    for partial in out.glob(PARTIAL.format("*")):
        partial.unlink()
    ties, skipped = sum(row.get("preference") == TIE for row in pairs), asked - len(pairs)
    say(
        f"{len(pairs)} pairs of {rows} rows, {ties} of them ties"
        + (f"; {skipped} prompts have fewer than two concepts and gave none" if skipped else "")
    )


def read_sources(source: str, *, needs_video: bool) -> Iterator[Source]:
    """Rows of the list. Raises InputError naming file, line, key and value."""
    seen = set()
    for record in _records(source):
        where, values = f"{source}:{record.line}", record.values
        for key in ("id", "prompt", *(["video"] if needs_video else [])):
            if not isinstance(values.get(key), str) or (key != "prompt" and not values[key].strip()):
                raise InputError(
                    f"{where}: `{key}` is {values.get(key)!r}; expected text: a row needs id, prompt, video"
                )
        if values["id"] in seen or Path(values["id"]).name != values["id"]:
            raise InputError(
                f"{where}: `id` is {values['id']!r}; it names files: use each once, without slashes"
            )
        seen.add(values["id"])
        try:
            video = clip_location(values["video"], folder_of(source)) if needs_video else None
        except ValueError as error:
            raise InputError(f"{where}: `video` is {values['video']!r}: {error}") from error
        if video is not None and not Path(video).is_file():
            raise InputError(f"{where}: `video` is {values['video']!r}: no file at {video}")
        yield Source(values["id"], values["prompt"], video)
    if not seen:
        raise InputError(f"{source}: no rows; each needs id, prompt, video")


def _records(source: str) -> Iterator[Record]:
    try:
        for record in read_records(source):
            if not isinstance(record, Record):
                raise InputError(str(record))
            yield record
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{source}: cannot be read ({reason}): SOURCE is a JSONL, CSV or Parquet file with id, prompt and video"
        ) from error


def _maker(
    kind: str, config: Config, jobs: list[tuple[Source, int]], reward: Reward | None, out: Path
) -> Callable:
    """(row, number) of `jobs` -> a pair, or None where the row gives none."""
    if kind == "corrupt":
        return lambda row, number: _corrupted(config, row, number)
    import torch

    from pgdpo.making.generate import Generator

    prompts = {row.prompt for row, _ in jobs}
    if kind == "prompts":
        prompts |= {corrupt_prompt(row.prompt, _rng(config, row, n)) for row, n in jobs} - {None}
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    model = Generator(config, sorted(prompts), device)
    if is_main_rank():
        write_json(out / "sampling.json", dataclasses.asdict(model.settings))
    if kind == "guided":
        return lambda row, number: _guided(config, model, row, number, reward)
    ways = {"masked": _masked, "real": _real, "prompts": _prompts}
    return lambda row, number: ways[kind](config, model, row, number)


def _corrupted(config: Config, row: Source, number: int) -> Made:
    rng, (frames, plan) = _rng(config, row, number), _frames(config, row, number)
    name = str(rng.choice(config.make.corruptions))
    return Made(frames, CORRUPTIONS[name](frames, rng), plan, {"chosen_is_real": True, "corruption": name})


def _guided(config: Config, model, row: Source, number: int, reward: Reward) -> Made:
    (frames, plan), sigma = _frames(config, row, number), _sigma(config, row, number)
    clips = [model.from_clip(row.id, frames, row.prompt, sigma, 2 * number + side) for side in range(2)]
    first, second = (reward(clip, row.prompt)["total"] for clip in clips)
    if second > first:
        clips.reverse()
    return Made(*clips, plan, {"renoised_to": sigma, **({"preference": TIE} if first == second else {})})


def _masked(config: Config, model, row: Source, number: int) -> Made:
    rng, sigma, data = _rng(config, row, number), _sigma(config, row, number), config.data
    frames, plan = _frames(config, row, number)
    _, _, rows, columns = model.family.latent_shape(data.num_frames, data.height, data.width)
    box = tuple(_side(rng, length) for length in (rows, columns))
    made = model.inside(row.id, frames, row.prompt, sigma, number, box)
    mask = np.zeros((data.height, data.width), np.uint8)
    scales = (data.height // rows, data.width // columns)
    mask[tuple(slice(s.start * k, s.stop * k) for s, k in zip(box, scales, strict=True))] = 255
    # The untouched clip takes the same way through the VAE, or its loss of detail would give the other away.
    untouched = model.encoders.decode_video(model.encoders.encode_video(frames))
    return Made(untouched, made, plan, {"chosen_is_real": True, "renoised_to": sigma, "mask": mask})


def _real(config: Config, model, row: Source, number: int) -> Made:
    frames, plan = _frames(config, row, number)
    through_vae = model.encoders.decode_video(model.encoders.encode_video(frames))
    return Made(through_vae, model.from_noise(row.id, row.prompt, number), plan, {"chosen_is_real": True})


def _prompts(config: Config, model, row: Source, number: int) -> Made | None:
    other = corrupt_prompt(row.prompt, _rng(config, row, number))
    if other is None:
        return None
    clips = [model.from_noise(row.id, prompt, number) for prompt in (row.prompt, other)]
    return Made(*clips, None, {"caption_rejected": other})


def _write(
    out: Path, name: str, row: Source, made: Made, kind: str, config: Config, reward: Reward | None
) -> dict:
    """Clips, mask and scores of one pair. Returns its manifest row."""
    written = {"id": name, "prompt": row.prompt}
    fps = made.plan.rate if made.plan is not None else config.fps or config.model.fps
    for side in ("chosen", "rejected"):
        path = out / "clips" / f"{name}-{side}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, getattr(made, side), fps)
        written |= {side: path.relative_to(out).as_posix(), f"sha256_{side}": sha256_of(path)}
    extra = dict(made.extra)
    if (mask := extra.pop("mask", None)) is not None:
        from PIL import Image

        Image.fromarray(mask).save(out / "clips" / f"{name}-mask.png")
        extra["mask"] = f"clips/{name}-mask.png"
    if reward is not None:
        extra["scores"] = {side: reward(getattr(made, side), row.prompt) for side in ("chosen", "rejected")}
    return {**written, "fps": fps, "source": f"pgdpo make {kind}", **extra}


def _frames(config: Config, row: Source, number: int) -> tuple[np.ndarray, PairPlan]:
    """(its frames as `data` asks for them, what was taken)."""
    data = config.data
    sampling, size = Sampling.of(data, config.fps), (data.num_frames, data.height, data.width)
    info = probe_video(row.video)
    check_clip(info, size, sampling)
    name = f"{row.id}{SPAN_MARK}{number % data.pairs_per_row + 1}"
    plan = PairPlan(
        {"chosen": info}, sampling, size, sampling.first(name, info.frames_at(config.fps), size[0])
    )
    return read_frames(info, plan.numbers(info), size[1:]), plan


def _rng(config: Config, row: Source, number: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{config.make.seed}:{row.id}:{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))


def _sigma(config: Config, row: Source, number: int) -> float:
    low, high = config.make.renoise
    return float(_rng(config, row, number).uniform(low, high))


def _side(rng: np.random.Generator, length: int) -> slice:
    size = max(1, round(length * rng.uniform(0.3, 0.6)))
    first = int(rng.integers(0, length - size + 1))
    return slice(first, first + size)


def _hashes(config: Config, sources: list[Source], ranks: Ranks) -> dict[str, str]:
    """Row id -> hash of what it is made from; the ranks share the reading. Raises InputError for all clips that do not
    fit."""
    data, mine, refused = config.data, {}, []
    sampling, size = Sampling.of(data, config.fps), (data.num_frames, data.height, data.width)
    own = sources[ranks.rank :: ranks.count]
    with progress_bar("look at the rows", total=len(own)) as bar:
        for row in own:
            try:
                if row.video is not None:
                    check_clip(probe_video(row.video), size, sampling)
                mine[row.id] = _hash([row.id, row.prompt, row.video and sha256_of(Path(row.video))])
            except InputError as error:
                refused.append(str(error))
            bar.advance()
    parts = ranks.gather((mine, refused))
    if refused := [reason for _, part in parts for reason in part]:
        raise InputError("\n".join(refused))
    return {name: digest for part, _ in parts for name, digest in part.items()}


def _hash(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _digest(kind: str, config: Config) -> str:
    parts = [
        kind,
        config.make.model_dump(),
        config.data.model_dump(include={"num_frames", "height", "width", "clip", "upsample"}),
        config.fps,
        config.diffusion.shift,
        config.train.precision,
    ]
    parts += [config.model.model_dump(mode="json"), config.evaluate.model_dump(mode="json")]
    return _hash([*parts, reward_source(config.evaluate.reward)])


def _done(out: Path, digest: str, made_from: dict[str, str]) -> dict[str, dict]:
    """Pairs that an earlier call with the same settings finished, on any number of ranks, of rows that are as they were
    then."""
    if (out / "manifest.jsonl").exists():
        raise InputError(
            f"{out}/manifest.jsonl: there is one already: give another folder, or remove this one"
        )
    done, rows = {}, set(made_from.values())
    for partial in sorted(out.glob(PARTIAL.format("*"))):
        lines = read_json_lines(partial)
        if lines and lines[0]["settings"] != digest:
            raise InputError(
                f"{partial}: begun with other settings, or another reward function: give them again, name another "
                "folder, or remove this one"
            )
        done |= {line["row"]["id"]: line["row"] for line in lines[1:] if line["made_from"] in rows}
    return done


def _partial(out: Path, ranks: Ranks, digest: str) -> Path:
    """This rank's file of finished rows, without a last one that was cut off."""
    path = out / PARTIAL.format(f"-{ranks.rank}" if ranks.count > 1 else "")
    lines = read_json_lines(path) or [{"settings": digest}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
