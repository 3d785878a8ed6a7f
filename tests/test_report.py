"""The report: what it counts, what it draws, and that a real browser shows it without a network."""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import zlib
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jobs.report import command
from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.errors import UnusableInputError
from pipelines.report import REPORT, ReportOptions, report_page, write_report
from pipelines.report.bins import MOST_BINS, Bins
from pipelines.report.charts import histogram, round_step
from pipelines.report.picks import Picks, Smallest
from pipelines.report.pictures import BANDS, COLUMNS, clipped_path, mel, spectrogram_png, waveform_path
from pipelines.report.players import LONGEST_SECONDS, SHORTEST_SECONDS, Excerpt
from pipelines.report.survey import Survey
from pipelines.report.throughput import throughput
from pipelines.report.troubles import rules_of
from pipelines.storage import Storage
from tests.browser import browser
from tests.report_catalog import HOSTILE, QUARANTINED_SECONDS, SAMPLE_RATE, SOUNDS, write_catalog

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)
SONGS = 24
NORMAL = ReportOptions(sample=5)
FEW = ReportOptions(sample=2)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A catalog with a bit of everything."""
    return write_catalog(str(tmp_path_factory.mktemp("report") / "night songs #1"), SONGS)


@pytest.fixture(scope="module")
def page(storage: Storage) -> str:
    return report_page(storage, NORMAL, now=NOW)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and all of its text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("style", "script"):
            self.text += f" {data}"

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=60),
    st.integers(1, 5),
    st.integers(-30, 10),
)
def test_bins_lose_nothing_and_do_not_grow(values: list[float], parts: int, power: int) -> None:
    bins = Bins(2.0**power)
    for part in np.array_split(np.array(values), parts):
        bins.add(part)
    finite = [value for value in values if math.isfinite(value)]
    occupied = list(bins.occupied())
    assert bins.count == len(finite) == sum(sums[0] for _, sums in occupied)
    assert len(occupied) <= MOST_BINS
    if finite:
        histogram(bins, label="anything")
        assert bins.lowest <= bins.quantile(0.5) <= bins.highest


def test_bins_keep_to_their_number_and_know_the_median() -> None:
    bins = Bins(1 / 1024, columns=2)
    values = np.random.default_rng(1).gamma(3, 50, 200_000)
    for part in np.array_split(values, 7):
        bins.add(part, np.stack([np.ones_like(part), part], axis=1))
    sums = np.array([sums for _, sums in bins.occupied()])
    assert len(sums) <= MOST_BINS
    assert sums.sum(axis=0) == pytest.approx([len(values), values.sum()])
    assert bins.quantile(0.5) == pytest.approx(np.median(values), abs=2 * bins.width)


@given(st.lists(st.integers(-5, 5), max_size=40), st.integers(0, 6))
def test_the_smallest_are_kept(ranks: list[int], count: int) -> None:
    smallest: Smallest[int] = Smallest(count)
    for place, rank in enumerate(ranks):
        smallest.offer(rank, place)
    wanted = sorted(range(len(ranks)), key=lambda place: (ranks[place], place))[:count]
    assert [place for _, place in smallest.ranked()] == wanted


@given(st.floats(1e-9, 1e9))
def test_steps_are_round(least: float) -> None:
    step = round_step(least)
    assert least * 0.999 <= step <= 2.51 * least
    assert f"{step:.0e}"[0] in "125"


def test_the_sample_is_the_same_in_any_order_and_has_every_group() -> None:
    ids = [f"song-{number}" for number in range(300)]
    groups = [("es" if number % 50 == 0 else "en", number % 3) for number in range(300)]

    def sample(order: list[int], seed: int = 0) -> set[str]:
        picks = Picks(12, seed)
        for some in np.array_split(order, 5):
            picks.offer(0, [ids[n] for n in some], ["f"] * len(some), [groups[n] for n in some])
        return {pick.id for pick in picks.chosen()}

    chosen = sample(list(range(300)))
    assert len(chosen) == 12
    assert chosen == sample(list(range(299, -1, -1)))
    assert chosen != sample(list(range(300)), seed=1)
    assert {groups[ids.index(id)] for id in chosen} == set(groups)


def pixels(png: bytes) -> np.ndarray:
    """The indices of one of our PNGs; every chunk's checksum is looked at."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        name, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size]) == (zlib.crc32(name + data),)
        chunks[name] = data
        place += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)[:, 1:]


