"""Prepared data know what they were made of: what changed after `prepare` is named by every command that reads them."""

import json
import os
import re
import shutil

import pytest

from pgdpo.checking import run_check
from pgdpo.data.prepared import PreparedPairs
from pgdpo.files.atomic import sha256_of
from tests.data.changed_data import (
    SPLITS,
    add_mask,
    edit,
    edited,
    flip_weights,
    insert,
    other_manifest,
    other_tokenizer,
    outside,
    refused,
    rename,
    replace,
    stale_differences,
    swap,
)
from tests.worlds import losses, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

NAMED = tuple(f"data.{split}=data/{split}-b.jsonl" for split in SPLITS)
TABLE = {  # what is done after `prepare`; what is said, {} being the split; overrides of the commands
    "swapped": (swap, r"{0}.jsonl:2: pair `{0}-1`: `chosen` and `rejected` are swapped"),
    "prompt": (edited(2, prompt="a star"), r"{0}.jsonl:3: pair `{0}-2`: `prompt` is 'a star', prepared was 'a green"),
    "weight": (edited(0, weight=2), r"{0}.jsonl:1: pair `{0}-0`: `weight` is 2, prepared was 1"),
    "preference": (edited(3, preference=0.75), r"{0}.jsonl:4: pair `{0}-3`: `pr\w+` is "),
    "scores": (edited(1, scores={}), r"{0}.jsonl:2: pair `{0}-1`: `scores` is \{{\}}, prepared was"),
    "segments": (
        edited(0, segments=[{"start": 0, "end": 1, "preference": 0}]),
        r"{0}.jsonl:1: pair `{0}-0`: `segment",
    ),
    "said hash": (edited(0, sha256_chosen="0" * 64), r"pair `{0}-0`: (its SHA-256 is|`sha256_chosen` is 000000)"),
    "said size": (edited(0, width=16), r"{0}.jsonl:1: pair `{0}-0`: `width` is 16, prepared was None"),
    "row added": (insert, r"{0}.jsonl:2: pair `{0}-new` was not prepared"),
    "row removed": (lambda: edit(lambda rows, _: rows[1:]), r"pair `{0}-0` was prepared, and the manifest has no"),
    "order": (
        lambda: edit(lambda rows, _: [rows[1], rows[0], *rows[2:]]),
        r"{0}.jsonl:1: pair `{0}-1` stands where `{0}-0` stood",
    ),
    "clip replaced": (
        replace("1-rejected.mp4"),
        r"{0}.jsonl:2: pair `{0}-1`: `rejected`, 'clips/{0}-1-rejected.mp4', has other bytes",
    ),
    "clip renamed": (
        lambda: edit(rename),
        r"{0}.jsonl:4: pair `{0}-3`: `rejected` is 'clips/{0}-other.mp4', prepared was 'clips/{0}-3-rejected.mp4'",
    ),
    "mask replaced": (replace("0-mask.png"), r"{0}.jsonl:1: pair `{0}-0`: `mask`, .*, has other bytes"),
    "mask removed": (edited(1, mask=None), r"{0}.jsonl:2: pair `{0}-1`: `mask` is None, prepared was 'clips"),
    "mask added": (lambda: edit(add_mask), r"{0}.jsonl:3: pair `{0}-2`: `mask` is 'clips/.*, prepared was None"),
    "tie decided": (edited(4, preference=1), r"{0}.jsonl:5: pair `{0}-4` was not prepared"),
    "another manifest": (
        other_manifest,
        r"data.{0} is 'data/{0}-b.jsonl', prepared was 'data/{0}.jsonl'.*{0}-b.jsonl:3: pair `{0}-2`: `prompt`",
        *NAMED,
    ),
    "no such manifest": (lambda: None, r"data/{0}-b.jsonl: no such manifest", *NAMED),
    "clips outside": (outside, r"{0}.jsonl:1: `chosen` of pair `{0}-0` is '../clips/.* leaves the manifest's folder"),
    "bad row": (edited(0, weight=-1), r"{0}.jsonl:1: `weight` is -1"),
    "toy": (lambda: None, r"data.{0} is 'toy', prepared was 'data/{0}.jsonl'", *(f"data.{s}=toy" for s in SPLITS)),
    "vae": (flip_weights("vae"), r"other encoders than those that prepared: vae \("),
    "text encoder": (flip_weights("text_encoder"), r"other encoders than those that prepared: text_encoder \("),
    "tokenizer": (other_tokenizer, r"other encoders than those that prepared: tokenizer \("),
    "sizes": (lambda: None, r"`sizes` is \[\[5, 16, 16\]\], this configuration needs", "data.height=32"),
    "latent_dtype": (lambda: None, r"`latent_dtype` is 'float32', this.* 'bfloat16'", "data.latent_dtype=bfloat16"),
    "ties": (lambda: None, r"{0}.jsonl:5: pair `{0}-4` was not prepared", "data.ties=keep"),
}  # fmt: skip
OF_THE_RECORD = ("data.height", "data.latent_dtype", "data.ties")  # a run's own: `evaluate` takes no other


