"""Keys and limits: who is known, who is not, what a plain key in a config leads to, and how often is too often."""

from __future__ import annotations

import hmac
import subprocess
import sys
from collections import deque
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from acestep.problems import problems_of
from pipelines.errors import ConfigError
from serve import auth
from serve.auth import KEYS_VARIABLE, AuthSection, Keys, RateLimiter, draw_key, hash_key
from serve.errors import RateLimitError, UnauthorizedError

ANN, BOB = "ace-anns-key", "ace-bobs-key"
HASHES = {"ann": hash_key(ANN), "bob": hash_key(BOB)}


def test_keys_are_told_apart() -> None:
    keys = Keys(HASHES)
    assert keys.identify(f"Bearer {ANN}") == "ann"
    assert keys.identify(f"bearer   {BOB} ") == "bob"


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", " ", "Bearer", "Bearer ", "bearer:x", "Basic YTpi", ANN),
        *(
            f"Bearer {ANN}x",
            f"Bearer {ANN[:-1]}",
            f"Bearer {ANN.upper()}",
            f"Bearer {ANN} {BOB}",
            f"Bearer {HASHES['ann']}",
        ),
        *(f"Bearer{ANN}", f"Token {ANN}", "Bearer \udcff", "Bearer \xff", "Bearer \x00", "Bearer " + "x" * 100_000),
    ],
)
def test_nobody_else_is_known(header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        Keys(HASHES).identify(header)
    assert caught.value.status == 401
    assert ANN not in str(caught.value)


def test_without_keys_everybody_may_call() -> None:
    keys = Keys.of(AuthSection(), {})
    assert not keys
    assert keys.identify(None) is None
    assert keys.identify("Bearer whatever") is None


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(given: str, known: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(given, known)

    class Counted:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(auth, "hmac", Counted)
    assert Keys(HASHES).identify(f"Bearer {ANN}") == "ann"
    assert compared == list(HASHES.values())


@given(st.text(min_size=1))
def test_only_its_own_key_has_a_hash(key: str) -> None:
    assert (hash_key(key) == HASHES["ann"]) == (key == ANN)


@pytest.mark.parametrize(
    "value",
    [
        ANN,
        "",
        "sha256:",
        HASHES["ann"][:-1],
        HASHES["ann"] + "0",
        HASHES["ann"].upper(),
        HASHES["ann"] + "\n",
        "md5:ab",
    ],
)
def test_a_config_takes_no_plain_key_and_shows_none(value: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AuthSection(keys={"ann": value})
    (problem,) = problems_of(caught.value, AuthSection)
    assert problem.field == "auth.keys.ann"
    assert "python -m serve.auth" in str(problem)
    assert "not shown" in str(problem)
    if value not in ("", "sha256:"):
        assert value not in str(problem) and value not in str(caught.value)


@pytest.mark.parametrize(
    "keys", [ANN, [ANN], {"ann": 7}, {1: HASHES["ann"]}, {"a b": HASHES["ann"]}, {"": HASHES["ann"]}]
)
def test_keys_are_names_and_hashes(keys: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        AuthSection(keys=keys)
    (problem,) = problems_of(caught.value, AuthSection)
    assert ANN not in str(problem)


def test_two_names_have_two_keys() -> None:
    with pytest.raises(ValidationError, match="two names have the same key"):
        AuthSection(keys={"ann": HASHES["ann"], "bob": HASHES["ann"]})


def test_keys_come_from_the_environment_too() -> None:
    section = AuthSection(keys={"ann": hash_key("old"), "cat": hash_key("cats")})
    keys = Keys.of(section, {KEYS_VARIABLE: f" ann={HASHES['ann']}, bob = {HASHES['bob']},,"})
    assert keys.identify(f"Bearer {ANN}") == "ann"
    assert keys.identify(f"Bearer {BOB}") == "bob"
    assert keys.identify("Bearer cats") == "cat"
    with pytest.raises(UnauthorizedError):
        keys.identify("Bearer old")


@pytest.mark.parametrize(
    "text",
    [ANN, f"ann={ANN}", f"ann={HASHES['ann']},{BOB}", f"={HASHES['ann']}", f"ann={HASHES['ann']},ann={HASHES['bob']}"],
)
def test_an_unusable_environment_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=KEYS_VARIABLE) as caught:
        Keys.of(AuthSection(), {KEYS_VARIABLE: text})
    assert ANN not in str(caught.value) and BOB not in str(caught.value)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_requests_over_the_rate_are_told_when_to_come_again() -> None:
    clock = Clock()
    limiter = RateLimiter(3, None, clock)
    for _ in range(3):
        limiter.take("ann")
        clock.now += 10
    with pytest.raises(RateLimitError) as caught:
        limiter.take("ann")
    assert caught.value.status == 429
    assert caught.value.retry_after == pytest.approx(30)
    limiter.take("bob")  # has a rate of its own
    clock.now += 30
    limiter.take("ann")
    with pytest.raises(RateLimitError) as caught:
        limiter.take("ann")
    assert caught.value.retry_after == pytest.approx(10)


@given(st.integers(1, 5), st.lists(st.floats(0, 40), max_size=60))
def test_no_minute_has_more_than_the_rate_and_none_is_refused_without_need(rate: int, pauses: list[float]) -> None:
    clock, taken = Clock(), deque[float]()
    limiter = RateLimiter(rate, None, clock)
    for pause in pauses:
        clock.now += pause
        recent = sum(clock.now - time < 60 for time in taken)
        if recent < rate:
            limiter.take("ann")
            taken.append(clock.now)
        else:
            with pytest.raises(RateLimitError) as caught:
                limiter.take("ann")
            assert 0 < (caught.value.retry_after or 0) <= 60


def test_so_many_requests_at_once() -> None:
    limiter = RateLimiter(None, 2)
    with limiter.running("ann"), limiter.running("ann"), limiter.running("bob"):
        with pytest.raises(RateLimitError) as caught, limiter.running("ann"):
            raise AssertionError("unreachable")
        assert caught.value.code == "too_many_at_once" and caught.value.retry_after
    with pytest.raises(KeyError), limiter.running("ann"):
        raise KeyError  # A request that fails is over too.
    with limiter.running("ann"), limiter.running("ann"):
        pass


def test_callers_without_a_key_and_limits_that_are_not_set_hold_nobody_back() -> None:
    limiter = RateLimiter(1, 1)
    for _ in range(5):
        limiter.take(None)
    with limiter.running(None), limiter.running(None):
        pass
    free = RateLimiter(None, None)
    for _ in range(5):
        free.take("ann")
    with free.running("ann"), free.running("ann"):
        pass


def test_the_command_draws_a_key_that_its_hash_admits() -> None:
    shown = CliRunner().invoke(auth.command).output.split()
    key, known = shown[shown.index("key") + 1], shown[shown.index("hash") + 1]
    assert Keys.of(AuthSection(keys={"ann": known}), {}).identify(f"Bearer {key}") == "ann"
    assert draw_key() != draw_key() and len(key) > 40


def test_the_command_hashes_a_key_that_there_is() -> None:
    words = [sys.executable, "-m", "serve.auth", "--stdin"]
    done = subprocess.run(words, input=f"{ANN}\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == HASHES["ann"]
    assert CliRunner().invoke(auth.command, ["--stdin"], input=" \n").exit_code == 2
