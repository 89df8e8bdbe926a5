"""What each setting of the shot detection decides, on tracks of two small scenes."""

from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from tasks.curation.shots import ShotConfig, Transition, detect_transitions
from tests.tasks.curation.test_shots import joined, scene, track_of


@cache
def track(kind: str) -> pa.Table:
    """Two scenes of two seconds and more, joined in this way; "darker" is one scene whose exposure steps down."""
    if kind == "cut":
        return track_of(np.concatenate([scene(1, 50), scene(2, 50)]))
    if kind == "darker":
        frames = scene(1, 100)
        frames[50:] *= 0.5
        return track_of(frames)
    return track_of(joined(kind))


def found(kind: str, **settings: float) -> list[Transition]:
    return detect_transitions(track(kind), ShotConfig.model_validate(settings))[1]


# A setting, a value with which the transition is found as it is, and one with which nothing is.
DECIDES = [
    ("least_change", "cut", 20, 250),
    ("least_change", "dissolve", 20, 250),
    ("least_spread", "dissolve", 0.3, 0.8),
    ("least_spread", "wipe", 0.3, 0.8),
    ("least_novelty", "dissolve", 0.12, 0.8),
    ("least_novelty", "wipe", 0.12, 0.8),
    ("cut_content", "cut", 15, 100),  # its content value is 53
    ("cut_ratio", "cut", 1.8, 50),  # it stands out tenfold
    ("off_path", "dissolve", 0.08, 0.0),
    ("off_path", "fade", 0.08, 0.0),
    ("drift", "dissolve", 0.5, 0.01),
    ("drift", "wipe", 0.5, 0.01),
    ("wipe_evidence", "wipe", 0.75, 2),
    ("flat_contrast", "fade", 0.15, 0.0),
]


@pytest.mark.parametrize(("name", "kind", "finds", "misses"), DECIDES)
def test_a_setting_decides_what_is_a_transition(name: str, kind: str, finds: float, misses: float) -> None:
    assert [change.kind for change in found(kind, **{name: finds})] == [kind]
    assert found(kind, **{name: misses}) == []


def test_pictures_that_look_alike_are_cut_only_where_the_step_stands_out_more() -> None:
    assert [change.kind for change in found("darker", cut_ratio_alike=4)] == ["cut"]
    assert found("darker", cut_ratio_alike=50) == []
    assert found("cut", cut_ratio_alike=50) == found("cut")  # of two scenes it is not asked


@pytest.mark.parametrize("kind", ["dissolve", "fade", "wipe"])
def test_a_margin_is_taken_away_on_either_side_of_a_gradual_transition(kind: str) -> None:
    (bare,), (wide,) = found(kind, margin_frames=0), found(kind, margin_frames=5)
    assert (bare.start_s - wide.start_s, wide.end_s - bare.end_s) == (pytest.approx(5 / 25), pytest.approx(5 / 25))


def test_every_setting_is_in_a_test_here() -> None:
    of_jumps = {"loop_s", "loop_alike", "restless", "flicker"}  # test_jumps.py shows what they do
    named = {name for name, *_ in DECIDES} | {"cut_ratio_alike", "margin_frames"} | of_jumps
    assert named == set(ShotConfig.model_fields)