@pytest.mark.parametrize("change", TABLE)
def test_what_changed_after_prepare_is_named_by_every_command(changed_world, change, monkeypatch):
    """Case 1 of the small inputs, and its kind."""
    from pgdpo.models.families.wan import Wan

    do, pattern, *overrides = TABLE[change]
    do()
    monkeypatch.setattr(Wan, "load_transformer", lambda *_, **__: pytest.fail("weights were loaded"))
    train, held_out = (re.compile(pattern.format(split), re.DOTALL) for split in SPLITS)
    for command in ("train", "reference"):
        text = refused(command, "config.yaml", "name=other", *overrides)
        assert train.search(text), text
        assert "`pgdpo prepare`" in text or "no such manifest" in text
    text = refused("evaluate", "config.yaml", *overrides)
    if overrides and overrides[0].startswith(OF_THE_RECORD):
        assert "a run stays what it was trained as" in text
    else:
        assert held_out.search(text), text
    findings = run_check("config.yaml", ["name=other", *overrides])
    text = "\n".join(map(str, findings.problems))
    assert findings.exit_code == 2
    assert train.search(text) and held_out.search(text), text


def test_the_swapped_row_is_what_is_trained_on_after_prepare(changed_world):
    """The right value of case 1: the first margin's sign turns with the labels."""
    run_pgdpo("train", "config.yaml", "name=before", "train.steps=2", "train.deterministic=true")

    def change(rows, _):
        for row in rows:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]

    edit(change)
    assert "chosen and rejected swapped: 4" in refused("train", "config.yaml", "name=after")
    run_pgdpo("prepare", "config.yaml")
    data = PreparedPairs(changed_world / "out/prepared/train")
    edit(change)
    run_pgdpo("prepare", "config.yaml", "output_dir=back")
    back = PreparedPairs(changed_world / "back/prepared/train")
    for index in range(4):
        assert data[index, 0]["samples"][0].equal(back[index, 0]["samples"][1])
        assert data[index, 0]["samples"][1].equal(back[index, 0]["samples"][0])
    assert back.fingerprint == PreparedPairs(changed_world / "back/prepared/train").fingerprint
    run_pgdpo(
        "train", "config.yaml", "output_dir=back", "name=again", "train.steps=2", "train.deterministic=true"
    )
    assert losses(changed_world / "back", "again") == losses(changed_world / "out", "before")


def test_a_clip_replaced_at_equal_size_and_time_is_seen_in_full(changed_world, capfd):
    path = changed_world / "data/clips/train-0-chosen.mp4"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") - 20] ^= 1  # somewhere in the boxes before the pictures
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run_check("config.yaml").exit_code == 0
    assert "isn't seen without --full" in capfd.readouterr().out
    run_pgdpo("train", "config.yaml", "name=unseen")
    found = run_check("config.yaml", full=True)
    assert found.exit_code == 2 and any("pair `train-0`: `chosen`" in str(one) for one in found.problems)
    with pytest.raises(SystemExit):
        from pgdpo.cli import app

        app(["check", "config.yaml", "--full"])
    run_pgdpo("prepare", "config.yaml", "--full")
    assert "4 pairs (1 encoded, 3 kept" in capfd.readouterr().out
    assert run_check("config.yaml", full=True).exit_code == 0


