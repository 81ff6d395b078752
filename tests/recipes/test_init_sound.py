"""What `init` says of clips with sound, and without, for a model that makes both."""

import pytest

from pgdpo.recipes.propose import Survey, look, propose
from pgdpo.recipes.write import _with, form_of
from tests.training.sounding_world import clip, write_rows


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """One pair that sounds, one that is silent, and one of which one side is."""
    folder = tmp_path_factory.mktemp("clips")
    manifest = write_rows(folder, "train", [{"id": "a"}, {"id": "b", "mute": True}, {"id": "c"}])
    clip(folder / "train-c-rejected.mp4", 7, sounds=False)
    return look([str(manifest)], _with("ltx2", {}))


def proposed(survey, names: str, **changed):
    config = _with("ltx2", changed)
    found = Survey({name: survey.pairs[name] for name in names}, of=len(names))
    return propose(found, config, form_of(config, config))


def test_pairs_that_would_be_refused_and_silent_ones_are_said(survey):
    found = proposed(survey, "abc")
    assert "model.audio" not in found.settings
    assert any("1 of 3 pairs have sound on one side alone" in note for note in found.notes)
    assert any("1 of 3 pairs have no sound" in note for note in found.notes)
    assert not any("sound" in note for note in proposed(survey, "a").notes)


def test_where_no_clip_sounds_the_model_does_not_hear(survey):
    found = proposed(survey, "b")
    assert found.settings["model.audio"] is False and "no clip has sound: model.audio is false" in found.notes
    assert not any("sound" in note for note in proposed(survey, "b", **{"model.audio": False}).notes)