@pytest.mark.parametrize("hz", [200.0, 1000.0, 8000.0])
def test_a_tone_is_bright_where_its_pitch_is(hz: float) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hz * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    picture = pixels(spectrogram_png(np.stack([tone, tone]).astype(np.float32), SAMPLE_RATE))
    assert picture.shape == (BANDS, COLUMNS)
    low, high = mel(30), mel(20_000)
    wanted = BANDS - (mel(hz) - low) / (high - low) * (BANDS + 1)
    assert np.abs(picture.argmax(axis=0) - wanted).max() <= 2


@pytest.mark.parametrize("length", [1, 399, 4096, 100_000])
def test_silence_of_any_length_is_a_line_and_black(length: int) -> None:
    silence = np.zeros((2, length), np.float32)
    assert pixels(spectrogram_png(silence, SAMPLE_RATE)).max() == 0
    points = re.findall(r"([\d.]+) (-?\d+)", waveform_path(silence[0]))
    assert {int(y) for _, y in points} == {0, 1}
    assert float(points[0][0]) == 0 and max(float(x) for x, _ in points) == COLUMNS
    assert clipped_path(silence) == ""


def test_the_waveform_shows_how_loud_and_where_it_clips() -> None:
    sound = np.zeros((2, COLUMNS * 100), np.float32)
    sound[0, 100:200], sound[1, 300:310] = -0.5, 1.0
    points = re.findall(r"([\d.]+) (-?\d+)", waveform_path(sound[0]))
    assert ("1", "25") in points and max(int(y) for _, y in points) == 26 and min(int(y) for _, y in points) == 0
    assert clipped_path(sound) == "M3 0h1"


@given(st.floats(-1e6, 1e9), st.integers(0, 5000))
def test_excerpts_keep_to_the_room_there_is(room: float, songs: int) -> None:
    excerpt, count = Excerpt.share(room, songs)
    assert SHORTEST_SECONDS <= excerpt.seconds <= LONGEST_SECONDS
    assert 0 <= count <= songs
    assert count == 0 or count * excerpt.page_bytes <= room * (1 + 1e-9)
    if count < songs:
        assert excerpt.seconds == SHORTEST_SECONDS and (count + 1) * excerpt.page_bytes > room


def test_the_page_says_what_the_catalog_holds(page: str) -> None:
    text = Elements(page).text
    for words in ("Songs 24 of 33 planned", "Failed 7", "In quarantine 3", "Rows refused 2", "Made again 4"):
        assert words in text
    for words in ("Random weights", "AI-generated", "6f1c0d2a9b3e4455", "English", "Japanese", "instrumental"):
        assert words in text
    for words in (
        "0.97 is not allowed",
        "after 3 attempts",
        "illegal memory access",
        "does not fit in",
        "lyrics_density",
    ):
        assert words in text
    assert "Cost 0.27 0.11 engine hours at 2.5" in text


def test_nothing_in_the_catalog_becomes_part_of_the_page(page: str) -> None:
    elements = Elements(page)
    assert HOSTILE in elements.text
    assert page.count("<script") == len(elements.of("script")) == 1
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert not {"iframe", "object", "embed", "form", "base"} & {tag for tag, _ in elements.found}


def test_the_page_needs_no_network(page: str) -> None:
    elements = Elements(page)
    sources = [
        attributes[name]
        for _, attributes in elements.found
        for name in ("src", "srcset", "poster")
        if name in attributes
    ]
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in next(meta["content"] for meta in elements.of("meta") if "http-equiv" in meta)


def test_links_lead_to_the_songs_and_nowhere_else(storage: Storage, page: str) -> None:
    links = [link["href"] for link in Elements(page).of("a")]
    files = [link for link in links if not link.startswith("#")]
    root = Path(storage.url)
    assert len(files) >= 10 and all((root / unquote(link)).is_file() for link in files)
    ids = {attributes.get("id") for _, attributes in Elements(page).found}
    assert {link[1:] for link in links if link.startswith("#")} <= ids


