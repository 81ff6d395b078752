"""What is said of beta where samples have several parts."""

import pytest
import torch
import torch.distributed as dist

from pgdpo.guards.beta import WATCHED_STEPS, BetaWatch, own_logits, say_beta
from pgdpo.objectives import ObjectiveOutput, build_objective

pytestmark = pytest.mark.quick
STREAMS = ("video", "audio")


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
    monkeypatch.setattr(dist, "all_gather", lambda found, own, group: found[0].copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: None)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def objective(form: str, audio: float = 0.5):
    return build_objective("dpo", beta=1000.0, parts={"audio": audio, "form": form})


@pytest.mark.parametrize(("form", "of_audio"), [("inside", 500.0), ("separate", 1000.0)])
def test_each_part_has_its_own_elements_and_inside_its_weight(form, of_audio, capsys):
    say_beta(objective(form), {"video": 1000, "audio": 10})
    found = lines(capsys.readouterr().out)
    betas = [float(words[0]) for words in found if words[1:2] == ["u"]]
    video = [1000, 500, 1, 0.5]
    assert betas == [*video, *(of_audio * share for share in (1, 0.5, 0.1, 0.05))]


def test_a_part_without_weight_and_a_sample_of_one_part(capsys):
    say_beta(objective("inside", audio=0.0), {"video": 1000, "audio": 10})
    found = capsys.readouterr().out
    assert found.count("elsewhere") == 1 and "of video" in found
    say_beta(build_objective("dpo", beta=1000.0), {"video": 1000})
    assert "beta 1000 elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["inside", "separate"])
def test_the_share_of_the_logit_is_said_where_there_is_one(form, one_rank, tmp_path, capsys):
    watch = BetaWatch(objective(form), tmp_path, None)
    for sign in (1, -1):  # of a weight of 0.5, so that each has 3 of 4.5 and 1.5
        watch.add(
            torch.ones(2), {"video": sign * torch.tensor([1.0, 2.0]), "audio": torch.tensor([3.0, 0.0])}
        )
    watch.report(WATCHED_STEPS)
    said = capsys.readouterr().out
    assert ("video 67%, audio 33%" in said) == (form == "inside")


def test_sigmoids_of_their_own_are_looked_at_one_by_one(one_rank, tmp_path, capsys):
    """The weighted sum of the logits would fit; the picture's saturates. A missing part is no logit, and no rank has
    fewer."""

    def output(**logits):
        parts = {name: ObjectiveOutput(None, None, value, {}) for name, value in logits.items()}
        return ObjectiveOutput(None, None, torch.ones(2), {}, parts=parts)

    both = own_logits(output(video=torch.full((2,), 20.0), audio=torch.full((2,), 0.5)), STREAMS)
    silent = own_logits(output(video=torch.full((2,), 20.0)), STREAMS)
    assert both.tolist() == [20, 20, 0.5, 0.5]
    assert silent.shape == both.shape and silent.isfinite().sum() == 2
    watch = BetaWatch(objective("separate"), tmp_path, None)
    watch.add(both)
    watch.add(silent)
    watch.report(WATCHED_STEPS)
    assert "6 pairs: beta 1000 saturates" in capsys.readouterr().out
    plain = ObjectiveOutput(None, None, torch.ones(2), {})
    assert own_logits(plain, STREAMS) is plain.logits
