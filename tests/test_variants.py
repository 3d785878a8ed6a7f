"""Variants: what one row becomes with several songs and swept settings, and that it is always the same."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.request import derived_seed
from pipelines.judging import plan_rows
from pipelines.manifest import ManifestBatch
from pipelines.resolution import Resolution
from pipelines.variants import combinations, sweep_problems, value_text


def songs(rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The planned songs of plain rows; every row must be accepted."""
    table = pa.Table.from_pylist(rows)
    judged = plan_rows(
        ManifestBatch("m", list(range(1, table.num_rows + 1)), table), Resolution({}, 7, "m", "r", **options)
    )
    assert not judged.rejects.num_rows, judged.rejects.to_pylist()
    return judged.planned.to_pylist()


def refusals(rows: list[dict[str, Any]], **options: Any) -> list[str]:
    table = pa.Table.from_pylist(rows)
    batch = ManifestBatch("m", list(range(1, table.num_rows + 1)), table)
    return plan_rows(batch, Resolution({}, 7, "m", "r", **options)).rejects.column("message").to_pylist()


def test_one_song_of_a_row_keeps_its_id() -> None:
    (song,) = songs([{"id": "a", "prompt": "p"}], sweep={"guidance_scale": [5]})
    assert (song["id"], song["parent"], song["guidance_scale"]) == ("a", None, 5.0)


def test_children_are_named_after_their_parent_and_have_seeds_of_their_own() -> None:
    rows = [{"id": "a", "prompt": "p", "seed": 5, "num_songs": 3}, {"id": "b", "prompt": "p"}]
    made = songs(rows, num_songs=2)
    assert [(song["id"], song["parent"]) for song in made] == [
        *((f"a.{k}", "a") for k in (1, 2, 3)),
        *((f"b.{k}", "b") for k in (1, 2)),
    ]
    first = derived_seed(7, "b")
    seeds = [5, derived_seed("song", 5, 2), derived_seed("song", 5, 3), first, derived_seed("song", first, 2)]
    assert [song["seed"] for song in made] == seeds
    assert len({song["fingerprint"] for song in made}) == 5


def test_a_sweep_makes_every_combination_with_the_same_seeds() -> None:
    made = songs(
        [{"id": "a", "prompt": "p"}],
        num_songs=2,
        sweep={"guidance_scale": [5, 7.5], "scheduler": ["euler", "heun"]},
    )
    assert [song["id"] for song in made] == [
        f"a.guidance_scale-{scale}.scheduler-{scheduler}.{k}"
        for scale in ("5", "7.5")
        for scheduler in ("euler", "heun")
        for k in (1, 2)
    ]
    assert [(song["guidance_scale"], song["scheduler"]) for song in made[::2]] == [
        *((5.0, "euler"), (5.0, "heun"), (7.5, "euler"), (7.5, "heun")),
    ]
    assert len({song["seed"] for song in made}) == 2


def test_a_value_of_the_row_s_own_goes_before_the_sweep() -> None:
    rows = [
        {"id": "a", "prompt": "p", "guidance_scale": 3.0, "duration": None},
        {"id": "b", "prompt": "p", "guidance_scale": None, "duration": None},
        {"id": "c", "prompt": "p", "guidance_scale": None, "duration": 10.0},
    ]
    made = songs(rows, sweep={"guidance_scale": [5, 7], "duration": [20, 30]})
    assert [(song["id"], song["guidance_scale"], song["duration"]) for song in made] == [
        *((f"a.duration-{d}", 3.0, d) for d in (20, 30)),
        *((f"b.guidance_scale-{g}.duration-{d}", g, d) for g in (5, 7) for d in (20, 30)),
        *((f"c.guidance_scale-{g}", g, 10.0) for g in (5, 7)),
    ]


def test_seeds_can_be_swept() -> None:
    made = songs([{"id": "a", "prompt": "p"}, {"id": "b", "prompt": "p"}], sweep={"seed": [1, 2]})
    assert [(song["id"], song["seed"]) for song in made] == [
        ("a.seed-1", 1),
        ("a.seed-2", 2),
        ("b.seed-1", 1),
        ("b.seed-2", 2),
    ]


def test_none_in_a_sweep_is_the_default() -> None:
    made = songs([{"id": "a", "prompt": "p"}], sweep={"min_guidance_scale": [None, 1]})
    assert [(song["id"], song["min_guidance_scale"]) for song in made] == [
        ("a.min_guidance_scale-none", 3.0),
        ("a.min_guidance_scale-1", 1.0),
    ]


