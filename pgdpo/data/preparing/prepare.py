"""Clips and prompts -> latents and embeddings, once: safetensors shards that hold a fixed number of pairs or groups.

A prepared folder holds, for every size (bucket), `shard-<F>x<H>x<W>-00000.safetensors`, ... (`<i>.chosen`,
`<i>.rejected`, of a group `<i>.sample0`, `<i>.sample1`, ..., of shape [C, F, H, W], `<i>.mask` [1, F, H, W] where the
row has a mask, and `<i>.<name>` for a conditioning image); `text-00000.safetensors`, ... with `<prompt key>.<name>` for
every distinct prompt, the clips' own captions among them;
`negative-00000.safetensors`, ... with a negative prompt each: they are no part of the pairs, another one is added, and
those that are there stay as they are. Beside each file a `.json` says what it was made from; and, written last,
`index.json` has the SHA-256 of every file, every pair and every prompt, the rows, and what all of it was made of
(`made_of.py`).

Which pairs stand in a file, and its bytes, follow from the rows alone. Prepared again, a file made from the same is
kept; into another one goes, from the earlier files, what did not change (`earlier.py`). A file that would stand in the
place of an earlier one gets part of its key into its name, `shard-4x16x16-00000-1a2b3c4d.safetensors`: the earlier
files go when the new index stands.

Ranks share the files: each encodes its own, and the main rank writes the index when all are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pgdpo.config import DataConfig, fps_of
from pgdpo.data.bad import check_bad
from pgdpo.data.buckets import size_name
from pgdpo.data.clips import Sampling, bucket_of, probe_pair, views_said
from pgdpo.data.preparing.ahead import Behind
from pgdpo.data.preparing.earlier import Earlier
from pgdpo.data.preparing.encode import Work, in_order, prepare_shards
from pgdpo.data.preparing.made_of import Hashes, record
from pgdpo.data.preparing.room import check_room
from pgdpo.data.preparing.sounds import sounds_said
from pgdpo.data.preparing.tiled import settle_tiling
from pgdpo.data.shards import INDEX, content_key, kept, note_of, prompt_key, tensors_sha256, write
from pgdpo.data.sources import read_rows, sources_of
from pgdpo.diffusion.streams import AUDIO, VIDEO
from pgdpo.files.atomic import write_json
from pgdpo.messages.console import progress_bar, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models.encoders.cuts import ONE_PROMPT, say_cut_prompts
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning, Encoders
from pgdpo.ranks.joined import Ranks
from pgdpo.rows.manifest import GIVEN, PairRow
from pgdpo.rows.schema import captions_of, counted, cut_labels, spoken

PROMPTS_PER_FILE = 256  # held in memory until the file is written, as those of the next one are meanwhile
PROMPTS_AT_ONCE = 32
LENGTHS = {
    "pair": "pairs have clips of two lengths: of the longer as much counts as of the shorter",
    "group": "groups have clips of several lengths: of each as much counts as of the shortest",
}


UNREAD = {
    "image": "what is taken begins later than the clips: its first frame stands for the row's `image`",
    "last_image": "what is taken ends earlier than the clips: its last frame stands for the row's `last_image`",
}


class Prepared(NamedTuple):
    """A folder's index, and how many of its pairs were encoded or taken over; `removed`: those that it had before."""

    index: dict
    encoded: int
    kept: int
    removed: int
    embedded: int  # prompts

    def __str__(self) -> str:
        parts = {"encoded": self.encoded, "kept": self.kept, "removed": self.removed}
        told = [f"{count} {what}" for what, count in parts.items() if count or what == "encoded"]
        return f"{counted(self.index['pairs'])} ({', '.join(told)}; {self.embedded} prompts embedded)"


