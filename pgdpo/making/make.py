"""`pgdpo make`: a list of real clips (or prompts) -> a folder with pairs and their manifest, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pgdpo.config import Config
from pgdpo.data.clips import PairPlan, views_said
from pgdpo.diffusion.streams import AUDIO, VIDEO
from pgdpo.evaluation.rewards import Reward, open_reward, reward_source, try_reward
from pgdpo.files.atomic import atomic_path, hold, read_json_lines, sha256_of, write_json
from pgdpo.making.corrupt import CORRUPTIONS
from pgdpo.making.prompts import corrupt_prompt
from pgdpo.making.sound import SOUND_FAULTS, heard
from pgdpo.making.sources import TRACK, Source, frames_of, plan_of, read_sources, rng_of, sound_of
from pgdpo.messages.console import is_main_rank, progress_bar, say, say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.ranks.joined import Ranks
from pgdpo.rows.schema import TIE
from pgdpo.video import Sound, write_video
from pgdpo.video.listen import missing

# What each way does, and whether it needs real clips or prompts alone, and a model.
KINDS = {
    "corrupt": "real clip against the same clip with corrupted frames, or corrupted sound; no model",
    "guided": "two clips denoised from one re-noised real clip (DenseDPO); the reward decides",
    "masked": "real clip against itself with a box made anew by the model (LocalDPO)",
    "real": "real clip against the model's own clip for its prompt (Reg-DPO)",
    "prompts": "the model's clip for the prompt against its clip for a corrupted prompt (Tango 2); needs prompts alone",
}
NONE_GIVEN = {  # said of those of which a kind makes no pair
    "prompts": "prompts have fewer than two concepts",
    "corrupt": "have no sound that could be corrupted",
}
PARTIAL = ".rows.partial{}.jsonl"  # a rank's own


@dataclasses.dataclass(frozen=True)
class Made:
    """A pair before it is written; `plan`: what was taken of the real clip, None without one; `extra`: columns of its
    row; `sounds`: of chosen and rejected, None of silent clips."""

    chosen: np.ndarray
    rejected: np.ndarray
    plan: PairPlan | None
    extra: dict
    sounds: tuple[Sound | None, Sound | None] = (None, None)


def make(kind: str, config: Config, source: str, out: Path, ranks: Ranks | None = None) -> Path:
    """Make `make.pairs_per_clip` pairs of every row of `source` in the folder `out`. Returns its manifest.

    `source`: JSONL, CSV or Parquet rows with `id`, `prompt` and (not for `prompts`) `video`, a path relative to it.
    Both clips of a pair go through the same decoding, size and encoding, so that no codec gives one away; so does the
    sound of a real clip, which both have where it isn't what differs; clips that a model makes from noise sound as it
    makes them. The reward
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
    if (
        kind == "corrupt"
        and AUDIO not in config.model.streams
        and (of_sound := [name for name in config.make.faults(config.model.streams) if name in SOUND_FAULTS])
    ):
        raise InputError(
            f"make.corruptions has {', '.join(of_sound)} and a model of {config.model.family} is given no sound, to "
            "which both clips of such a pair are the same: leave them out"
        )
    if kind == "guided" and reward is None:
        raise InputError(
            "guided pairs need a reward that decides: set evaluate.reward to `package.module:function`"
        )
    try_reward(config, sources[0].prompt)
    made_from = _hashes(kind, config, sources, ranks)
    digest = _digest(kind, config)
    held = ranks.main_first(lambda: hold(out) if ranks.rank == 0 else None)
    done = ranks.gather(ranks.main_first(lambda: _done(out, digest, made_from)))[
        0
    ]  # read before anybody writes
    jobs = {_name(config, row, n): (row, n) for row in sources for n in range(config.make.pairs_per_clip)}
    mine = dict([job for job in jobs.items() if job[0] not in done][ranks.rank :: ranks.count])
    pair_of = _maker(kind, config, list(mine.values()), reward, out, sources)
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
    if not any(part for part, _ in parts):
        raise InputError(f"{source}: no pair can be made of it: all its {len(jobs)} {NONE_GIVEN[kind]}")
    if ranks.rank == 0:
        made_of = {name: row for part, _ in parts for name, row in part.items()}
        pairs = [made_of[name] for name in jobs if name in made_of]
        _publish(out, pairs, kind, asked=len(jobs), rows=len(sources))
        for line in views_said([each for _, part in parts for each in part]):
            say(f"  {line}")
    ranks.gather(None)  # the manifest is there
    if held is not None:
        held.close()
    return out / "manifest.jsonl"


def _name(config: Config, row: Source, number: int) -> str:
    return row.id if config.make.pairs_per_clip == 1 else f"{row.id}-{number}"


