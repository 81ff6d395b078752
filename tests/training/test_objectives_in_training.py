"""The catalogue in the trainer: what it refuses, what it hands over, what it logs."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from pgdpo.guards.beta import BetaWatch
from pgdpo.messages.errors import InputError
from pgdpo.objectives import PairInfo, build_objective
from pgdpo.training.metrics import pair_metrics, watch_gradients
from pgdpo.training.noising import draw_sample, region_of
from pgdpo_kernels import pair_errors
from tests.worlds import losses, metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def prepare_with(config_file, **columns):
    """Prepare the toy's training pairs again with manifest columns; `columns`: row number -> value, None to omit.

    Returns the override that trains on them.
    """
    output = config_file.parent / "out"
    if (output / "prepared").is_symlink():  # shards stay valid: only the index is made anew
        shared = (output / "prepared").resolve()
        (output / "prepared").unlink()
        shutil.copytree(shared, output / "prepared")
    toy = output / "toy"
    lines = []
    for number, line in enumerate((toy / "train.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        row |= {name: make(number) for name, make in columns.items()}
        lines.append(json.dumps(row))
    manifest = toy.resolve() / f"labelled-{config_file.parent.name}.jsonl"  # beside its clips
    manifest.write_text("\n".join(lines), encoding="utf-8")
    override = f"data.train={manifest}"
    run_pgdpo("prepare", config_file, override, "data.held_out=null")
    return override


def train(config_file, name, *overrides):
    run_pgdpo("train", config_file, f"name={name}", *overrides)
    return metrics(config_file.parent / "out", name)


def refusal(config_file, *overrides) -> str:
    """The message of a `pgdpo train` that has no weights to load: what it names was found before them."""
    nowhere = config_file.parent / "no_model"
    with pytest.raises(InputError) as caught:
        run_pgdpo("train", config_file, "model.family=wan", f"model.path={nowhere}", *overrides)
    assert "no_model" not in str(caught.value)
    return str(caught.value)


class TestRefusals:
    def test_a_column_that_no_row_has(self, config_file):
        message = refusal(config_file, "objective={name: madpo}")
        assert (
            "`madpo`" in message and "`reward_margin`" in message and "row 1, pair `train-00000`" in message
        )
        assert "prepared/train/index.json" in message and "0 of 12" in message

    @pytest.mark.parametrize("objective", ["madpo", "dpo"])
    def test_a_column_that_some_rows_lack_needed_or_not(self, config_file, objective):
        override = prepare_with(config_file, reward_margin=lambda row: None if row in (4, 7) else 0.5)
        message = refusal(config_file, override, f"objective={{name: {objective}}}")
        assert (
            "`reward_margin`" in message and "row 5, pair `train-00004`" in message and "10 of 12" in message
        )

    @pytest.mark.parametrize(
        ("column", "good", "bad"),
        [
            ("reward_margin", 0.5, "high"),
            ("reward_margin", 0.5, True),
            ("reward_margin", 0.5, [0.5]),
            ("reward_margin", 0.5, math.nan),
            ("reward_margin", 0.5, math.inf),
            ("probability", 0.5, 1.5),
            ("weight", 1, -1),
            ("reward", [1.0, 0.0], [1.0, 0.0, 0.0]),
            ("reward", [1.0, 0.0], 1.0),
            ("segment_labels", [1, -1], [1, 2]),
            ("segment_labels", [1, -1], [1, 0.5]),
            ("segment_labels", [1, -1], [1]),
            ("group", 3, 3.5),
            ("advantage", 1.0, [1.0, -1.0]),
        ],
    )
    def test_a_value_of_a_wrong_kind(self, config_file, column, good, bad):
        """Found by the manifest's own checks, or beside the other rows before training."""
        try:
            message = refusal(
                config_file, prepare_with(config_file, **{column: lambda row: bad if row == 2 else good})
            )
        except InputError as error:
            message = str(error)
        assert f"`{column}`" in message and repr(bad) in message
        assert ".jsonl:3:" in message or "row 3, pair `train-00002`" in message

    def test_segments_that_do_not_fit(self, config_file):
        override = prepare_with(config_file, segment_labels=lambda row: [1, 0, -1, 1, 1])
        dense = (override, "objective={name: dense_dpo}")  # how many frames are the clip's own the model says
        with pytest.raises(InputError, match="5 segments.* 4 frames"):
            run_pgdpo("train", config_file, *dense)
        with pytest.raises(InputError, match="data.segments is 2"):
            run_pgdpo("train", config_file, *dense, "data.segments=2")

    @pytest.mark.parametrize(
        ("objective", "fragment"),
        [
            ("local_dpo", "needs region masks in every row: 12 of 12 rows"),
            ("spo", "siblings"),
            ("tailor_dpo", "siblings"),
            ("inpo", "diffusion.inversion_steps"),
            ("inversion_dpo", "diffusion.inversion_steps"),
        ],
    )
    def test_what_pairs_cannot_hold(self, config_file, objective, fragment):
        message = refusal(config_file, f"objective={{name: {objective}}}")
        assert f"`{objective}`" in message and fragment in message