@pytest.mark.parametrize(
    "same", ["times", "renamed", "licence", "manifest's name", "clips gone", "manifest gone"]
)
def test_what_is_the_same_is_no_difference(changed_world, same, capfd):
    said = None
    if same == "times":
        for path in (changed_world / "data/clips").iterdir():
            os.utime(path)
        said = "clips have other times than when they were prepared, and the same bytes"
    elif same == "renamed":
        os.rename("data/clips", "data/moved")
        edit(lambda rows, _: json.loads(json.dumps(rows).replace("clips/", "moved/")))
    elif same == "licence":
        edit(lambda rows, _: rows[0].update(licence="none", note="x"))
    elif same == "clips gone":
        shutil.rmtree("data/clips")
        said = "10 clips are not here and were not compared"  # of 4 pairs, with 2 masks
    elif same == "manifest gone":
        shutil.rmtree("data")
        said = "data/train.jsonl can't be read here: out/prepared/train is taken as it is"
    overrides = []
    if same == "manifest's name":
        shutil.move("data/train.jsonl", "data/other.jsonl")
        overrides = ["data.train=data/other.jsonl"]
    run_pgdpo("train", "config.yaml", "name=same", *overrides)
    assert said is None or said in capfd.readouterr().out


def test_clips_are_read_once_and_not_again(changed_world, monkeypatch):
    """Neither a comparison nor `prepare` reads clips whose name, size and time are as they were."""
    from pgdpo.data.preparing import changed, made_of

    for module in (made_of, changed):
        monkeypatch.setattr(module, "sha256_of", lambda path: pytest.fail(f"{path} was read"))
    run_pgdpo("prepare", "config.yaml")
    assert stale_differences("config.yaml") == []


def test_on_two_ranks(changed_world, ranks):
    """Both refuse with the main rank's words; and they make together what is missing alone."""
    before = [row["sha256"] for row in PreparedPairs(changed_world / "out/prepared/train").rows]
    insert(0)
    places = [
        f"output_dir={changed_world}/out",
        f"model.path={changed_world}/model",
    ]  # the ranks' working folder is another
    places += [f"data.{split}={changed_world}/data/{split}.jsonl" for split in SPLITS]
    train = ["train", changed_world / "config.yaml", "name=other", "train.micro_batch_groups=1", *places]
    job = ranks.start([train])
    codes, texts = job.wait(120), [job.text(rank) for rank in (0, 1)]
    assert codes == [2, 2] and "pair `train-new` was not prepared" in texts[0]
    ranks.run(["prepare", changed_world / "config.yaml", *places])
    found = json.loads((changed_world / "out/prepared/train/index.json").read_text())
    assert [row["id"] for row in found["pairs"]] == ["train-new", *(f"train-{number}" for number in range(4))]
    assert [row["sha256"] for row in found["pairs"][1:]] == before
    assert list(found["made_of"]["pairs"]) == ["train-new", *(f"train-{number}" for number in range(4))]
    ranks.run(train)


def test_many_differences_are_counted(changed_world):
    edit(lambda rows, _: [row.update(weight=9) for row in rows] and None)
    text = refused("train", "config.yaml", "name=other")
    assert "(label edited: 4)" in text and "more" not in text
    edit(lambda rows, _: [row.update(prompt="a") for row in rows] and None)
    text = refused("train", "config.yaml", "name=other")
    assert "prompt edited: 4, label edited: 4" in text and text.count("pair `") == 5 and "and 3 more" in text


def test_a_record_holds_files_and_rate(changed_world):
    index = json.loads((changed_world / "out/prepared/train/index.json").read_text())
    pair = index["made_of"]["pairs"]["train-0"]
    path = changed_world / "data/clips/train-0-chosen.mp4"
    assert pair["chosen"][::3] == ["clips/train-0-chosen.mp4", sha256_of(path)] and pair["fps"] == 8
    assert pair["chosen"][1] == path.stat().st_size and pair["view"] == "" and pair["span"] == [0, 0.625]
    assert set(pair) == {"chosen", "rejected", "mask", "fps", "view", "span"}
    assert "made_of" not in PreparedPairs(changed_world / "out/prepared/train").index