def test_every_quarantined_song_can_be_heard(page: str) -> None:
    players = {audio["aria-label"]: audio["src"] for audio in Elements(page).of("audio")}
    for problem in SOUNDS:
        data = base64.b64decode(players[f"Play bad-{problem}"].removeprefix("data:audio/mpeg;base64,"))
        samples, rate = sf.read(io.BytesIO(data), always_2d=True)
        assert len(samples) / rate == pytest.approx(QUARANTINED_SECONDS, abs=0.1)
        peaks = np.abs(samples).max(axis=0)
        if problem == "silence":
            assert peaks.max() < 1e-3
        if problem == "one-sided":
            assert peaks[0] > 10 * peaks[1]


def test_the_same_catalog_gives_the_same_page(storage: Storage) -> None:
    options = ReportOptions(sample=0, max_quarantined=2)
    assert report_page(storage, options, now=NOW) == report_page(storage, options, now=NOW)


def test_a_small_page_has_shorter_excerpts_and_lists_the_rest(storage: Storage) -> None:
    small = report_page(storage, ReportOptions(sample=3, max_megabytes=0.7))
    assert len(small) < 0.7e6
    heard = {each["aria-label"] for each in Elements(small).of("audio")}
    unheard = [problem for problem in SOUNDS if f"Play bad-{problem}" not in heard]
    assert heard and unheard and f"Plays {SHORTEST_SECONDS:.0f} s from" in small
    assert all(f"<li>bad-{problem} <code>quarantine/" in small for problem in unheard)
    none = report_page(storage, ReportOptions(sample=0, max_quarantined=0))
    assert not Elements(none).of("audio") and none.count("<li>bad-") == 3 and len(none) < 200_000


def test_audio_that_is_gone_or_foreign_is_said_to_be(tmp_path: Path) -> None:
    storage = write_catalog(str(tmp_path / "out"), 4)
    (tmp_path / "secret.flac").write_bytes((tmp_path / "out" / storage.keys("audio")[0]).read_bytes())
    table = Catalog(storage).songs()
    paths = ["audio/../../secret.flac", "javascript:alert(1)//.flac", None, "audio/00/gone.flac"]
    place = table.column_names.index("path")
    broken = table.set_column(place, "path", pa.array(paths, pa.string()))
    storage.delete(storage.keys(layout.SONGS))
    Catalog(storage).add_songs(0, "rows", broken)
    text = report_page(storage, FEW)
    assert text.count("is no audio of this catalog") == 2
    assert "its audio was not kept" in text and "is not there any more" in text
    assert "javascript:" not in "".join(link["href"] for link in Elements(text).of("a"))


def test_rows_of_older_versions_are_read(tmp_path: Path) -> None:
    storage = write_catalog(str(tmp_path / "out"), 4)
    for kind in (layout.SONGS, layout.FAILED):
        for key in storage.keys(kind):
            table = storage.read_table(key)
            newer = {"lufs", "score", "scorer", "attempt", "quality", "candidates", "evidence", "path"}
            dropped = newer - ({"path"} if kind == layout.SONGS else set())
            storage.write_table(key, table.drop_columns(sorted(dropped & set(table.column_names))))
    storage.delete([layout.RUN, layout.WARNINGS, *storage.keys(layout.RUNS)])
    text = Elements(report_page(storage, FEW)).text
    assert "Songs 4" in text and "Loudness" not in text.partition("A sample")[0] and "Quarantine" not in text


def test_where_nothing_was_made_the_failures_are_shown(tmp_path: Path) -> None:
    storage = write_catalog(str(tmp_path / "out"), 4)
    storage.delete([*storage.keys(layout.SONGS), *storage.keys(layout.RUNS)])
    text = report_page(storage, FEW)
    assert "Play bad-silence" in text and 'id="sample"' not in text


def test_charts_of_throughput_count_every_song(storage: Storage) -> None:
    survey = Survey.of(Catalog(storage), Picks(0))
    times = [(run.first, run.last) for run in survey.runs.values()]
    assert len(times) == 2
    charts = throughput(survey.timeline, times)
    assert charts is not None
    assert sum(map(int, re.findall(r"<title>[^<]*: (\d+) song", charts.songs))) == SONGS
    assert charts.songs.count('class="run"') == 2
    assert "left out" in charts.note