def prepare(
    folder: Path,
    config: DataConfig,
    family: Family,
    encoders: Encoders,
    ranks: Ranks | None = None,
    *,
    split: str = "train",
    toy: Path = Path("toy"),
    negative: str = "",
    full: bool = False,
) -> Prepared:
    """Encode every pair of `split` into `folder`; what is there and still valid is kept.

    All `ranks` call it together. `toy`: the folder with the toy's manifests. `negative`: a negative prompt, encoded
    beside the rows' own and those of before. `full`: read all clips for their hashes, also those of unchanged name,
    size and time.
    Raises InputError for a bad row or clip (more than 1% of them, where `data.on_bad_data` is `skip`) and for a disk
    that is too small, before the index is written.
    """
    ranks = ranks or Ranks()
    family.check_fps(config)
    sampling = Sampling.of(config, fps_of(config, family.model))
    for size in config.sizes:
        family.check_clip(*size)
    rows = ranks.main_first(lambda: read_rows(config, split, toy, say=say))
    where = ", ".join(str(source.manifest) for source in sources_of(config, split, toy))
    earlier = Earlier(folder, encoders, config.latent_dtype)
    hashes = Hashes(() if full else earlier.pairs.values())
    work = Work(folder, config, sampling, family, encoders, ranks, earlier, hashes)
    buckets, bad = _into_buckets(rows, work)
    check_bad(bad, len(rows), config.on_bad_data, where)
    captions = {caption for row in rows for caption in captions_of(row.extra).values()}
    read = sorted({row.prompt for row in rows} | captions | {""})
    prompts = read
    if (
        family.reads_pictures
    ):  # with the pictures, beside the clips; all but the empty one, of a dropped caption
        _refuse_captions(rows)
        prompts = [""]
    negatives = [*earlier.negatives, *({negative} - {*prompts, *earlier.negatives})]
    if ranks.rank == 0:
        say_cut_prompts(encoders, read + negatives)
    text_dtype = _settle_text_dtype(work)
    _check_room(work, buckets, prompts=len(prompts) + len(negatives), text_dtype=text_dtype)
    settle_tiling(work)
    text, negative_text, embedded = _prepare_text(prompts, negatives, text_dtype, work)
    shards = prepare_shards(rows, buckets, work)
    bad |= {entry["id"]: entry["reason"] for shard in shards for entry in shard.entry["bad"]}
    check_bad(bad, len(rows), config.on_bad_data, where)
    files = [shard.entry for shard in shards]
    made_of = {name: made for shard in shards for name, made in shard.made_of.items()}
    pairs = {row.id: made_of[row.id] if row.id in made_of else work.files(row) for row in rows}
    index = _index(rows, text, files, bad, pairs, config, encoders)
    index["negative"] = negative_text
    index["made_of"] = record(config, split, encoders.parts, sampling, pairs)
    if ranks.rank == 0:
        seen = [(pair["fps"], pair["view"]) for pair in pairs.values() if "view" in pair]
        for line in views_said(seen, rows[0].kind):
            say(f"  {line}")
        if encoders.sound is not None:
            heard = [pair["sound"] for pair in pairs.values() if "sound" in pair]
            for line in sounds_said(heard, rows[0].kind):
                say(f"  {line}")
        unread = Counter(key for pair in pairs.values() for key in pair.get("unread", ()))
        for key, count in sorted(unread.items()):
            say(f"  {count} {rows[0].kind}s: {UNREAD[key]}")
        asked = {GIVEN.get(frame) for frame in encoders.pictures}
        ignored = Counter(
            key for row in rows for key in GIVEN.values() if key in row.files and key not in asked
        )
        for key, count in sorted(ignored.items()):
            say(f"  {count} {rows[0].kind}s name `{key}`, which this model is not given: it is not read")
        unequal = sum(shard.unequal for shard in shards)
        if unequal:
            say(f"  {unequal} {LENGTHS[rows[0].kind]}")
        write_json(folder / "index.json", index)
        _remove_stale(folder, [*text["files"], *negative_text["files"], *files])
        for reason in bad.values():
            say(f" {reason}", first="skipped")
    ranks.gather(None)  # nobody reads the folder before its index is there
    encoded = sum(shard.encoded for shard in shards)
    removed = len(set(earlier.ids) - {row["id"] for row in index["pairs"]})
    return Prepared(index, encoded, len(index["pairs"]) - encoded, removed, embedded)


