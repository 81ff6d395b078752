"""Prompts that are too long: what is said to be cut off is what the pipeline's own encoders don't read."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.checking import run_check
from pgdpo.models.encoders.cuts import cut_prompts
from pgdpo.video import write_video
from tests.checking.broken_inputs import write_clips
from tests.models.families import FAMILIES
from tests.models.tiny_pipelines import COLOURS, SHAPES
from tests.worlds import run_pgdpo, write_config

WORDS = (*COLOURS, *SHAPES)


@pytest.fixture(scope="module")
def encoders(saved):
    return functools.cache(
        lambda name: FAMILIES[name].open(saved(FAMILIES[name].save)).load_encoders(torch.device("cpu"))
    )


def changed(words, place):
    """The prompt with another word there."""
    other = next(word for word in WORDS if word != words[place])
    return " ".join([*words[:place], other, *words[place + 1 :]])


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_what_is_cut_off_is_what_the_pipeline_does_not_read(encoders, name, data):
    """Behind `kept` no word changes what is encoded, the word before does; a prompt that isn't named is read whole."""
    limit = FAMILIES[name].reads
    count = data.draw(st.integers(limit - 4, limit + 6))
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count))
    prompt = " ".join(words)
    cuts = cut_prompts(encoders(name), [prompt]).get(prompt, [])
    embedding = "pooled" if name == "hunyuan_video" else "prompt"
    encode = lambda text: encoders(name).encode_prompts([text])[0][embedding]  # noqa: E731
    whole = encode(prompt)
    assert (len(cuts) == 1) == (count > limit - 1)  # the tokenizers put one token of their own behind
    if not cuts:
        assert not torch.equal(encode(changed(words, count - 1)), whole)
        return
    [cut] = cuts
    assert (cut.tokens, cut.kept) == (count, limit - 1)
    assert cut.read.split() + cut.lost.split() == words and len(cut.lost.split()) == count - cut.kept
    assert torch.equal(encode(changed(words, count - 1)), whole)
    assert not torch.equal(encode(changed(words, cut.kept - 1)), whole)


def test_llamas_limit_is_behind_its_template(encoders):
    """The template's tokens are not the prompt's: what the pipeline crops, and what it appends."""
    words = [WORDS[place % len(WORDS)] for place in range(300)]
    prompt = " ".join(words)
    cut = next(
        cut for cut in cut_prompts(encoders("hunyuan_video"), [prompt])[prompt] if cut.reader.name == "Llama"
    )
    encode = lambda text: encoders("hunyuan_video").encode_prompts([text])[0]["prompt"]  # noqa: E731
    assert torch.equal(encode(changed(words, cut.kept)), encode(prompt))
    assert not torch.equal(encode(changed(words, cut.kept - 1)), encode(prompt))
    assert cut.lost.split() == words[cut.kept :]


def test_check_names_each_and_prepare_counts_them(tmp_path, saved, capfd):
    """101 tokens for HunyuanVideo: its CLIP reads 76 of them."""
    clips = tmp_path / "clips"
    write_clips(clips)
    for name in ("0a", "0b"):
        write_video(clips / f"{name}.mp4", torch.zeros(5, 32, 32, 3, dtype=torch.uint8).numpy(), 8)
    prompts = [" ".join(["red"] * 76 + ["star"] * 25), "a red star", " ".join(["blue"] * 90)]
    rows = [
        {"id": str(n), "prompt": prompt, "chosen": "clips/0a.mp4", "rejected": "clips/0b.mp4"}
        for n, prompt in enumerate(prompts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "train": str(tmp_path / "rows.jsonl"),
        "held_out": None,
        "num_frames": 5,
        "fps": 8,
        "height": 32,
        "width": 32,
    }
    config = write_config(
        tmp_path / "config.yaml",
        tmp_path / "out",
        saved(FAMILIES["hunyuan_video"].save),
        data=data,
        model={"family": "hunyuan_video", "encoders": "pipeline"},
        train={"global_batch_groups": 2},
        evaluate={"reward": None, "negative_prompt": prompts[2]},
    )
    findings = run_check(str(config))
    [negative] = [problem for problem in findings.problems if problem.key == "evaluate.negative_prompt"]
    assert (
        negative.what.startswith("evaluate.negative_prompt has 90 tokens") and negative.severity == "warning"
    )
    long = [problem for problem in findings.problems if problem.key == "prompt"]
    assert [(problem.line, problem.value, problem.severity) for problem in long] == [
        (1, 101, "warning"),
        (3, 90, "warning"),
    ]
    assert "101 tokens for CLIP (tokenizer_2), which reads the first 76" in long[0].what
    assert (
        "up to 'red red red red red red'; cut off is 'star star" in long[0].what and findings.exit_code == 0
    )
    capfd.readouterr()
    run_pgdpo("prepare", config)
    said = " ".join(capfd.readouterr().out.split())
    assert said.count("2 prompts are too long for CLIP (tokenizer_2)") == 1 and "Llama" not in said


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_in_a_batch_are_embedded_as_alone(encoders, name):
    """Their padding, which hangs on nobody's length, does not leak."""
    prompts = ["", "red", " ".join(WORDS[place % len(WORDS)] for place in range(40)), "a blue star"]
    together = encoders(name).encode_prompts(prompts)
    for prompt, batched in zip(prompts, together, strict=True):
        [alone] = encoders(name).encode_prompts([prompt])
        assert alone.keys() == batched.keys()
        assert all(torch.equal(alone[key], batched[key]) for key in alone), prompt