def _publish(out: Path, pairs: list[dict], kind: str, *, asked: int, rows: int) -> None:
    """Write the manifest of what all ranks made."""
    with atomic_path(out / "manifest.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    for partial in out.glob(PARTIAL.format("*")):
        partial.unlink()
    ties, skipped = sum(row.get("preference") == TIE for row in pairs), asked - len(pairs)
    say(
        f"{len(pairs)} pairs of {rows} rows, {ties} of them ties"
        + (f"; {skipped} {NONE_GIVEN[kind]} and gave none" if skipped else "")
    )
    faults = sum(row.get("corruption") in SOUND_FAULTS for row in pairs)
    if sounding := sum(AUDIO in row.get("dimensions", {}) for row in pairs):
        say(
            f"  {sounding} pairs have sound, {TRACK}: "
            + (f"{faults} a fault of it under the same picture, " if faults else "")
            + f"{sounding - faults} the clip's own on both sides"
        )


def _maker(
    kind: str,
    config: Config,
    jobs: list[tuple[Source, int]],
    reward: Reward | None,
    out: Path,
    sources: list[Source],
) -> Callable:
    """(row, number) of `jobs`, which are of `sources` -> a pair, or None where the row gives none."""
    if kind == "corrupt":
        return lambda row, number: _corrupted(config, row, number, sources)
    import torch

    from pgdpo.making.generate import Generator

    prompts = {row.prompt for row, _ in jobs}
    if kind == "prompts":
        prompts |= {corrupt_prompt(row.prompt, rng_of(config, row, n)) for row, n in jobs} - {None}
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    model = Generator(config, sorted(prompts), device)
    if is_main_rank():
        write_json(out / "sampling.json", dataclasses.asdict(model.settings))
    if kind == "guided":
        return lambda row, number: _guided(config, model, row, number, reward)
    ways = {"masked": _masked, "real": _real, "prompts": _prompts}
    return lambda row, number: ways[kind](config, model, row, number)


def _corrupted(config: Config, row: Source, number: int, sources: list[Source]) -> Made | None:
    """A fault of the picture under the clip's own sound on both sides, or of the sound under its picture; of a clip in
    which nothing is to be heard the picture's alone."""
    rng, (frames, plan) = rng_of(config, row, number), frames_of(config, row, number)
    sound = sound_of(plan)
    others = [each for each in sources if each.video != row.video]
    faults = list(config.make.faults(config.model.streams))
    if not (sound and heard(sound)):
        faults = [name for name in faults if name in CORRUPTIONS]
    while faults:
        name = str(rng.choice(faults))
        extra = {"chosen_is_real": True, "corruption": name}
        if name in CORRUPTIONS:
            return _over(sound, Made(frames, CORRUPTIONS[name](frames, rng), plan, extra))
        bad = SOUND_FAULTS[name](sound, rng, lambda: _wrong_sound(config, others, number, sound, rng))
        if bad is not None:
            return Made(frames, frames, plan, extra | {"dimensions": {VIDEO: TIE, AUDIO: 1}}, (sound, bad))
        faults.remove(name)
    return None


def _wrong_sound(
    config: Config, others: list[Source], number: int, own: Sound, rng: np.random.Generator
) -> Sound | None:
    """The sound of the first of the others, in an order drawn anew, whose part has one that is heard and is not the
    clip's own."""
    for place in rng.permutation(len(others)):
        with contextlib.suppress(InputError):  # it is shorter
            sound = sound_of(plan_of(config, others[place], number), own.seconds)
            if sound and heard(sound) and not np.array_equal(sound.samples, own.samples):
                return sound
    return None


def _over(sound: Sound | None, made: Made) -> Made:
    """The pair with the real clip's own sound on both sides: of its parts the picture alone is judged."""
    if sound is None:
        return made
    dimensions = {VIDEO: made.extra.get("preference", 1), AUDIO: TIE}
    return dataclasses.replace(made, sounds=(sound, sound), extra=made.extra | {"dimensions": dimensions})


def _guided(config: Config, model, row: Source, number: int, reward: Reward) -> Made:
    (frames, plan), sigma = frames_of(config, row, number), _sigma(config, row, number)
    clips = [model.from_clip(row.id, frames, row.prompt, sigma, 2 * number + side) for side in range(2)]
    sound = sound_of(plan)
    told = sound if AUDIO in config.model.streams else None
    first, second = (reward(clip, row.prompt, told)["total"] for clip in clips)
    if second > first:
        clips.reverse()
    extra = {"renoised_to": sigma, **({"preference": TIE} if first == second else {})}
    return _over(sound, Made(*clips, plan, extra))


def _masked(config: Config, model, row: Source, number: int) -> Made:
    rng, sigma, data = rng_of(config, row, number), _sigma(config, row, number), config.data
    frames, plan = frames_of(config, row, number)
    _, _, rows, columns = model.family.latent_shape(data.num_frames, data.height, data.width)
    box = tuple(_side(rng, length) for length in (rows, columns))
    made = model.inside(row.id, frames, row.prompt, sigma, number, box)
    mask = np.zeros((data.height, data.width), np.uint8)
    scales = (data.height // rows, data.width // columns)
    mask[tuple(slice(s.start * k, s.stop * k) for s, k in zip(box, scales, strict=True))] = 255
    # The untouched clip takes the same way through the VAE, or its loss of detail would give the other away.
    untouched, _ = model.through_vae(frames, None)
    extra = {"chosen_is_real": True, "renoised_to": sigma, "mask": mask}
    return _over(sound_of(plan), Made(untouched, made, plan, extra))


def _real(config: Config, model, row: Source, number: int) -> Made:
    frames, plan = frames_of(config, row, number)
    wanted = model.encoders.sound
    own = None if wanted is None else sound_of(plan, fmt=wanted)
    if wanted is None and plan.like.sound is not None:
        say_once("the sound of the real clips is left out: the model's own clips have none")
    chosen, heard_of = model.through_vae(frames, own)
    rejected, made = model.from_noise(row.id, row.prompt, number, silent=own is None)
    return Made(chosen, rejected, plan, {"chosen_is_real": True}, (heard_of, made))


def _prompts(config: Config, model, row: Source, number: int) -> Made | None:
    other = corrupt_prompt(row.prompt, rng_of(config, row, number))
    if other is None:
        return None
    clips, sounds = zip(
        *(model.from_noise(row.id, prompt, number) for prompt in (row.prompt, other)), strict=True
    )
    return Made(*clips, None, {"caption_rejected": other}, sounds)


def _write(
    out: Path, name: str, row: Source, made: Made, kind: str, config: Config, reward: Reward | None
) -> dict:
    """Clips, mask and scores of one pair. Returns its manifest row."""
    written = {"id": name, "prompt": row.prompt}
    fps = made.plan.rate if made.plan is not None else config.fps or config.model.fps
    sounds = dict(zip(("chosen", "rejected"), made.sounds, strict=True))
    for side, sound in sounds.items():
        path = out / "clips" / f"{name}-{side}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, getattr(made, side), fps, sound=sound)
        written |= {side: path.relative_to(out).as_posix(), f"sha256_{side}": sha256_of(path)}
    extra = dict(made.extra)
    if (mask := extra.pop("mask", None)) is not None:
        from PIL import Image

        Image.fromarray(mask).save(out / "clips" / f"{name}-mask.png")
        extra["mask"] = f"clips/{name}-mask.png"
    if reward is not None:
        extra["scores"] = {
            side: reward(getattr(made, side), row.prompt, sound if AUDIO in config.model.streams else None)
            for side, sound in sounds.items()
        }
    return {**written, "fps": fps, "source": f"pgdpo make {kind}", **extra}


def _sigma(config: Config, row: Source, number: int) -> float:
    low, high = config.make.renoise
    return float(rng_of(config, row, number).uniform(low, high))


def _side(rng: np.random.Generator, length: int) -> slice:
    size = max(1, round(length * rng.uniform(0.3, 0.6)))
    first = int(rng.integers(0, length - size + 1))
    return slice(first, first + size)


def _hashes(kind: str, config: Config, sources: list[Source], ranks: Ranks) -> dict[str, str]:
    """Row id -> hash of what it is made from; the ranks share the reading. Raises InputError for all clips that do not
    fit."""
    mine, refused = {}, []
    own = sources[ranks.rank :: ranks.count]
    with progress_bar("look at the rows", total=len(own)) as bar:
        for row in own:
            try:
                if row.video is not None:
                    _check_clip(config, row, kind)
                mine[row.id] = _hash([row.id, row.prompt, row.video and sha256_of(Path(row.video))])
            except InputError as error:
                refused.append(str(error))
            bar.advance()
    parts = ranks.gather((mine, refused))
    if refused := [reason for _, part in parts for reason in part]:
        raise InputError("\n".join(refused))
    return {name: digest for part, _ in parts for name, digest in part.items()}


def _check_clip(config: Config, row: Source, kind: str) -> None:
    """Raises InputError for a clip that is too slow or short, or whose sound ends before one of its parts or would not
    keep in step with its frames."""
    for number in range(config.data.pairs_per_row):
        plan = plan_of(config, row, number)
        if (kind == "real" and AUDIO not in config.model.streams) or plan.like.sound is None:
            continue
        if plan.like.variable and config.fps is None:
            raise InputError(
                f"{row.video}: its frames are not equally long, and taken one by one (data.fps is `own`) they are out "
                "of step with its sound: leave data.fps out or set it, take the clip's track off, or leave the row out"
            )
        missing(plan.like, (plan.first + plan.size[0]) / plan.rate)


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
