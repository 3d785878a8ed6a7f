"""Requests: any scalar is as good as Python's, every problem is named at once, fingerprints tell sounds apart."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequestError
from acestep.frames import SAMPLES_PER_FRAME, num_latent_frames, num_samples
from acestep.request import MAX_SEED, GenerationRequest, derived_seed


@pytest.mark.parametrize("wrap", [np.int64, np.float32, pa.scalar, str, int])
def test_scalars_of_every_library_are_numbers(wrap: type) -> None:
    request = GenerationRequest.parse({"prompt": "x", "seed": wrap(5), "duration": wrap(12)})
    assert (request.seed, request.duration) == (5, 12.0)


def test_none_means_the_default() -> None:
    request = GenerationRequest.parse({"prompt": "x", "lyrics": None, "duration": None, "scheduler": None})
    assert (request.lyrics, request.duration, request.scheduler) == ("", 30.0, "euler")
    assert (request.num_inference_steps, request.guidance_scale) == (27, 15.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration": 0}, "duration: 0 is not allowed; it must be 1 to 240"),
        ({"duration": -1}, "duration: -1 is not allowed; it must be 1 to 240"),
        ({"duration": float("nan")}, "duration: nan is not allowed; it must be 1 to 240"),
        ({"duration": 1000}, "duration: 1000 is not allowed; it must be 1 to 240"),
        ({"duration": "abc"}, "duration: 'abc' is not allowed; it must be a number, 1 to 240"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 is not allowed; it must be 1 to 200"),
        ({"num_inference_steps": 2.5}, "num_inference_steps: 2.5 is not allowed"),
        ({"scheduler": "eulr"}, "'eulr' is not allowed; allowed: 'euler', 'heun' or 'pingpong'; did you mean 'euler'?"),
        ({"seed": -1}, "seed: -1 is not allowed; it must be 0 to"),
        ({"seed": True}, "seed: True is not allowed"),
        ({"prompt": "a" * 100_000}, "(100,000 characters) is not allowed; it must have at most 4096 characters"),
        ({"prompt": "  "}, "it must say something"),
        ({"language": "klingon"}, "language: 'klingon' is not allowed; allowed: auto"),
        ({"sheduler": "euler"}, "there is no such field; did you mean 'scheduler'?"),
    ],
)
def test_a_problem_names_field_value_and_what_is_allowed(values: dict, words: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        GenerationRequest.parse({"prompt": "x"} | values)
    assert words in str(error.value)
    assert len(error.value.problems) == 1


def test_all_problems_come_at_once_and_survive_a_process_border() -> None:
    with pytest.raises(InvalidRequestError) as error:
        GenerationRequest.parse({"duration": 0, "seed": -1, "nonsense": 1})
    assert {problem.field for problem in error.value.problems} == {"prompt", "duration", "seed", "nonsense"}
    assert pickle.loads(pickle.dumps(error.value)).problems == error.value.problems


def test_emoji_are_text() -> None:
    assert GenerationRequest.parse({"prompt": "\N{GUITAR} rock", "lyrics": "\N{HEAVY BLACK HEART}"}).prompt


def test_fingerprints_differ_with_what_changes_the_sound_and_only_with_that() -> None:
    base = GenerationRequest(prompt="x", seed=1)
    same = base.model_copy(update={"id": "another name"})
    assert base.fingerprint("m") == same.fingerprint("m")
    others = [base.model_copy(update={"seed": 2}), base.model_copy(update={"lyrics": "la"})]
    prints = {item.fingerprint("m") for item in (base, *others)}
    prints |= {base.fingerprint("other model"), base.fingerprint("m", "mp3")}
    assert len(prints) == 5
    with pytest.raises(InvalidRequestError, match="seed"):
        GenerationRequest(prompt="x").fingerprint("m")


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    request = GenerationRequest(prompt="x", seed=1)
    assert request.fingerprint("m") == GenerationRequest.parse(request.settings()).fingerprint("m")


@given(st.text(max_size=30), st.integers(0, 10))
def test_derived_seeds_are_seeds_and_repeat(name: str, attempt: int) -> None:
    seed = derived_seed(name, attempt)
    assert 0 <= seed <= MAX_SEED
    assert seed == derived_seed(name, attempt)
    assert derived_seed(name, attempt) != derived_seed(name, attempt + 1)


@given(st.floats(1, 240))
def test_a_song_is_short_by_less_than_a_latent_frame(duration: float) -> None:
    frames = num_latent_frames(duration)
    assert 0 <= duration * 44100 - frames * SAMPLES_PER_FRAME < SAMPLES_PER_FRAME + 1
    assert num_samples(duration) == frames * SAMPLES_PER_FRAME
    assert abs(num_samples(duration, 48000) / 48000 - num_samples(duration) / 44100) < 1 / 48000