def _refuse_captions(rows: Sequence[PairRow]) -> None:
    """Raises InputError for a sample with a caption of its own, where a text encoder reads prompts with pictures."""
    for row in rows:
        for side in captions_of(row.extra):
            raise InputError(f"the caption of {spoken(row.id, row.clips, side)}: {ONE_PROMPT}; leave it out")


def _settle_text_dtype(work: Work) -> str | None:
    """The dtype that a folder's prompts are embedded and stored in, as its files say it of themselves.

    What is there decides, so that a prompt that is added on another machine is computed as the others were. None:
    files of earlier versions are there, which say nothing: these stored fp32 in whatever they computed.
    """
    encoders, there = work.encoders, work.earlier.text_files()
    own = str(encoders.text_dtype).removeprefix("torch.")
    said = there[0].get("dtype") if there else own
    if said not in (None, own):
        encoders.text_dtype = getattr(torch, said)
        say(f"{work.folder}: prompts are embedded in {said}, as those that are there were")
    return said


def _check_room(
    work: Work, buckets: Sequence[Sequence[PairRow]], *, prompts: int, text_dtype: str | None
) -> None:
    sizes, step = work.config.sizes, work.config.pairs_per_shard
    groups = [
        [row.id for row in members[first : first + step]]
        for members in buckets
        for first in range(0, len(members), step)
    ]
    check_room(
        work.folder,
        work.family,
        {size: members for size, members in zip(sizes, buckets, strict=True) if members},
        prompts=prompts,
        dtype=getattr(torch, work.config.latent_dtype),
        text_dtype=getattr(torch, text_dtype or "float32"),
        superseded=work.earlier.superseded(groups),
    )


def _into_buckets(rows: Sequence[PairRow], work: Work) -> tuple[list[list[PairRow]], dict[str, str]]:
    """(rows of each size in the manifest's order, id -> why a row fits none).

    With one size nothing has to be chosen: what is wrong with a clip shows when it is encoded.
    """
    config, ranks = work.config, work.ranks
    if len(config.sizes) == 1:
        return [list(rows)], {}
    mine: dict[str, int | str] = {}
    with progress_bar("sort clips into buckets", total=len(rows[ranks.rank :: ranks.count])) as bar:
        for row in rows[ranks.rank :: ranks.count]:
            try:
                mine[row.id] = bucket_of(row.id, probe_pair(row), config.sizes, work.sampling)
            except InputError as error:
                mine[row.id] = str(error)
            bar.advance()
    found = {name: bucket for part in ranks.gather(mine) for name, bucket in part.items()}
    bad = {row.id: found[row.id] for row in rows if isinstance(found[row.id], str)}
    buckets = [[row for row in rows if found[row.id] == number] for number in range(len(config.sizes))]
    for size, members in zip(config.sizes, buckets, strict=True):
        say(f"bucket {size_name(size)} (frames x height x width): {counted([row.extra for row in members])}")
    return buckets, bad


def _prepare_text(
    prompts: Sequence[str], negatives: list[str], dtype: str | None, work: Work
) -> tuple[dict, dict, int]:
    """(the index's part of the distinct prompts, that of the negative ones, how many were embedded)."""
    ranks, stored = work.ranks, getattr(torch, dtype or "float32")
    beside = {} if dtype is None else {"dtype": dtype}
    texts = [prompts[first : first + PROMPTS_PER_FILE] for first in range(0, len(prompts), PROMPTS_PER_FILE)]
    parts = [
        *((f"text-{number:05d}", part) for number, part in enumerate(texts)),
        *((f"negative-{number:05d}", [prompt]) for number, prompt in enumerate(negatives)),
    ]
    mine = range(ranks.rank, len(parts), ranks.count)
    done: dict[int, Future[dict]] = {}
    embedded = 0
    total = sum(len(parts[n][1]) for n in mine)
    with progress_bar(f"encode prompts{work.share()}", total=total) as bar, Behind() as behind:
        for number in mine:
            stem, part = parts[number]
            key = content_key(work.encoders.fingerprint, part)
            path = work.earlier.place(stem, key)
            if there := kept(path, key):
                done[number] = behind.begin(lambda entry=there: entry)
            else:
                found, new = _embed(part, stored, work)
                embedded += new
                done[number] = behind.begin(partial(_write, path, key, found, beside))
            bar.advance(len(part))
    files = in_order(ranks.gather({number: file.result() for number, file in done.items()}))
    negative = {**_text_index(files[len(texts) :]), "written": negatives}
    return _text_index(files[: len(texts)]), negative, sum(ranks.gather(embedded))