def test_rules_are_counted_in_new_tables_and_old_ones(tmp_path: Path) -> None:
    storage = write_catalog(str(tmp_path / "out"), 2)
    assert [(rule.name, rule.count) for rule in rules_of(storage, layout.REJECTS)] == [("settings", 2)]
    assert [(rule.name, rule.count) for rule in rules_of(storage, layout.WARNINGS)] == [
        ("lyrics_density", 6),
        ("prompt_length", 4),
    ]
    old = pa.table({"id": ["a", "b"], "reasons": [[{"field": "duration", "value": "1e9", "allowed": "less"}]] * 2})
    storage.write_table("plan/old.parquet", old)
    assert [(rule.name, rule.count) for rule in rules_of(storage, "plan/old.parquet")] == [("duration", 2)]
    assert rules_of(storage, "plan/none.parquet") == []


def test_no_catalog_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UnusableInputError, match="there is no catalog here"):
        write_report(Storage(str(tmp_path / "nothing")))
    result = CliRunner().invoke(command, [str(tmp_path / "nothing")])
    assert result.exit_code == 2 and "no catalog" in result.output
    assert not (tmp_path / "nothing").exists()


def test_the_command_writes_the_page(storage: Storage, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [storage.url, "--sample", "0", "--max-quarantined", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{storage.url}/{REPORT} (")
    target = tmp_path / "elsewhere.html"
    result = CliRunner().invoke(command, [storage.url, "--sample", "0", "--max-quarantined", "1", "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert f'href="{Path(storage.url).as_uri()}/quarantine/' in target.read_text(encoding="utf-8")


def test_a_catalog_in_s3_has_one_too(storage: Storage, moto: Any) -> None:
    remote = Storage(f"{moto.url}/report", moto.options)
    for key in storage.keys(""):
        remote.put(key, storage.get(key))
    write_report(remote, ReportOptions(sample=0, max_quarantined=1))
    assert b"Play bad-" in remote.get(REPORT)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(storage: Storage, page: str, tmp_path: Path, scheme: str) -> None:
    file = Path(storage.url) / REPORT
    file.write_text(page, encoding="utf-8")
    with browser() as chromium:
        for width in (1280, 375):
            tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(file.as_uri())
            assert tab.title() == "night songs #1"
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            pictures = tab.evaluate("[...document.images].map(image => [image.naturalWidth, image.clientHeight])")
            assert len(pictures) >= 10 and all(wide == COLUMNS and tall > 50 for wide, tall in pictures)
            waves = tab.evaluate("[...document.querySelectorAll('.wave path')].map(path => path.getBBox().width)")
            assert waves and all(wave > 0 for wave in waves)
            _check_player(tab)
            _check_filter(tab)
            shot = tab.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
            assert len(shot) > 100_000
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
            tab.close()


def _check_player(tab: Any) -> None:
    """A quarantined song has its length, and plays from where its picture is clicked."""
    figure = tab.locator("article:has(h3:text-is('bad-clipping')) .sound")
    audio = figure.locator("audio")
    audio.evaluate("audio => { audio.preload = 'metadata'; audio.load(); }")
    tab.wait_for_function("audio => audio.readyState >= 1", arg=audio.element_handle(), timeout=10_000)
    assert audio.evaluate("audio => audio.duration") == pytest.approx(QUARANTINED_SECONDS, abs=0.15)
    audio.evaluate("audio => { audio.muted = true; }")
    box = figure.locator(".pictures").bounding_box()
    figure.locator(".pictures").click(position={"x": box["width"] * 2 / 3, "y": 30})
    tab.wait_for_function(
        "audio => audio.currentTime > 4.5 && !audio.seeking", arg=audio.element_handle(), timeout=10_000
    )
    assert figure.locator(".needle").is_visible()
    audio.evaluate("audio => audio.pause()")


def _check_filter(tab: Any) -> None:
    """The table of failures shows what is asked for."""
    rows = tab.locator("#kinds tbody tr:visible")
    everything = rows.count()
    tab.fill("#filter", "ILLEGAL memory")
    assert rows.count() == 1 < everything
    tab.fill("#filter", "")
    assert rows.count() == everything
