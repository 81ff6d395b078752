"""Prepared groups, pairs mostly, read back: a source whose every read is checked against the index."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pgdpo.data.shards import prompt_key, read_index, sound_name, tensors_sha256
from pgdpo.data.verified import MEND, add_to_note, look_at, wrong_size
from pgdpo.data.visits.mixture import Mixture
from pgdpo.data.visits.order import Order
from pgdpo.diffusion.draws import uniform
from pgdpo.diffusion.streams import AUDIO, VIDEO, Latents
from pgdpo.messages.console import is_main_rank
from pgdpo.messages.errors import InputError
from pgdpo.rows.ranked import ranked
from pgdpo.rows.schema import MANIFEST, SAMPLES, captions_of, kind_of, sides_of, sized, titled

TAKEN = "taken"  # in a row of which not all samples are held: which, and of how many


def alone(work: Callable[[int, int], object]) -> list:
    """`work(rank, ranks)` by this process, which shares it with no other."""
    return [work(0, 1)]


class PreparedPairs:
    """The pairs of a prepared folder. An item is addressed by (index, draw); `draw` counts a pair's visits.

    What is read is held against the hash that the index has of it. A pair that does not pass raises InputError, or,
    where `stand_in` is set, is answered by the next sound pair of its bucket with `damage` saying what was wrong.

    Raises InputError if the folder was not prepared, was prepared otherwise than asked, or a file's hash is wrong.
    """

    def __init__(
        self,
        folder: Path,
        *,
        expect: dict | None = None,
        seed: int = 0,
        caption_dropout: float = 0.0,
        stand_in: bool = False,
        full: bool = False,
        shared: Callable[[Callable[[int, int], object]], list] = alone,
    ) -> None:
        """Every file is looked at by one rank, and hashed if it is not known to be whole, or `full` asks for it.

        `shared`: how ranks share that, as `ranks.agreement.shared` does; all of them must open the pairs then.
        """
        self.folder = folder
        self.index = read_index(folder)
        self.index.pop("made_of", None)  # it is large and was looked at
        self.require(**(expect or {}))
        self.rows = self.index["pairs"]
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.stand_in = stand_in
        self.curation: list = []  # what data.select and data.weight did: `Kept` each
        self.stages: list[int] | None = None
        self.sources: list[str] = []  # names of the manifests, where there are several, and
        self.shares: dict[str, Fraction] | None = None  # of the visits, where they have any
        self._restriction = ""
        self._check_captions()
        self._handles: dict[str, object] = {}
        self.damaged_files = self._verify(full, shared)
        if self.damaged_files and not stand_in:
            raise InputError(next(iter(self.damaged_files.values())))

    def _check_captions(self) -> None:
        """Raises InputError where a sample's own caption was not embedded: earlier versions did not read it."""
        for row in self.rows:
            for side, caption in captions_of(row).items():
                if not self.has_text(caption):
                    raise InputError(
                        f"{self.folder / 'index.json'}: {titled(row['id'], sides_of(row), side)}: its own caption, "
                        f"{caption!r}, was not embedded: an earlier version prepared this and passed it over; run "
                        "`pgdpo prepare` again, which embeds the captions and encodes no clip"
                    )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        index, draw = item
        try:
            return self._read(index, draw)
        except InputError as error:
            if not self.stand_in:
                raise
            damage = str(error)
        bucket = next(bucket for bucket in self.buckets if index in bucket)
        after = bucket.index(index)
        for other in bucket[after + 1 :] + bucket[:after]:
            with contextlib.suppress(InputError):
                return {**self._read(other, draw), "damage": (self.rows[index]["id"], damage)}
        raise InputError(f"{damage} (and no other pair of its size can be read)")

    def _read(self, index: int, draw: int) -> dict:
        row = self.rows[index]
        pair_id = pair_hash(row["id"])
        dropped = uniform(self.seed, pair_id, draw, stream="caption") < self.caption_dropout
        tensors = self._pair(row)
        samples = [self._sample(tensors, side) for side in stored_sides(row)]
        samples = samples if TAKEN not in row else [samples[place] for place in row[TAKEN]["samples"]]
        mask = tensors.pop("mask", None)
        return {
            "id": row["id"],
            "pair_id": pair_id,
            "draw": draw,
            "row": row,
            "damage": None,
            "samples": samples,
            "mask": mask,
            "conditioning": {**tensors, **self.text("")} if dropped else self._told(row, tensors),
            "captions": {} if dropped else self._captions(row),
        }

    def _sample(self, tensors: dict[str, torch.Tensor], side: str) -> Latents:
        """A clip's latents, taken out of a row's tensors; of a folder of several streams by name."""
        video, sound = tensors.pop(side), tensors.pop(sound_name(side), None)
        if len(self.streams) == 1:
            return video
        return {VIDEO: video} if sound is None else {VIDEO: video, AUDIO: sound}

    def _told(self, row: dict, beside: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Conditioning by a row's prompt, and by what stands `beside` its clips: there the prompt too, where the text
        encoder read it with the row's picture."""
        if "prompt" in beside:
            return padded_text(beside, self.index["text_length"])
        return {**self.text(row["prompt"]), **beside}

    def prompt_of(self, index: int) -> dict[str, torch.Tensor]:
        """Conditioning by a row's prompt, whatever is dropped; see `text`."""
        row = self.rows[index]
        return self._told(row, self._pair(row) if "prompt" in self.index["image"] else {})

    def _captions(self, row: dict) -> dict[int, dict[str, torch.Tensor]]:
        """Conditioning of the samples that have a caption of their own, by their place."""
        sides = sides_of(row)
        return {sides.index(side): self.text(caption) for side, caption in captions_of(row).items()}

    def _pair(self, row: dict) -> dict[str, torch.Tensor]:
        sides = stored_sides(row)
        sounds = map(sound_name, sides if self.has_sound(row) else ())
        names = [*sides, *sounds, *self.index["image"], *(["mask"] if has_mask(row) else [])]
        entry = self.index["shards"][row["shard"]]
        return self._checked(entry, row["key"], names, row["sha256"], titled(row["id"], sides))

    def size_of(self, index: int) -> tuple[int, int, int]:
        """(frames, height, width) that a pair's clips were encoded at."""
        return tuple(self.index["shards"][self.rows[index]["shard"]]["size"])

    @property
    def streams(self) -> tuple[str, ...]:
        """What was encoded of clips: `video`, and `audio` where the encoders hear."""
        return tuple(self.index.get("streams", (VIDEO,)))

    def has_sound(self, row: dict) -> bool:
        """Whether the clips of a row of the index have latents of their sound."""
        return AUDIO in self.streams and row["sound"]

    @property
    def _texts(self) -> list[dict]:
        """The index's parts with prompts: the rows' and the empty one; negative ones, which earlier data lack."""
        return [self.index[part] for part in ("text", "negative") if part in self.index]

    def has_text(self, prompt: str) -> bool:
        """Whether the prompt was encoded."""
        return any(prompt_key(prompt) in text["prompts"] for text in self._texts)

    def text(self, prompt: str) -> dict[str, torch.Tensor]:
        """Conditioning by one of the prompts that were encoded, without a batch axis: the manifest's, the empty one, of
        held-out pairs the negative ones.

        `prompt` `[text_length, D]`, zero-padded; `prompt_mask` `[text_length]`, true where a token stands; and what
        else the family's text encoders gave.
        """
        key = prompt_key(prompt)
        text = next(text for text in self._texts if key in text["prompts"])
        number, digest = text["prompts"][key]
        tensors = self._checked(text["files"][number], key, text["names"], digest, f"prompt {prompt!r}")
        return padded_text(tensors, self.index["text_length"])

    def _checked(
        self, entry: dict, key: str, names: list[str], digest: str, what: str
    ) -> dict[str, torch.Tensor]:
        """The tensors `<key>.<name>` of a file; InputError naming it if they are not what was written."""
        path = self.folder / entry["file"]
        wrong = self.damaged_files.get(entry["file"]) or wrong_size(path, entry)
        if wrong:  # a mapped file that was cut short would kill the process at the first read
            raise InputError(f"{what}: {wrong}")
        try:
            file = self._open(path)
            tensors = {name: file.get_tensor(f"{key}.{name}") for name in names}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{what}: {path}: cannot be read ({error}); {MEND}") from error
        if tensors_sha256(tensors) != digest:
            raise InputError(f"{what}: {path}: its bytes have another SHA-256 than the index says: {MEND}")
        return tensors

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of the pairs' files, and over which pairs are held if not all are."""
        return hashlib.sha256("".join([*self._file_hashes(), self._restriction]).encode()).hexdigest()[:16]

    @property
    def files_fingerprint(self) -> str:
        """SHA-256 over the hashes of the pairs' files, whichever of their pairs are held."""
        return hashlib.sha256("".join(self._file_hashes()).encode()).hexdigest()[:16]

    def _file_hashes(self) -> list[str]:
        """Without negative prompts: how clips are sampled is no part of the pairs."""
        return [entry["sha256"] for entry in (*self.index["text"]["files"], *self.index["shards"])]

    @functools.cached_property
    def buckets(self) -> list[list[int]]:
        """Indexes of the groups of each size of clips, in the order of the configuration, of each number of samples,
        rising, and with sound or, after them, without; all that have any."""
        sizes = {tuple(size): place for place, size in enumerate(self.index["sizes"])}
        found: dict[tuple[int, int, bool], list[int]] = {}
        for index, row in enumerate(self.rows):
            silent = AUDIO in self.streams and not self.has_sound(row)
            found.setdefault((sizes[self.size_of(index)], len(sides_of(row)), silent), []).append(index)
        return [found[key] for key in sorted(found)]

    @property
    def group_sizes(self) -> list[int]:
        """Samples of a group in each of `buckets`: 2 of pairs."""
        return [len(sides_of(self.rows[bucket[0]])) for bucket in self.buckets]

    @property
    def kind(self) -> str:
        """`pair` or `group`: what its rows are."""
        return kind_of(sides_of(self.rows[0]))

    @property
    def sized(self) -> str:
        """`pairs`, or `groups of 2 to 6 samples`, and whether not all of these are held."""
        whole = [{SAMPLES: stored_sides(row)} if TAKEN in row else row for row in self.rows]
        part = any(TAKEN in row for row in self.rows)
        return sized(whole) + ", of each the best and the worst" * part

    @functools.cached_property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """`(C, F, H, W)` of each of `buckets`."""
        firsts = [self.rows[bucket[0]] for bucket in self.buckets]
        return [tuple(self.index["shards"][row["shard"]]["latent_shape"]) for row in firsts]

    @property
    def stream_shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Of each of `buckets` the shapes of its streams: `video` as in `latent_shapes`, `audio` `(C, L, M)`."""
        found = [{VIDEO: shape} for shape in self.latent_shapes]
        for shapes, row in zip(found, (self.rows[bucket[0]] for bucket in self.buckets), strict=True):
            if self.has_sound(row):
                of_shard = self.index["shards"][row["shard"]]["stream_shapes"]
                shapes |= {name: tuple(shape) for name, shape in of_shard.items()}
        return found

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The largest of `latent_shapes`."""
        return max(self.latent_shapes, key=math.prod)

    def batches(self, jobs: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
        """(index, draw)s in batches of one shape and of at most `size`."""
        for bucket in map(set, self.buckets):
            alike = [job for job in jobs if job[0] in bucket]
            yield from (alike[first : first + size] for first in range(0, len(alike), size))

    def require(self, **expected: object) -> None:
        """Raises InputError unless the index holds these values: it was prepared for what it is used for."""
        for key, value in expected.items():
            if self.index[key] != value:
                raise InputError(
                    f"{self.folder}/index.json: `{key}` is {self.index[key]!r}, this configuration needs {value!r}: "
                    "run `pgdpo prepare` with it again"
                )

    def restrict(self, rows: list[dict], *, stages: list[int] | None = None) -> None:
        """Hold these of the index's pairs alone, as they are given (weights among them); the fingerprint follows.

        `stages`: the part of an epoch, or of its manifest's pass, in which each of them is visited.
        """
        self.rows, self.stages = rows, stages
        chosen = [[row["id"], row.get("weight")] for row in rows] + [stages or []]
        self._restriction = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
        for derived in ("fingerprint", "buckets", "latent_shapes"):
            self.__dict__.pop(derived, None)

    def keep_ends(self) -> None:
        """Hold of each group its best and its worst sample alone: nothing is computed that does not count."""
        self.rows = [_with_ends(row) for row in self.rows]
        for derived in ("buckets", "latent_shapes"):
            self.__dict__.pop(derived, None)

    def order(self, *, micro_batch: int, seed: int) -> Order | Mixture:
        """In which the groups are visited, so many in a micro-batch."""
        if self.shares is None:
            return Order(self.buckets, micro_batch=micro_batch, seed=seed, stages=self.stages)
        named = [row[MANIFEST] for row in self.rows]
        return Mixture(
            self.buckets,
            sources=named,
            shares=self.shares,
            micro_batch=micro_batch,
            seed=seed,
            stages=self.stages,
        )

    def described_shares(self, visits: int) -> Iterator[str]:
        """A line a manifest with a share: how often its pairs come in so many visits."""
        for name, share in (self.shares or {}).items():
            pairs = sum(row[MANIFEST] == name for row in self.rows)
            often = float(share) * visits / pairs
            yield f"{name}: {float(share):.3g} of the visits, {pairs} pairs, each visited {often:.3g} times"

    def _open(self, path: Path):
        if path not in self._handles:
            self._handles[path] = safe_open(path, framework="pt")
        return self._handles[path]

    def _verify(self, full: bool, shared: Callable) -> dict[str, str]:
        """File name -> what is wrong with it, on all ranks."""
        entries = [*(entry for text in self._texts for entry in text["files"]), *self.index["shards"]]
        found = shared(lambda rank, ranks: look_at(self.folder, entries[rank::ranks], full=full))
        if is_main_rank():
            add_to_note(self.folder, {name: note for _, fresh in found for name, note in fresh.items()})
        return {name: reason for wrong, _ in found for name, reason in wrong.items()}


def stored_sides(row: dict) -> tuple[str, ...]:
    """Under which names the samples of a row stand in its shard, those that are not held too."""
    return sides_of({SAMPLES: [{}] * row[TAKEN]["of"]} if TAKEN in row else row)


def _with_ends(row: dict) -> dict:
    samples = row.get(SAMPLES)
    if samples is None or len(samples) < 3:
        return row
    order = ranked(samples)
    taken = [order[0], order[-1]]
    return {
        **row,
        SAMPLES: [samples[place] for place in taken],
        TAKEN: {"samples": taken, "of": len(samples)},
    }


def mean_group_size(data: PreparedPairs) -> float:
    """Samples of a group on average: 2 of pairs."""
    parts = zip(data.buckets, data.group_sizes, strict=True)
    return sum(len(bucket) * size for bucket, size in parts) / len(data)


def pair_hash(pair_id: str) -> int:
    """The 63-bit number by which a pair's draws are keyed."""
    return int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:8], "little") >> 1


def has_mask(row: dict) -> bool:
    """Whether a row of the index has a region mask beside its latents."""
    return row.get("mask_share") is not None


def padded_text(encoded: dict[str, torch.Tensor], text_length: int) -> dict[str, torch.Tensor]:
    """`Encoders.encode_prompts`'s dict of one prompt, with `prompt` zero-padded and `prompt_mask` beside it."""
    embedding = encoded["prompt"]
    padded = embedding.new_zeros(text_length, embedding.shape[1])
    padded[: len(embedding)] = embedding
    return {**encoded, "prompt": padded, "prompt_mask": torch.arange(text_length) < len(embedding)}