def test_what_follows_from_the_seed_follows_from_the_child_s() -> None:
    made = songs([{"id": "a", "prompt": "p", "task": "retake"}], num_songs=2)
    assert [song["variation_seed"] for song in made] == [derived_seed("variation", song["seed"]) for song in made]
    assert made[0]["variation_seed"] != made[1]["variation_seed"]


@pytest.mark.parametrize("value", [2, 2.0, "2", " 2 "])
def test_a_number_of_songs_may_be_written_in_any_way(value: Any) -> None:
    assert len(songs([{"id": "a", "prompt": "p", "num_songs": value}])) == 2


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, 10_001, float("nan"), float("inf"), [2], "9" * 400])
def test_a_number_of_songs_that_is_none_refuses_the_row(value: Any) -> None:
    (message,) = refusals([{"id": "a", "prompt": "p", "num_songs": value}])
    assert message.startswith("num_songs: ")
    assert message.endswith("is not allowed; it must be a whole number, 1 to 10,000")


def test_a_row_has_its_limits() -> None:
    sweep = {"seed": list(range(200))}
    assert refusals([{"id": "a", "prompt": "p", "num_songs": 51}], sweep=sweep) == [
        "num_songs: '10,200 songs' is not allowed; a row can have at most 10,000"
    ]
    (message,) = refusals([{"id": "x" * 511, "prompt": "p"}], num_songs=2)
    assert "with the variants' ending it has 513 characters; at most 512" in message


def test_one_wrong_combination_refuses_the_row_and_is_told_once() -> None:
    (message,) = refusals([{"id": "a", "prompt": "p"}], sweep={"task": ["text2music", "repaint"], "seed": [1, 2]})
    assert message.count("source") == 1


def test_every_problem_of_a_sweep_is_told_at_once() -> None:
    sweep = {
        "guidance_scale": [5, "loud", 5.0],
        "guidance_skale": [1],
        "prompt": ["x"],
        "num_inference_steps": [],
        "duration": [0, 10],
        "task": ["repaint"],
        "sample_rate": [44100, 8000],
    }
    text = "\n".join(str(problem) for problem in sweep_problems(sweep, {}))
    for expected in (
        "sweep.guidance_scale: 'loud' is not allowed; it must be a number, 0 to 100",
        "sweep.guidance_scale: 5.0 is not allowed; 5 is the same; every value once",
        "sweep.guidance_skale: [1] is not allowed; there is no such setting; did you mean 'guidance_scale'?",
        "sweep.prompt: ['x'] is not allowed; every row of the manifest has its own",
        "sweep.num_inference_steps: [] is not allowed; it must have at least one value",
        "sweep.duration: 0 is not allowed; it must be 1 to 240",
        "sweep.sample_rate: 8000 is not allowed",
    ):
        assert expected in text, text
    assert "sweep.task" not in text
    assert not sweep_problems({"seed": [1], "lora": [None, "a"], "oss_steps": ["16,29"]}, {})
    (many,) = sweep_problems({"seed": list(range(200)), "variation_seed": list(range(51))}, {})
    assert "10,200 combinations" in str(many)


SWEPT = st.fixed_dictionaries(
    {},
    optional={
        "guidance_scale": st.lists(st.floats(0, 100), min_size=1, max_size=3, unique_by=value_text),
        "seed": st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3, unique=True),
        "scheduler": st.lists(st.sampled_from(["euler", "heun", "pingpong"]), min_size=1, max_size=3, unique=True),
        "use_erg_tag": st.just([True, False]),
    },
)


@given(sweep=SWEPT, count=st.integers(1, 3), own=st.sets(st.sampled_from(["seed", "scheduler"])))
def test_any_sweep_makes_as_many_different_songs_as_it_says(sweep: Any, count: int, own: set[str]) -> None:
    row = {"id": "a", "prompt": "p"} | {name: {"seed": 3, "scheduler": "heun"}[name] for name in own}
    made = songs([row], sweep=sweep, num_songs=count)
    assert len(made) == len(combinations(sweep, own)) * count
    assert len({song["id"] for song in made}) == len({song["fingerprint"] for song in made}) == len(made)
    assert made == songs([row], sweep=sweep, num_songs=count)