class TestSegments:
    def test_labels_reach_the_objective(self, config_file):
        """All segments agreeing is DPO; all disagreeing is DPO the other way round; all tied learns nothing."""
        runs = {}
        for name, label in (("agree", 1), ("oppose", -1), ("tie", 0)):
            override = prepare_with(config_file, segment_labels=lambda row, label=label: [label] * 2)
            runs[name] = train(config_file, name, override, "objective={name: dense_dpo, beta: 500}")
        plain = train(
            config_file, "plain", override, "objective.beta=1000"
        )  # DenseDPO sums over two segments
        assert [row["loss"] for row in runs["agree"]] == pytest.approx(
            [row["loss"] for row in plain], rel=1e-5
        )
        assert runs["agree"][-1]["margin"] > 0 > runs["oppose"][-1]["margin"]
        assert {row["margin"] for row in runs["tie"]} == {0.0}

    def test_segments_may_be_asked_for_and_need_not_divide_the_frames(self, config_file):
        last = train(config_file, "thirds", "data.segments=3", "objective={name: sgdpo, beta: 500}")[-1]
        assert 0 < last["segment_reward_entropy"] < 1
        assert all(0 < bucket["segment_reward_entropy"] < 1 for bucket in last["buckets"].values())
        assert "segment_reward_entropy" not in train(config_file, "whole", "train.steps=1")[-1]


