"""How commands talk: log lines on standard error, and errors of ours as one line and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
_QUIET = ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "asyncio", "filelock", "httpx")


def start_logging(verbose: bool = False) -> None:
    """Log to standard error, without the libraries' own chatter."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def exit_codes(name: str) -> Iterator[None]:
    """Errors of ours end the process with one line: 2 for unusable input, 4 for anything else, 130 for Ctrl-C."""
    from acestep.errors import ACEStepError

    try:
        yield
    except KeyboardInterrupt:
        print(f"acestep {name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ACEStepError as error:
        print(f"acestep {name}: {error}", file=sys.stderr)
        sys.exit(2 if error.error_class == "input" else 4)
