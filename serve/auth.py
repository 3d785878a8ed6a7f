"""Who may call, and how often: keys of which only hashes are known here, and limits for each of them.

`python -m serve.auth` draws a key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from pydantic import ConfigDict, Field, field_validator

from acestep.problems import Problem, ProblemsError
from pipelines.errors import ConfigError
from pipelines.sections import Section
from serve.errors import RateLimitError, UnauthorizedError

KEYS_VARIABLE = "ACESTEP_API_KEYS"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HIDDEN = "(not shown)"
_WINDOW = 60.0
"""Seconds that a rate is counted over."""
_RETRY_BUSY = 1.0
"""Seconds after which a client with too many requests at once may ask again; nobody knows when one ends."""


class AuthSection(Section):
    """Who may call; without any key here or in ACESTEP_API_KEYS, everybody who can reach the server."""

    model_config = ConfigDict(hide_input_in_errors=True)  # Somebody may have written a plain key there.

    keys: dict[str, str] = Field(
        default_factory=dict,
        description="Name and sha256:<64 hex digits> of each key; `python -m serve.auth` draws one.",
    )
    requests_per_minute: int | None = Field(default=None, description="Of one key; 429 above; null: any.", ge=1)
    max_concurrent: int | None = Field(
        default=None, description="Requests of one key being answered at once; 429 above; null: any.", ge=1
    )

    @field_validator("keys", mode="before")
    @classmethod
    def _are_hashes(cls, keys: Any) -> Any:
        if not isinstance(keys, dict) or not all(isinstance(part, str) for pair in keys.items() for part in pair):
            raise ProblemsError(
                [Problem("auth.keys", _HIDDEN, "it must be names and hashes, such as {ann: sha256:...}")]
            )
        if problems := _problems(keys, "auth.keys"):
            raise ProblemsError(problems)
        return keys


class Keys:
    """The keys that may call.

    Args:
        hashes: by name, each as `hash_key` gives it; none: everybody may call.
    """

    def __init__(self, hashes: Mapping[str, str]):
        self._hashes = dict(hashes)

    @classmethod
    def of(cls, section: AuthSection, environ: Mapping[str, str] = os.environ) -> Keys:
        """The keys of the config and of ACESTEP_API_KEYS (`name=sha256:...,name2=...`), which goes before it.

        Raises:
            ConfigError: for what is no hash of a key; the text itself is never shown.
        """
        named: dict[str, str] = {}
        for number, entry in enumerate(filter(None, map(str.strip, environ.get(KEYS_VARIABLE, "").split(","))), 1):
            name, equals, value = (part.strip() for part in entry.partition("="))
            if not equals:
                raise ConfigError(f"{KEYS_VARIABLE}: entry {number} is not like name=sha256:<64 hex digits>")
            if name in named:
                raise ConfigError(f"{KEYS_VARIABLE}: entry {number} has the name of an earlier one")
            named[name] = value
        if problems := _problems(named, KEYS_VARIABLE):
            raise ConfigError.of(f"the variable {KEYS_VARIABLE}", problems)
        return cls({**section.keys, **named})

    def __bool__(self) -> bool:
        """Whether there are any: if not, everybody may call."""
        return bool(self._hashes)

    def identify(self, authorization: str | None) -> str | None:
        """The name of the key in an `Authorization: Bearer <key>` header; None when the server has no keys.

        It takes as long for a key that is nearly right as for any other.

        Raises:
            UnauthorizedError: for no key, or one that is not known.
        """
        if not self._hashes:
            return None
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise UnauthorizedError(
                "a key is needed, as in the header `Authorization: Bearer <key>`", code="no_api_key"
            )
        given, found = hash_key(key.strip()), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        if found is None:
            raise UnauthorizedError("this key is not known")
        return found


class RateLimiter:
    """What one key may ask for; for the one process and event loop that it lives in.

    Args:
        requests_per_minute: in any 60 seconds; None: any number.
        max_concurrent: at once; None: any number.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        max_concurrent: int | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._limit, self._most, self._clock = requests_per_minute, max_concurrent, clock
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: Counter[str] = Counter()

    def take(self, name: str | None) -> None:
        """Count one request of the key `name`; None, a caller without a key, has no limit.

        Raises:
            RateLimitError: when there were too many; it says when the next is taken, and does not count itself.
        """
        if name is None or self._limit is None:
            return
        now, taken = self._clock(), self._taken[name]
        while taken and now - taken[0] >= _WINDOW:
            taken.popleft()
        if len(taken) >= self._limit:
            message = f"this key may make {self._limit:,} requests a minute"
            raise RateLimitError(message, retry_after=_WINDOW - (now - taken[0]))
        taken.append(now)

    @contextmanager
    def running(self, name: str | None) -> Iterator[None]:
        """Within it, one more request of the key `name` is being answered.

        Raises:
            RateLimitError: on entry, when there are as many as may be.
        """
        if name is None or self._most is None:
            yield
            return
        if self._running[name] >= self._most:
            message = f"this key may have {self._most:,} requests answered at once"
            raise RateLimitError(message, code="too_many_at_once", retry_after=_RETRY_BUSY)
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1


def hash_key(key: str) -> str:
    """What is kept of a key: `sha256:<64 hex digits>`.

    One plain hash is enough for keys drawn at random, which nobody can guess; never hash a password this way.
    """
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def draw_key() -> str:
    """A new key of 256 random bits."""
    return f"ace-{secrets.token_urlsafe(32)}"


def _problems(keys: Mapping[str, str], where: str) -> list[Problem]:
    """What is wrong with names and hashes; the values are not shown, for a plain key may be among them."""
    problems = []
    for name, value in keys.items():
        if not _NAME.fullmatch(name):
            problems.append(Problem(where, name, "a name has letters, digits, . _ and -, 64 at most"))
        elif not _HASH.fullmatch(value):
            allowed = "it must be sha256:<64 hex digits>, never the key; `python -m serve.auth --stdin` hashes one"
            problems.append(Problem(f"{where}.{name}", _HIDDEN, allowed))
    if len(set(keys.values())) < len(keys) and not problems:
        problems.append(Problem(where, sorted(keys), "two names have the same key"))
    return problems


@click.command(context_settings={"max_content_width": 110})
@click.option("--stdin", is_flag=True, help="Hash the key on standard input, and draw none.")
def command(stdin: bool) -> None:
    """Draw a key for clients, and print it with the hash that the server is told.

    The server never needs the key itself: give it to the client and write only the hash into the config, below
    auth.keys, or into ACESTEP_API_KEYS as name=sha256:...
    """
    if stdin:
        key = sys.stdin.read().strip()
        if not key:
            raise click.UsageError("there is no key on standard input")
        click.echo(hash_key(key))
        return
    key = draw_key()
    click.echo(f"key   {key}\nhash  {hash_key(key)}")


if __name__ == "__main__":
    command()