class TestMasks:
    """Objectives that compare inside a region, with masks from files."""

    def prepare(self, config_file):
        """Every pair gets a picture with a box of its own. Returns the override and the boxes `[16, 16]` by id."""
        toy = (config_file.parent / "out" / "toy").resolve()
        rng = np.random.default_rng(3)
        boxes, names = {}, {}
        for number in range(12):
            inside = np.zeros((16, 16), bool)  # as prepared; the clips have 64 pixels a side
            (top, bottom), (left, right) = (sorted(rng.choice(17, 2, replace=False)) for _ in range(2))
            inside[top:bottom, left:right] = True
            names[number] = f"mask-{config_file.parent.name}-{number}.png"
            Image.fromarray(inside.repeat(4, 0).repeat(4, 1)).save(toy / names[number])
            boxes[f"train-{number:05d}"] = inside
        return prepare_with(config_file, mask=names.get), boxes

    def test_the_loss_is_that_of_float64_under_the_masks(self, config_file, monkeypatch):
        override, boxes = self.prepare(config_file)
        ids, calls = [], []

        def drawn(batch, *arguments, **options):
            ids.append(batch["ids"])
            return draw_sample(batch, *arguments, **options)

        def recorded(pred, target, *, ref_pred, **options):
            calls.append([x.detach().double().cpu().numpy() for x in (pred, target, ref_pred)])
            return pair_errors(pred, target, ref_pred, **options)

        monkeypatch.setattr("pgdpo.training.step.draw_sample", drawn)
        monkeypatch.setattr("pgdpo_kernels.pair_errors", recorded)
        weights = {"full_weight": 0.5, "mask_weight": 2.0, "mask_sft": 0.3, "full_sft": 0.7}
        options = ", ".join(f"{name}: {value}" for name, value in weights.items())
        rows = train(config_file, "local", override, f"objective={{name: local_dpo, beta: 500, {options}}}")
        assert rows[0]["margin/masked"] == rows[0]["margin"] == 0.0  # policy and reference are one model
        assert len(calls) == 2 * len(ids) == 4 * len(rows)  # two micro-batches a step, whole and inside
        for step, row in enumerate(rows):
            found = [
                local_dpo_by_numpy(*calls[2 * micro], [boxes[name] for name in ids[micro]], 500, **weights)
                for micro in (2 * step, 2 * step + 1)
            ]
            loss, margin = np.concatenate(found, axis=1).mean(1)
            assert row["loss"] == pytest.approx(loss, rel=1e-6)
            assert row["margin/masked"] == pytest.approx(margin, rel=1e-4, abs=1e-9)
        assert rows[-1]["margin/masked"] != pytest.approx(rows[-1]["margin"], rel=1e-2)

    def test_a_given_first_frame_counts_in_no_region(self):
        latents, share = torch.zeros(4, 3, 5, 2, 2), torch.rand(2, 1, 5, 2, 2)
        found = region_of(
            share, torch.tensor([0.0, 1, 1, 1, 1]), latents
        )  # frame weights, as image-to-video has them
        assert not found[:, :, 0].any() and torch.equal(found[:, :, 1:], share[:, :, 1:])
        assert region_of(share, None, latents) is share and region_of(None, None, latents) is None

    def test_masks_that_only_some_pairs_have_change_no_other_objective(self, config_file):
        override, _ = self.prepare(config_file)
        plain = train(config_file, "plain", override)
        masks = sorted(
            (config_file.parent / "out" / "toy").resolve().glob(f"mask-{config_file.parent.name}-*")
        )
        some = prepare_with(config_file, mask=lambda row: masks[row].name if row % 2 else None)
        assert "6 of 12 rows" in refusal(config_file, some, "objective={name: local_dpo}")
        assert [row["loss"] for row in train(config_file, "some", some)] == [row["loss"] for row in plain]

    def test_pairs_without_one_and_a_reference_of_whole_frames_are_refused(self, config_file):
        objective = "objective={name: local_dpo}"
        assert "`local_dpo` compares inside a region" in refusal(
            config_file, objective, "train.reference=cached"
        )
        override = prepare_with(config_file, reward_margin=lambda row: 1.0)
        assert "the first is pair `train-00000`" in refusal(config_file, override, objective)


def local_dpo_by_numpy(pred, target, reference, boxes, beta, *, full_weight, mask_weight, mask_sft, full_sft):
    """float64 `[2, B]`: losses, margins inside; `boxes`: the region of each pair in pixels, 4 to a latent's side."""
    own, theirs = (pred - target) ** 2, (reference - target) ** 2  # (2B, C, F, H, W)
    pairs = len(boxes)
    share = np.stack(boxes).reshape(pairs, 4, 4, 4, 4).mean((2, 4))[:, None, None]
    losses = 0.0
    for weight, preference, fit in (
        (np.ones_like(share), full_weight, full_sft),
        (share, mask_weight, mask_sft),
    ):
        weight = np.broadcast_to(np.tile(weight, (2, 1, 1, 1, 1)), own.shape)
        policy, other = (
            (weight * square).sum((1, 2, 3, 4)) / weight.sum((1, 2, 3, 4)) for square in (own, theirs)
        )
        excess = policy - other
        margin = excess[pairs:] - excess[:pairs]
        losses = losses + preference * np.log1p(np.exp(-beta / 2 * margin)) + fit * policy[:pairs]
    return np.stack([losses, margin])


