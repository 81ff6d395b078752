"""The toy world as a dataset: H.264 clips and manifests on disk, with each clip's true reward."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pgdpo.config.model import TOY_FPS
from pgdpo.toy.reward import ToyReward, true_reward
from pgdpo.toy.scene import SPLITS, Scene, example, group, render
from pgdpo.toy.tone import RATE, Tone, faults_of, play, tone_of, voiced
from pgdpo.video import SoundFormat, probe_video, read_sound, read_video, write_video

__all__ = ["ToyReward", "example", "render", "render_dataset", "true_reward"]

SIDE, NUM_FRAMES, FPS = 64, 12, int(TOY_FPS)
SHAPE = {"fps": FPS, "num_frames": NUM_FRAMES, "width": SIDE, "height": SIDE}
HEARD = SoundFormat(RATE, 1)
SOUND_FORMAT = 1  # as FORMAT, of the tones
FORMAT = 1  # part of the parameters: clips of another version of the toy world are rendered anew


def render_dataset(
    folder: str | Path,
    *,
    train_pairs: int = 96,
    held_out_pairs: int = 32,
    seed: int = 0,
    samples: int = 2,
    sound: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, Path]:
    """Render the toy world's pairs, or groups, as mp4 clips of 64x64 pixels, 12 frames, 8 frames a second.

    Writes `train.jsonl`, `held_out.jsonl`, their clips under `clips/` and, last, `toy.json` with the
    parameters and the manifests' SHA-256. A finished dataset of the same parameters is left alone, an
    unfinished one is completed: a clip stands under its name only when it is whole, and is the same
    whenever it is rendered.

    Args:
        folder: made when missing.
        train_pairs, held_out_pairs: rows of each manifest.
        samples: clips of each row: 2 are a pair, more a group.
        sound: clips have a tone (`tone.py`), and rejected ones a faulty picture, a faulty tone or both.
        progress: called with (rows done, rows in all) after every row.

    Returns:
        The paths of the training and the held-out manifest. Rows of pairs: id, prompt, chosen, rejected (relative to
        the manifest), fps, num_frames, width, height, defect, strength, and `scores` with the ToyReward of both clips
        as decoded; with sound `dimensions` too, in which the part that isn't faulty is a tie. Rows of groups: `samples`
        in place of chosen, rejected and scores, best first, each with clip, score (the reward's total), rank (equal
        scores share one) and scores; `strength` is a list, one a sample.
    """
    folder = Path(folder)
    counts = {"train": train_pairs, "held_out": held_out_pairs}
    parameters = {
        "format": FORMAT,
        "seed": seed,
        **counts,
        "side": SIDE,
        "num_frames": NUM_FRAMES,
        "fps": FPS,
        **({"samples": samples} if samples != 2 else {}),
        **({"sound": SOUND_FORMAT} if sound else {}),
    }
    manifests = tuple(folder / f"{split}.jsonl" for split in SPLITS)
    record = folder / "toy.json"
    if _is_finished(record, parameters, manifests):
        return manifests
    # Clips carry their parameters' digest in their folder's name: another seed's are never taken for these.
    digest = hashlib.sha256(json.dumps({**parameters, **dict.fromkeys(counts)}).encode()).hexdigest()
    clips = folder / "clips" / digest[:8]
    clips.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(counts.values())
    for split, manifest in zip(SPLITS, manifests, strict=True):
        rows = []
        for index in range(counts[split]):
            rows.append(
                _render_pair(clips, seed, split, index, sound)
                if samples == 2
                else _render_group(clips, seed, split, index, samples, sound)
            )
            done += 1
            if progress is not None:
                progress(done, total)
        _write_text(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    _write_text(record, _record(parameters, manifests))
    return manifests


def _render_pair(clips: Path, seed: int, split: str, index: int, sound: bool) -> dict:
    pair = example(seed, index, split=split, num_frames=NUM_FRAMES)
    name = f"{split}-{index:05d}"
    row = {"id": name, "prompt": pair.prompt}
    chosen, rejected = _heard([pair.chosen, pair.rejected], [0.0, pair.strength], seed, split, index, sound)
    scores = {}
    for side, (scene, tone) in (("chosen", chosen), ("rejected", rejected)):
        row[side], scores[side] = _render_clip(clips / f"{name}-{side}.mp4", scene, tone)
    row |= {**SHAPE, **_defects(pair.defect, seed, split, index, sound), "strength": pair.strength}
    if sound:
        faults, _ = faults_of(seed, index, split)
        row["dimensions"] = {
            part: 0.5 if faults == other else 1.0
            for part, other in (("video", "sound"), ("audio", "picture"))
        }
    return {**row, "scores": scores}


def _render_group(clips: Path, seed: int, split: str, index: int, samples: int, sound: bool) -> dict:
    drawn = group(seed, index, samples, split=split, num_frames=NUM_FRAMES)
    name = f"{split}-{index:05d}"
    heard = _heard(drawn.scenes, drawn.strengths, seed, split, index, sound)
    rendered = [
        (*_render_clip(clips / f"{name}-{grade}.mp4", *clip), drawn.strengths[grade])
        for grade, clip in enumerate(heard)
    ]
    rendered.sort(key=lambda clip: -clip[1]["total"])
    totals = sorted({scores["total"] for _, scores, _ in rendered}, reverse=True)
    listed = [
        {"clip": clip, "score": scores["total"], "rank": totals.index(scores["total"]), "scores": scores}
        for clip, scores, _ in rendered
    ]
    strengths = [strength for *_, strength in rendered]
    row = {"id": name, "prompt": drawn.prompt, "samples": listed}
    return {**row, **SHAPE, **_defects(drawn.defect, seed, split, index, sound), "strength": strengths}


def _heard(
    scenes: Sequence[Scene], strengths: Sequence[float], seed: int, split: str, index: int, sound: bool
) -> list[tuple[Scene, Tone | None]]:
    """The clips of a row, the flawless one first, each with its tone; None in the silent world."""
    if not sound:
        return [(scene, None) for scene in scenes]
    whole, row = scenes[0], {"seed": seed, "index": index, "split": split}
    faulty = zip(scenes[1:], strengths[1:], strict=True)
    return [
        (whole, tone_of(whole)),
        *(
            voiced(whole, scene, strength, **row, grade=grade)
            for grade, (scene, strength) in enumerate(faulty, 1)
        ),
    ]


def _defects(of_picture: str, seed: int, split: str, index: int, sound: bool) -> dict[str, str]:
    """What a row says of its defects: the picture's first."""
    if not sound:
        return {"defect": of_picture}
    faults, of_sound = faults_of(seed, index, split)
    return {"defect": {"picture": of_picture, "sound": of_sound, "both": f"{of_picture}, {of_sound}"}[faults]}


