"""The page: everything that a catalog's report says, in one HTML file that asks nothing of any network."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from acestep import __version__
from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.errors import UnusableInputError
from pipelines.plan import PlanRecord
from pipelines.report.cards import Card, language_name, quarantine_card, song_card
from pipelines.report.charts import histogram
from pipelines.report.facts import MOST_RUNS, facts, figures, noise_text, runs_of
from pipelines.report.picks import Picks
from pipelines.report.pictures import CEILING_DB, FLOOR_DB
from pipelines.report.players import Excerpt, players
from pipelines.report.survey import Survey, chosen_rows
from pipelines.report.throughput import throughput
from pipelines.report.troubles import Kind, Rule, Troubles, rules_of
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

REPORT = "report.html"
"""Its place in the catalog."""

_HERE = Path(__file__).parent
_CLASSES = {
    "input": "rows that cannot be made as they are",
    "out_of_memory": "do not fit on the device, alone in a batch",
    "quality": "every attempt failed the quality gate",
    "storage": "could not be put away",
    "timeout": "took too long",
    "device": "the device or its process broke",
    "internal": "a fault of this program or the model",
}
_MOST_LANGUAGES = 20
_REST_BYTES = 300_000
"""Of the page, for everything but songs."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What goes into a report.

    Attributes:
        sample: songs to hear, besides the best and worst by score and those that were made again.
        max_quarantined: quarantined songs to hear; the others are listed.
        max_megabytes: of the page, about; excerpts become shorter to keep to it.
        seed: draws the sample.
        link: what leads from the page to the catalog's folder: empty where the page lies in it; None: no links.
    """

    sample: int = 12
    max_quarantined: int = 200
    max_megabytes: float = 30.0
    seed: int = 0
    link: str | None = ""


def write_report(storage: Storage, options: ReportOptions | None = None) -> str:
    """Put the report of a catalog into it; returns its key.

    Raises:
        UnusableInputError: when there is no catalog.
        StorageError: when it cannot be read or written.
    """
    storage.put(REPORT, report_page(storage, options).encode())
    return REPORT


def report_page(storage: Storage, options: ReportOptions | None = None, *, now: datetime | None = None) -> str:
    """The report of a catalog as HTML; memory depends on what is shown, not on the number of songs.

    Raises:
        UnusableInputError: when there is no catalog.
        StorageError: when it cannot be read.
    """
    options = options or ReportOptions()
    catalog, record = Catalog(storage), PlanRecord.read(storage)
    picks = Picks(options.sample, options.seed)
    survey = Survey.of(catalog, picks)
    troubles = Troubles(options.max_quarantined, options.seed)
    for bucket in catalog.buckets():
        troubles.take(catalog.failures_of(bucket))
    if record is None and not survey.songs and not troubles.classes:
        raise UnusableInputError(f"{storage.url}: there is no catalog here")
    runs = runs_of(storage, survey)
    sample, quarantined = _cards(storage, catalog, survey, troubles, options)
    cards = {card.path: card.anchor for card in quarantined}
    listed = troubles.listed(cards)
    kinds = troubles.kinds()
    flow = throughput(survey.timeline, [(run.start, run.end) for run in runs])
    refusals, warnings = rules_of(storage, layout.REJECTS), rules_of(storage, layout.WARNINGS)
    plots = _plots(survey)
    context: dict[str, Any] = {
        "title": storage.url.rstrip("/").rpartition("/")[2] or "Catalog",
        "place": storage.url,
        "now": now or datetime.now(timezone.utc),
        "version": __version__,
        "css": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "js": Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        "floor_db": f"{FLOOR_DB:g}",
        "ceiling_db": f"{CEILING_DB:g}",
        "noise": noise_text(survey, record),
        "figures": figures(survey, troubles, record, runs),
        "facts": facts(survey, record, runs),
        "throughput": flow,
        "runs": [run.cells() for run in runs[-MOST_RUNS:]],
        "runs_left_out": max(0, len(runs) - MOST_RUNS),
        "plots": plots,
        "languages": _ranking((language_name(code), n) for code, n in survey.languages.most_common(_MOST_LANGUAGES)),
        "languages_note": _languages_note(survey),
        "sample": sample,
        "sample_note": _sample_note(survey),
        "classes": _ranking(troubles.classes.most_common(), _CLASSES),
        "kinds": [_kind(kind, cards) for kind in kinds],
        "quarantined_count": troubles.quarantined,
        "quarantined": quarantined,
        "quarantine_note": _quarantine_note(troubles, quarantined),
        "listed": listed,
        "listed_left_out": max(0, troubles.quarantined - len(quarantined) - len(listed)),
        "refusals": _ranking([(rule.name, rule.count) for rule in refusals], _examples(refusals)),
        "warnings": _ranking([(rule.name, rule.count) for rule in warnings], _examples(warnings)),
        "link": options.link,
    }
    names = {
        "facts": ("Facts", True),
        "throughput": ("Throughput", flow),
        "songs": ("The songs", plots),
        "sample": ("A sample to hear", sample),
        "failures": ("Failures", True),
        "quarantine": ("Quarantine", troubles.quarantined),
        "manifest": ("The manifest's rows", refusals or warnings),
    }
    context["sections"] = [(id, name) for id, (name, there) in names.items() if there]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["link"] = lambda path: _link(path, options.link)
    return environment.get_template("page.html").render(context)


def _cards(
    storage: Storage, catalog: Catalog, survey: Survey, troubles: Troubles, options: ReportOptions
) -> tuple[list[Card], list[Card]]:
    """The songs to hear, of the sample and from quarantine: as many and as much of each as the page has room for."""
    room = options.max_megabytes * 1e6 - _REST_BYTES
    failed = troubles.shown()
    chosen = list(chosen_rows(catalog, survey.picks.chosen()))
    logger.info("drawing %d songs and %d quarantined ones, at most", len(chosen), len(failed))
    excerpt, count = Excerpt.share(room / 2 if failed else room, len(chosen))
    sounds = players(storage, [row["path"] for _, row in chosen[:count]], excerpt)
    sample = [
        song_card(f"song-{place}", row, pick.why, player, excerpt)
        for place, ((pick, row), player) in enumerate(zip(chosen[:count], sounds, strict=True))
    ]
    room -= sum(card.player.page_bytes for card in sample)
    excerpt, count = Excerpt.share(room, len(failed))
    sounds = players(storage, [row["path"] for row in failed[:count]], excerpt)
    return sample, [
        quarantine_card(f"quarantine-{place}", row, player, excerpt)
        for place, (row, player) in enumerate(zip(failed[:count], sounds, strict=True))
    ]


def _link(path: str, link: str | None) -> str:
    """The address of an object, seen from the page; empty where there is none."""
    return f"{link}{quote(path, safe='/~')}" if path and link is not None else ""


def _plots(survey: Survey) -> list[dict[str, Any]]:
    wanted = (
        ("Length", "seconds", survey.lengths, "s"),
        ("Loudness", "LUFS, as delivered", survey.loudness, "LUFS"),
        ("Times real time", "length over engine time", survey.speeds, ""),
        ("Score", "of those kept", survey.scores, ""),
    )
    return [
        {"name": name, "more": f"{more} · {_middle(bins)}", "chart": histogram(bins, label=name, unit=unit)}
        for name, more, bins, unit in wanted
        if bins.count
    ]


def _middle(bins: Any) -> str:
    return f"median {bins.quantile(0.5):.3g}, 90% between {bins.quantile(0.05):.3g} and {bins.quantile(0.95):.3g}"


def _ranking(rows: Iterable[tuple[str, int]], more: dict[str, str] | None = None) -> list[dict[str, Any]]:
    rows = list(rows)
    most = max((count for _, count in rows), default=1)
    about = more or {}
    return [{"name": n, "count": c, "share": 100 * c / most, "more": about.get(n, "")} for n, c in rows]


def _examples(rules: Iterable[Rule]) -> dict[str, str]:
    return {rule.name: f"such as {rule.example}" for rule in rules}


def _kind(kind: Kind, cards: dict[str, str]) -> dict[str, Any]:
    row = kind.example
    place = f"row {row['row']:,} of {row['file']}" if row.get("row") is not None and row.get("file") else ""
    return {
        "error_class": kind.error_class,
        "count": kind.count,
        "id": row.get("id") or "(no id)",
        "place": place,
        "message": _short(row.get("message")),
        "prompt": _short(row.get("prompt")),
        "anchor": cards.get(row.get("path") or "", ""),
    }


def _short(text: Any, characters: int = 300) -> str:
    text = str(text or "")
    return text if len(text) <= characters else f"{text[:characters]}..."


def _languages_note(survey: Survey) -> str:
    if survey.languages_read is None:
        return ""
    return (
        f"Where the manifest names no language, it was read from the lyrics of {survey.languages_read:,} songs drawn "
        "by hash; the others are taken to be alike."
    )


def _sample_note(survey: Survey) -> str:
    also = ["the highest and the lowest score"] if survey.scores.count else []
    also += ["more than one attempt"] if survey.rerolled else []
    extremes = f"; then some with {' or with '.join(also)}" if also else ""
    return f"Drawn by a hash of their ids, from every language and length in turn{extremes}."


def _quarantine_note(troubles: Troubles, cards: list[Card]) -> str:
    what = "These failed the quality gate every time they were made. The audio is that of the last time."
    if len(cards) == troubles.quarantined:
        return f"{what} All {len(cards):,} can be heard here." if len(cards) > 1 else what
    return f"{what} {len(cards):,} of {troubles.quarantined:,} can be heard here, drawn by a hash of their ids."
