"""Two parallel folders of clips with equal names, as SimpleTuner takes them; prompts beside them or in the names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgdpo.files.bounded import LARGEST_LINE, parse_json, read_text
from pgdpo.files.tables import Record
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import Format, Found, Media, Options, Reading

NAMES = (("win", "lose"), ("winvideos", "losevideos"), ("chosen", "rejected"), ("w", "l"))
MEDIA = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".png", ".jpg", ".jpeg", ".webp")


def read(source: str, options: Options) -> Reading:
    folder = Path(source)
    sides = next((pair for pair in NAMES if all((folder / name).is_dir() for name in pair)), None)
    if sides is None:
        wanted = " or ".join(f"{chosen}/ and {rejected}/" for chosen, rejected in NAMES)
        raise InputError(f"{source}: holds no two folders {wanted}; SOURCE is a local folder with both")
    chosen, rejected = (_clips(folder / name) for name in sides)
    both = sorted(chosen.keys() & rejected.keys())
    alone = sorted(
        str((chosen | rejected)[stem].relative_to(folder)) for stem in chosen.keys() ^ rejected.keys()
    )
    named = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
    left_over = [f"{len(alone)} clips have no partner of the same name: {named}"] if alone else []
    rows = (item for stem in both for item in _row(source, stem, chosen[stem], rejected[stem]))
    return Reading(len(both), rows, left_over)


def _clips(folder: Path) -> dict[str, Path]:
    """Clips by their path without its ending."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in MEDIA and file.is_file()]
    clips = {str(file.relative_to(folder).with_suffix("")): file for file in files}
    if len(clips) < len(files):
        twice = next(file for file in files if clips[str(file.relative_to(folder).with_suffix(""))] != file)
        raise InputError(f"{twice}: another clip differs in the ending only; rename or remove one of the two")
    return clips


def _row(source: str, stem: str, chosen: Path, rejected: Path) -> Iterator[Found | Problem]:
    captions, fields = {}, {"name": stem}
    for side, clip in (("chosen", chosen), ("rejected", rejected)):
        for ending in (".txt", ".caption", ".json"):
            sidecar = clip.with_suffix(ending)
            if not sidecar.is_file():
                continue
            try:
                text = read_text(sidecar, LARGEST_LINE).strip()
                content = parse_json(text) if ending == ".json" else text
            except ValueError as error:
                yield Record(str(sidecar), {}).problem(
                    f"not {'JSON' if ending == '.json' else 'UTF-8 text'}: {error}",
                    allowed="text, or a JSON object with `prompt` or `caption`",
                    suggestion="write it again or remove it",
                )
                return
            fields[f"{side}{ending}"] = content
            if isinstance(content, dict):
                content = content.get("prompt") or content.get("caption")
            if isinstance(content, str):
                captions.setdefault(side, content)
    row = {
        "chosen": Media(str(chosen.absolute()), source),
        "rejected": Media(str(rejected.absolute()), source),
    }
    row |= {
        "id": stem,
        "prompt": captions.get("chosen", Path(stem).name.replace("_", " ")),
        "preference": 1.0,
    }
    if captions.get("rejected", row["prompt"]) != row["prompt"]:
        row["caption_rejected"] = captions["rejected"]
    yield Found(row, fields)


FORMAT = Format(
    "folders",
    "win/ and lose/ with clips of equal names; prompts from .txt, .caption or .json beside them, else from the names.",
    "a folder with win/ and lose/ (or chosen/ and rejected/, winvideos/ and losevideos/, w/ and l/)",
    read,
    {"name": "id"},
)
