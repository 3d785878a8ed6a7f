"""The page at `/`: static files, no build step, nothing fetched from elsewhere."""

from __future__ import annotations

from importlib.resources import files

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

NAMES = tuple(sorted(each.name for each in files(__name__).iterdir() if each.name.rpartition(".")[2] in _MEDIA_TYPES))
"""The files of the page; `index.html` is shown at `/`, the others lie at `/page/<name>`."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The header that the page is made to live with: nothing inline, nothing from another origin."""


def asset(name: str) -> tuple[bytes, str]:
    """A file of the page and its media type.

    Raises:
        KeyError: for a name that is not in `NAMES`; so a path leads nowhere.
    """
    if name not in NAMES:
        raise KeyError(name)
    return files(__name__).joinpath(name).read_bytes(), _MEDIA_TYPES[name.rpartition(".")[2]]
