"""What a body means: every alias, every default, and every problem at once with the name of its field."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequestError
from acestep.request import MAX_SEED, GenerationRequest, derived_seed
from serve.settings import ServeConfig
from serve.wire import ALIASES, FIELDS, Asked, parameters, parse, resolved, with_defaults

DRAWN = 4711
DEFAULT = ServeConfig()


def parsed(body: dict[str, Any], **options: Any) -> Asked:
    return parse(body, ServeConfig.parse(options) if options else DEFAULT, "tiny", lambda: DRAWN)


def problems(body: dict[str, Any], **options: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        parsed(body, **options)
    fields = [problem.field for problem in caught.value.problems]
    assert len(fields) == len(set(fields)), "each field is named once"
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_the_least_that_can_be_asked() -> None:
    asked = parsed({"prompt": "piano"})
    assert asked.request == GenerationRequest(prompt="piano")
    assert (asked.seeds, asked.format.format, asked.delivery, asked.bytes_wanted) == ((DRAWN,), "flac", "url", False)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_each_alias_is_its_field(alias: str, name: str) -> None:
    values = {"prompt": "x", "duration": 7.5, "num_inference_steps": 9, "scheduler": "heun", "guidance": "cfg"}
    value: Any = values[name]
    asked = parsed({"prompt": "x", alias: value} if name != "prompt" else {alias: value})
    assert getattr(asked.request, name) == value
    both = problems({"prompt": "x", name: value, alias: value})
    assert "under another name" in both[alias]
    wrong = problems({"prompt": "x", alias: [1]} if name != "prompt" else {alias: [1]})
    assert list(wrong) == [name]


def test_every_field_of_the_library_may_be_given() -> None:
    given_values = GenerationRequest.parse({"prompt": "x", "seed": 3, "oss_steps": [4, 9]}).model_dump(
        mode="json", exclude={"id"}
    )
    assert set(given_values) == set(FIELDS)
    assert parsed(given_values).request == GenerationRequest(prompt="x", oss_steps=(4, 9))


def test_all_problems_are_told_at_once() -> None:
    body = {
        "prompt": "",
        "duration": 1000,
        "schedular": "heun",
        "seed": -1,
        "n": 9,
        "response_format": "aac",
        "delivery": "fax",
        "model": "other",
        "lora": "mine",
        "guidance": "none",
    }
    found = problems(body)
    assert set(found) == set(body)
    assert "did you mean 'scheduler'?" in found["schedular"]
    assert "this server has 'tiny'" in found["model"]
    assert "wav, flac, mp3, ogg, opus" in found["response_format"]
    assert "0 to 18446744073709551615" in found["seed"]


def test_the_name_of_a_song_is_the_servers_own() -> None:
    assert "id" in problems({"prompt": "x", "id": "mine"})


def test_an_unknown_field_is_told_though_it_is_empty() -> None:
    assert "durration" in problems({"prompt": "x", "durration": None})
    assert parsed({"prompt": "x", "duration": None, "model": None}).request.duration == 30


@pytest.mark.parametrize("seed", [-1, 1.5, MAX_SEED + 1, True, "x", "-1", {}, [], [1, 2], [[1]], 1e300, float("inf")])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    assert list(problems({"prompt": "x", "seed": seed})) == ["seed"]


@pytest.mark.parametrize(("seed", "expected"), [(5, 5), ("5", 5), (5.0, 5), (0, 0), (MAX_SEED, MAX_SEED), ([5], 5)])
def test_ways_to_write_a_seed(seed: Any, expected: int) -> None:
    assert parsed({"prompt": "x", "seed": seed}).seeds == (expected,)


def test_a_seed_for_each_of_several() -> None:
    assert parsed({"prompt": "x", "n": 3, "seed": [7, 8, 9]}).seeds == (7, 8, 9)
    one = parsed({"prompt": "x", "n": 3, "seed": 7}).seeds
    assert one == (7, derived_seed("song", 7, 1), derived_seed("song", 7, 2))
    assert len(set(parsed({"prompt": "x", "n": 3}).seeds)) == 3
    assert "a list must have n = 3 seeds" in problems({"prompt": "x", "n": 3, "seed": [1, 2]})["seed"]


def test_the_servers_own_seed_is_used_when_there_is_no_other() -> None:
    assert parsed({"prompt": "x"}, defaults={"seed": 5}).seeds == (5,)
    assert parsed({"prompt": "x", "seed": 6}, defaults={"seed": 5}).seeds == (6,)


@pytest.mark.parametrize("n", [0, 9, -1, 1.5, "x", True, [], "9" * 5000])
def test_n_is_a_whole_number(n: Any) -> None:
    assert "n" in problems({"prompt": "x", "n": n})


def test_forms_have_texts() -> None:
    body = {"prompt": "x", "duration": "7.5", "n": "2", "seed": "9", "use_erg_tag": "false", "guidance_scale": "7"}
    asked = parsed(body)
    assert (asked.request.duration, asked.request.use_erg_tag, asked.request.guidance_scale) == (7.5, False, 7.0)
    assert asked.seeds[0] == 9 and len(asked.seeds) == 2


@pytest.mark.parametrize("duration", [60.5, "60.5", "1e2"])
def test_the_longest_song_of_this_server(duration: Any) -> None:
    options = {"jobs": {"max_duration": 60}}
    assert "up to 60 s" in problems({"prompt": "x", "duration": duration}, **options)["duration"]
    assert parsed({"prompt": "x", "duration": "60"}, **options).request.duration == 60
    assert "1 to 240" in problems({"prompt": "x", "duration": 241})["duration"]


def test_adapters_that_may_be_named() -> None:
    assert "no adapters" in problems({"prompt": "x", "lora": "a"})["lora"]
    some = {"jobs": {"loras": ["a", "b"]}}
    assert parsed({"prompt": "x", "lora": "a"}, **some).request.lora == "a"
    assert "this server has a, b" in problems({"prompt": "x", "lora": "/etc/passwd"}, **some)["lora"]
    assert parsed({"prompt": "x", "lora": "any"}, jobs={"loras": ["*"]}).request.lora == "any"


def test_formats_keep_the_servers_settings() -> None:
    options = {"audio": {"format": "mp3", "bitrate_kbps": 128}}
    assert parsed({"prompt": "x"}, **options).format.bitrate_kbps == 128
    assert parsed({"prompt": "x", "response_format": "mp3"}, **options).format.bitrate_kbps == 128
    assert parsed({"prompt": "x", "response_format": "wav"}, **options).format.format == "wav"


def test_raw_audio_is_one_song() -> None:
    assert parsed({"prompt": "x", "stream_format": "audio"}).bytes_wanted
    assert "n" in problems({"prompt": "x", "stream_format": "audio", "n": 2})
    assert "stream_format" in problems({"prompt": "x", "stream_format": "sse"})


def test_parameters_repeat_the_song() -> None:
    asked = parsed({"prompt": "x", "task": "retake", "n": 2, "seed": 4, "response_format": "wav"})
    shown = parameters(asked)
    assert shown["seed"] == list(asked.seeds) and shown["n"] == 2 and shown["response_format"] == "wav"
    assert shown["variance"] == 0.5, "the task's own defaults are resolved"
    again = parsed(shown)
    assert again.seeds == asked.seeds
    assert [resolved(again, seed).variance for seed in again.seeds] == [0.5, 0.5]
    single = parameters(parsed({"prompt": "x", "lyrics": "[verse]\nla"}))
    assert single["seed"] == DRAWN and "id" not in single
    assert parsed(single).request == parsed({"prompt": "x", "lyrics": "[verse]\nla"}).request


def test_an_item_goes_before_the_defaults_under_whatever_name() -> None:
    merged = with_defaults({"audio_duration": 3, "input": "a", "seed": 1}, {"seconds": 5, "prompt": "b"})
    assert merged == {"seconds": 5, "prompt": "b", "seed": 1}


def test_what_is_huge_is_neither_looked_at_nor_repeated() -> None:
    found = problems({"prompt": "x" * 1_000_000, "scheduler": "y" * 1_000_000, "z" * 1_000_000: 1})
    assert set(found) == {"prompt", "scheduler", "z" * 60}
    assert sum(map(len, found.values())) < 2000
    assert "at most 100" in problems({f"field{number}": 1 for number in range(1000)})["(whole)"]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(sorted({*FIELDS, *ALIASES, "n", "model", "response_format", "delivery", "stream_format", "id"}))


@given(st.dictionaries(names | st.text(max_size=12), junk, max_size=8))
def test_any_body_is_understood_or_refused_by_name(body: dict[str, Any]) -> None:
    try:
        asked = parsed({"prompt": "x", **body})
    except InvalidRequestError as error:
        problems = error.problems
        if not problems or not all(problem.field and str(problem) for problem in problems):
            raise
        return
    assert asked.seeds and all(0 <= seed <= MAX_SEED for seed in asked.seeds)
    assert [each.seed for each in map(resolved, itertools.repeat(asked), asked.seeds)] == list(asked.seeds)
    parameters(asked)