class TestBeta:
    def events(self, config_file, run):
        """(step, event, message) of the warnings about beta."""
        lines = (config_file.parent / "out" / run / "events.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [(e["step"], e["event"], e["message"]) for e in found if e["event"] == "beta"]

    LONG = ("train.steps=21", "train.checkpoint_every=21")

    def test_the_start_shows_beta_in_other_conventions(self, config_file, capfd):
        train(config_file, "shown", "train.steps=1")
        said = capfd.readouterr().out
        assert "beta 500 elsewhere" in said and "250 " in said and "SimpleTuner" in said
        train(config_file, "without", "train.steps=1", "objective={name: sft}")
        assert "elsewhere" not in capfd.readouterr().out

    @pytest.mark.parametrize(("beta", "word"), [("1.0e+8", "saturates"), ("500", None)])
    def test_the_first_20_steps_are_judged(self, config_file, capfd, beta, word):
        train(config_file, "run", f"objective={{name: dpo, beta: {beta}}}", *self.LONG)
        said, events = capfd.readouterr().out, self.events(config_file, "run")
        if word is None:
            assert not events and "warning" not in said
            return
        assert [event[:2] for event in events] == [(20, "beta")]
        last = metrics(config_file.parent / "out", "run")[-1]
        assert last["saturation"] > 0.5
        assert word in events[0][2] and said.count("warning") == 1

    def test_two_ranks_warn_and_log_as_one(self, config_file, ranks):
        """Names and means over micro-batches and ranks with every diagnostic on; the advised beta over all pairs."""
        objective = "objective={name: dpo, beta: 1.0e-4, safeguard: {mu: 0.5}}"
        for name, count in (("one", 1), ("two", 2)):
            ranks.train(config_file, {name: [objective, "data.segments=2", *self.LONG]}, ranks=count)
        one, two = (metrics(config_file.parent / "out", name) for name in ("one", "two"))
        names = {"safeguard/lambda", "safeguard/cosine", "saturation", "segment_reward_entropy", "displacement",
                 "gradient_share/rejected"}  # fmt: skip
        for alone, shared in zip(one, two, strict=True):
            assert names <= set(alone) and all(names <= set(bucket) for bucket in alone["buckets"].values())
            assert alone["buckets"].keys() == shared["buckets"].keys()
            for name in names:
                assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
        first, second = self.events(config_file, "one"), self.events(config_file, "two")
        assert first == second and len(first) == 1 and "80 pairs: beta 0.0001 does nothing" in first[0][2]

    def test_the_advice_is_for_the_beta_of_its_step(self, tmp_path, monkeypatch):
        """A steered run may have changed it since the first."""
        monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
        monkeypatch.setattr(dist, "all_gather", lambda found, own, group: found[0].copy_(own))
        objective = build_objective("dpo", beta=500.0)
        watch = BetaWatch(objective, tmp_path, None)
        watch.add(torch.full((4,), 1e-4))
        objective.options["beta"] = 250.0
        watch.report(20)
        assert "4 pairs: beta 250 does nothing" in (tmp_path / "events.jsonl").read_text()

    def test_it_is_said_once_and_restart_forgets_it(self, config_file):
        idle = "objective={name: dpo, beta: 1.0e-4}"
        train(config_file, "run", idle, *self.LONG)
        run_pgdpo("train", config_file, "name=run", idle, "train.steps=22", "--resume")
        assert len(self.events(config_file, "run")) == 1
        run_pgdpo("train", config_file, "name=run", "train.steps=1", "--restart")
        assert self.events(config_file, "run") == []


class TestDiagnostics:
    @pytest.mark.parametrize("objective", ["dpo", "sft", "dspo", "inversion_dpo", "mapo", "dense_dpo"])
    def test_gradient_share_is_that_of_the_prediction(self, objective):
        torch.manual_seed(0)
        policy = torch.randn(6, 2, 5, 3, 3, requires_grad=True)
        target, reference = torch.randn_like(policy), policy.detach() + 0.1 * torch.randn_like(policy)
        errors = pair_errors(policy, target, reference, segments=[0, 0, 0, 1, 1])
        options = {"sft": {"on": "both"}, "mapo": {}}.get(objective, {"beta": 2.0})
        built = build_objective(objective, **options)
        output = built(errors, PairInfo(segment_labels=torch.tensor([[1.0, -1.0], [0.0, 1.0], [1.0, 1.0]])))
        watch_gradients(errors)
        output.loss.backward()
        chosen, rejected = policy.grad.flatten(1).norm(dim=1).view(2, 3)
        share = pair_metrics(errors, output)["gradient_share/rejected"]
        torch.testing.assert_close(share, rejected / (chosen + rejected), rtol=1e-3, atol=1e-6)

    def test_segment_entropy_is_1_for_an_even_and_0_for_a_lone_margin(self):
        reference, target = torch.zeros(6, 1, 4, 2, 2), torch.zeros(6, 1, 4, 2, 2)
        policy = torch.zeros_like(target)
        policy[3] = 1.0  # pair 0: every frame of the rejected alike; pair 1: one frame; pair 2: nothing moved
        policy[4, :, 3] = 1.0
        errors = pair_errors(policy, target, reference, segments=4)
        output = build_objective("dpo")(errors, PairInfo())
        assert pair_metrics(errors, output)["segment_reward_entropy"].tolist() == pytest.approx([1, 0, 1])

    def test_segment_entropy_against_numpy(self):
        torch.manual_seed(1)
        policy, target, reference = torch.randn(3, 4, 2, 5, 2, 2).unbind(0)
        errors = pair_errors(policy, target, reference, segments=[0, 0, 1, 2, 2])
        output = build_objective("dpo")(errors, PairInfo())
        square = ((policy - target) ** 2 - (reference - target) ** 2).double().numpy()
        part = square.transpose(0, 2, 1, 3, 4).reshape(4, 5, -1).sum(2)
        sums = np.stack([part[:, :2].sum(1), part[:, 2], part[:, 3:].sum(1)], 1)
        margin = np.abs(sums[2:] - sums[:2])
        share = margin / margin.sum(1, keepdims=True)
        expected = -(share * np.log(share)).sum(1) / np.log(3)
        found = pair_metrics(errors, output)["segment_reward_entropy"].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_saturation_counts_logits_beyond_8(self):
        errors = pair_errors(
            torch.zeros(4, 1, 1, 1, 1), torch.zeros(4, 1, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
        )
        output = build_objective("dpo")(errors, PairInfo())
        output.logits = torch.tensor([-8.5, 7.9])
        assert pair_metrics(errors, output)["saturation"].tolist() == [1, 0]


def test_inversion_puts_the_targets_on_the_models_own_path(config_file):
    """A model that was never trained misses drawn noise by far, and the noise that it inverted itself by little."""
    once = ("train.steps=1",)
    drawn = train(config_file, "drawn", *once)[0]
    for objective in ("inpo", "inversion_dpo", "inversion_dpo, inverted_by: reference"):
        override = f"objective={{name: {objective}}}"
        name = f"by-{objective.split()[-1]}"
        row = train(config_file, name, override, "diffusion.inversion_steps=4", *once)[0]
        assert row["error/chosen"] < 0.1 * drawn["error/chosen"]
        assert row["loss"] == float(torch.tensor(math.log(2), dtype=torch.float32))


def test_smpo_trains_on_inverted_noise_and_the_rows_probability(config_file):
    override = prepare_with(config_file, probability=lambda row: 0.5 if row % 2 else 0.9)
    rows = train(config_file, "smpo", override, "objective={name: smpo}", "diffusion.inversion_steps=2")
    assert losses(config_file.parent / "out", "smpo")[0] == pytest.approx(math.log(2), rel=1e-6)
    assert rows[-1]["margin"] != 0