def _render_clip(clip: Path, scene: Scene, tone: Tone | None) -> tuple[str, dict[str, float]]:
    """(the clip as a row names it, its ToyReward as decoded)."""
    if not clip.exists():
        write_video(clip, render(scene, SIDE), FPS, sound=None if tone is None else play(tone, FPS))
    heard = None if tone is None else read_sound(probe_video(clip), 0.0, NUM_FRAMES / FPS, HEARD)
    reward = true_reward(read_video(clip, num_frames=NUM_FRAMES), scene.prompt, heard)
    return clip.relative_to(clip.parents[2]).as_posix(), asdict(reward)


def _record(parameters: dict, manifests: tuple[Path, ...]) -> str:
    hashes = {manifest.name: hashlib.sha256(manifest.read_bytes()).hexdigest() for manifest in manifests}
    return json.dumps({"parameters": parameters, "sha256": hashes}, indent=2) + "\n"


def _is_finished(record: Path, parameters: dict, manifests: tuple[Path, ...]) -> bool:
    if not all(path.is_file() for path in (record, *manifests)):
        return False
    if record.read_text(encoding="utf-8") != _record(parameters, manifests):
        return False
    rows = [json.loads(line) for path in manifests for line in path.read_text(encoding="utf-8").splitlines()]
    return all((record.parent / clip).is_file() for row in rows for clip in _clips_of(row))


def _clips_of(row: dict) -> list[str]:
    return (
        [sample["clip"] for sample in row["samples"]]
        if "samples" in row
        else [row["chosen"], row["rejected"]]
    )


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