def _text_index(files: Sequence[dict]) -> dict:
    """The index's part of the text files with these entries; of no file there are no names."""
    return {
        "names": files[0]["names"] if files else [],
        "bytes": sum(entry["bytes"] for entry in files),
        "files": [{key: value for key, value in entry.items() if key != "prompts"} for entry in files],
        "prompts": {
            key: [number, digest]
            for number, entry in enumerate(files)
            for key, digest in entry["prompts"].items()
        },
    }


def _embed(prompts: Sequence[str], dtype: torch.dtype, work: Work) -> tuple[dict[str, Conditioning], int]:
    """(conditioning by prompt, how many of them no earlier file has)."""
    found = {prompt: work.earlier.prompt(prompt_key(prompt)) for prompt in prompts}
    new = [prompt for prompt in prompts if found[prompt] is None]
    for start in range(0, len(new), PROMPTS_AT_ONCE):
        batch = new[start : start + PROMPTS_AT_ONCE]
        for prompt, embedding in zip(batch, work.encoders.encode_prompts(batch), strict=True):
            found[prompt] = {name: tensor.to(dtype) for name, tensor in embedding.items()}
        moved(f"encoded {start + len(batch)} of {len(new)} prompts of a file")
    return found, len(new)


def _write(path: Path, key: str, found: dict[str, Conditioning], beside: dict) -> dict:
    """A file of embeddings by prompt, of which `beside` is told too. Returns its entry."""
    tensors = {
        f"{prompt_key(prompt)}.{name}": tensor.contiguous()
        for prompt, embedding in found.items()
        for name, tensor in embedding.items()
    }
    names = sorted({name for embedding in found.values() for name in embedding})
    digests = {prompt_key(prompt): tensors_sha256(embedding) for prompt, embedding in found.items()}
    return write(path, key, tensors, {"names": names, **beside, "prompts": digests})


def _index(
    rows: Sequence[PairRow],
    text: dict,
    shards: Sequence[dict],
    bad: dict[str, str],
    made_of: dict[str, dict],
    config: DataConfig,
    encoders: Encoders,
) -> dict:
    done = {
        pair["id"]: {"shard": number, **pair}
        for number, shard in enumerate(shards)
        for pair in shard["pairs"]
    }
    files = [{key: value for key, value in shard.items() if key not in ("pairs", "bad")} for shard in shards]
    return {
        "format": INDEX,
        "encoders": encoders.fingerprint,
        "sizes": [list(size) for size in config.sizes],
        "text_length": encoders.text_length,
        "text": text,
        "image": max(
            (shard["names"] for shard in shards), key=len
        ),  # conditioning that stands in the shards, beside the latents
        "pictures": list(encoders.pictures),
        "streams": [VIDEO] if encoders.sound is None else [VIDEO, AUDIO],
        "shards": files,
        "bad": [{"id": name, "reason": reason} for name, reason in bad.items()],
        "pairs": [
            {**cut_labels(row.extra, span), "prompt": row.prompt, "span": span, **done[row.id]}
            for row in rows
            if row.id in done
            for span in [made_of[row.id]["span"]]
        ],
    }


def _remove_stale(folder: Path, entries: Sequence[dict]) -> None:
    paths = {folder / entry["file"] for entry in entries}
    kept = paths | {note_of(path) for path in paths}
    for path in {*folder.glob("shard-*"), *folder.glob("text*"), *folder.glob("negative-*")} - kept:
        path.unlink()
    for path in folder.glob(".*.tmp"):  # of a process that was killed while it wrote: no rank writes any more
        path.unlink(missing_ok=True)
