"""The page for making songs, in a real browser: what a person does there, and what it sends."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from serve.page import CONTENT_SECURITY_POLICY, NAMES, asset
from tests.browser import browser

ROOT = Path(__file__).parents[1]
LATENT_FRAME = 4096 / 44_100
PATIENCE_MS = 30_000
GONE = "job-20200101T000000000000-00000000"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@contextmanager
def opened(chromium: Any, server_url: str, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
    """The page in a browser of its own, which at the end asked nobody but its server, and complained of nothing.

    Args:
        expected: parts of messages that the console may show, such as the status of a refused request.
    """
    context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server_url)
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(server_url)
    until(tab, "!document.querySelector('#model').textContent.startsWith('Words')")
    yield tab
    assert [url for url in asked if not url.startswith((f"{server_url}/", f"blob:{server_url}/"))] == []
    assert [text for text in said if not any(part in text for part in expected)] == []
    context.close()


def until(tab: Any, expression: str, arg: Any = None) -> None:
    """Wait for JavaScript to be true; Playwright's own way needs an eval, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not tab.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"never true: {expression}"
        tab.wait_for_timeout(50)


def make_song(tab: Any, prompt: str = "calm piano", duration: float = 4, **fields: Any) -> Any:
    """Ask for a song in the form, and wait for its card."""
    before = tab.locator("article.song").count()
    tab.fill("#prompt", prompt)
    for name, value in {"duration": duration, **fields}.items():
        tab.fill(f"#composer [name={name}]", str(value))
    tab.click("#generate")
    until(tab, "count => document.querySelectorAll('article.song').length > count", before)
    return tab.locator("article.song").first


def posted(tab: Any, act: Any) -> dict[str, Any]:
    """The body of the job that `act()` asks for; the server took it."""
    with tab.expect_response(lambda answer: answer.request.method == "POST") as caught:
        act()
    assert caught.value.status == 202, caught.value.text()
    return json.loads(caught.value.request.post_data)


def wait_for_waveform(song: Any) -> None:
    song.locator(".stage-note").wait_for(state="hidden")


def drag(tab: Any, stage: Any, start: float, end: float) -> None:
    """Drag over the picture, from one share of its width to another."""
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * start, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * (start + end) / 2, box["y"] + 10, steps=3)
    tab.mouse.move(box["x"] + box["width"] * end, box["y"] + 10, steps=3)
    tab.mouse.up()


def copied(tab: Any, button: Any) -> str:
    handle = button.element_handle()
    handle.click()
    until(tab, "button => button.textContent === 'Copied'", handle)
    return tab.evaluate("navigator.clipboard.readText()")


def run_python(code: str, folder: Path) -> None:
    """Run a copied program, as somebody else would: in a process and a folder of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=60)


# The files


def test_files_are_small_packaged_and_name_only_each_other() -> None:
    tables = re.search(r'"serve\.page" = (\[.*\])', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tables, "pyproject.toml packages the page"
    for name in NAMES:
        data, media_type = asset(name)
        text = data.decode()
        assert media_type and len(text.splitlines()) <= 300, name
        assert any(fnmatch(name, pattern) for pattern in ast.literal_eval(tables[1])), name
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(NAMES), name
        assert set(re.findall(r'(?:src|href)="page/([^"]+)"', text)) <= set(NAMES), name
        assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in text and " style=" not in text and not re.search(r"\son[a-z]+=", text), name
    assert {"index.html", "main.js", "page.css"} <= set(NAMES)


@pytest.mark.parametrize("name", ["", ".", "__init__.py", "../__init__.py", "..%2fapi.py", "/etc/passwd", "main.js/"])
def test_no_path_leads_elsewhere(name: str) -> None:
    with pytest.raises(KeyError):
        asset(name)


# Making songs


@pytest.mark.browser
def test_a_song_is_made_and_plays(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        tab.fill("#prompt", "soft piano")
        tab.get_by_role("button", name="jazz", exact=True).click()
        tab.fill("#tag", "rainy evening")
        tab.press("#tag", "Enter")
        assert tab.input_value("#prompt") == "soft piano, jazz, rainy evening"
        tab.get_by_role("button", name="jazz", exact=True).click()
        assert tab.input_value("#prompt") == "soft piano, rainy evening"
        tab.get_by_role("button", name="Insert verse").click()
        tab.keyboard.type("Slow rain")
        tab.get_by_role("button", name="Insert chorus", exact=True).click()
        assert tab.input_value("#lyrics") == "[verse]\nSlow rain\n\n[chorus]\n"
        tab.fill("#duration", "4")
        assert tab.input_value("#duration-slider") == "4"
        tab.click("#dice")
        seed = int(tab.input_value("#seed"))

        body = posted(tab, lambda: tab.press("#prompt", "Control+Enter"))
        lyrics = "[verse]\nSlow rain\n\n[chorus]\n"
        assert body == {"prompt": "soft piano, rainy evening", "lyrics": lyrics, "duration": 4, "seed": seed}

        song = tab.locator("article.song")
        song.wait_for()
        made = int(4 / LATENT_FRAME) * LATENT_FRAME
        assert f"{round(made, 2):g} s" in song.locator(".facts").inner_text()
        assert f"seed {seed}" in song.locator(".facts").inner_text()
        assert song.locator(".time").inner_text() == "0:00 / 0:04"
        wait_for_waveform(song)
        inked = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
        assert song.locator("canvas").evaluate(inked)
        assert set(song.locator(".downloads a").all_inner_texts()) == {"wav", "flac", "mp3", "ogg", "opus"}

        song.get_by_role("button", name=re.compile("^Play")).click()
        until(tab, "document.querySelector('.time').textContent.startsWith('0:01')")
        song.get_by_role("button", name=re.compile("^Pause")).click()
        box = song.locator(".stage").bounding_box()
        song.locator(".stage").click(position={"x": box["width"] * 0.75, "y": 20})
        until(tab, "document.querySelector('.time').textContent.startsWith('0:03')")
        song.get_by_role("slider", name="Position").press("Home")
        until(tab, "document.querySelector('.time').textContent.startsWith('0:00')")


@pytest.mark.browser
def test_a_job_shows_its_progress_and_can_be_cancelled(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        tab.fill("#prompt", "calm crawl:1.5")
        tab.click("#generate")
        row = tab.locator("#queue li")
        until(tab, "Number(document.querySelector('#queue [role=progressbar]')?.ariaValueNow) > 0")
        assert re.search(r"Step \d+ of \d+", row.inner_text())
        tab.reload()
        row.wait_for()
        row.get_by_role("button", name="Cancel").click()
        row.wait_for(state="detached")
        ending = tab.locator("article.ending")
        assert "Cancelled" in ending.inner_text()
        ending.get_by_role("button", name="Remove").click()
        assert tab.locator("#empty").is_visible()


@pytest.mark.browser
def test_a_download_has_the_format_that_was_asked_for(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        song = make_song(tab, duration=2)
        with tab.expect_download() as caught:
            song.get_by_role("link", name="Download as mp3").click()
        assert caught.value.suggested_filename.endswith(".mp3")
        assert Path(caught.value.path()).stat().st_size > 1000


# What is made of a song


@pytest.mark.browser
def test_a_span_is_chosen_by_dragging_and_made_anew(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        song = make_song(tab, seed=7)
        job = tab.locator("#history li").first.get_attribute("data-job")
        wait_for_waveform(song)
        drag(tab, song.locator(".stage"), 0.25, 0.5)
        length = int(4 / LATENT_FRAME) * LATENT_FRAME
        start, end = song.locator("[name=repaint_start]"), song.locator("[name=repaint_end]")
        assert float(start.input_value()) == pytest.approx(length / 4, abs=0.05)
        assert float(end.input_value()) == pytest.approx(length / 2, abs=0.05)

        handle = song.get_by_role("slider", name="End of the span")
        handle.press("ArrowRight")
        assert float(end.input_value()) == pytest.approx(length / 2 + 0.1, abs=0.05)
        start.fill("0.5")
        left = song.locator(".span").evaluate("span => parseFloat(span.style.left)")
        assert left == pytest.approx(0.5 / length * 100, abs=0.1)

        wanted = float(end.input_value())
        body = posted(tab, lambda: song.get_by_role("button", name="Repaint this span").click())
        assert body["task"] == "repaint" and body["source"] == f"job:{job}"
        assert (body["repaint_start"], body["repaint_end"]) == (0.5, wanted)
        assert body["seed"] == 7 and body["prompt"] == "calm piano" and "variation_seed" in body


@pytest.mark.browser
def test_songs_are_varied_extended_edited_and_made_again(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        song = make_song(tab, seed=7, num_inference_steps=5)
        card = tab.locator(f"[data-job={tab.locator('#history li').first.get_attribute('data-job')}] article.song")

        def press(name: str) -> None:
            card.get_by_role("button", name=name, exact=True).click()

        again = posted(tab, lambda: press("Another seed"))
        assert again.pop("seed") != 7
        assert again == {"prompt": "calm piano", "duration": 4, "num_inference_steps": 5}

        press("Vary")
        song = card
        song.locator("[name=variance]:visible").fill("0.2")
        varied = posted(tab, lambda: press("Make a variation"))
        assert (varied["task"], varied["seed"], varied["variance"]) == ("retake", 7, 0.2)

        press("Extend")
        song.locator("[name=extend_left]").fill("1.5")
        extended = posted(tab, lambda: press("Extend the song"))
        assert (extended["task"], extended["extend_left"], extended["extend_right"]) == ("extend", 1.5, 10)

        press("Edit")
        song.locator("[name=target_lyrics]").fill("[verse]\nother words")
        edited = posted(tab, lambda: press("Sing and play it otherwise"))
        assert edited["task"] == "edit" and edited["target_lyrics"] == "[verse]\nother words"
        assert "target_prompt" not in edited


@pytest.mark.browser
def test_a_song_begins_with_audio_of_ones_own(chromium: Any, server_url: str, tmp_path: Path) -> None:
    file = tmp_path / "hum.wav"
    soundfile.write(file, 0.3 * np.sin(np.arange(2 * 44_100) / 20), 44_100)
    with opened(chromium, server_url, expected=("422",)) as tab:
        tab.fill("#prompt", "calm piano")
        tab.click("#more summary")
        tab.locator("[name=source]").set_input_files(file)
        tab.get_by_text("hum.wav, 2 s").wait_for()
        tab.fill("[name=reference_strength]", "0.8")
        body = posted(tab, lambda: tab.click("#generate"))
        assert (body["task"], body["reference_strength"]) == ("audio2audio", 0.8)
        assert body["source"].startswith("upload:")

        other = tmp_path / "noted.wav"
        other.write_text("no sound")
        tab.locator("[name=source]").set_input_files(other)
        until(tab, "document.querySelector('[name=source]').ariaInvalid === 'true'")


# What goes wrong


@pytest.mark.browser
def test_an_error_stands_beside_its_field(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("422",)) as tab:
        tab.fill("#prompt", "calm piano")
        tab.fill("#duration", "500")
        tab.click("#more summary")
        tab.fill("[name=guidance_scale]", "1000")
        tab.click("#more summary")
        tab.click("#generate")
        for name in ("duration", "guidance_scale"):
            control = tab.locator(f"#composer [name={name}]")
            until(tab, "control => control.ariaInvalid === 'true'", control.element_handle())
            assert control.is_visible()
            described = control.get_attribute("aria-describedby").split()[0]
            assert "is not allowed" in tab.locator(f"[id='{described}']").inner_text()
        assert tab.evaluate("document.activeElement.name") == "duration"
        assert tab.locator("#form-alert").is_hidden()
        tab.fill("#duration", "4")
        assert tab.locator("#duration").get_attribute("aria-invalid") is None


@pytest.mark.browser
def test_a_failed_job_says_why(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        tab.fill("#prompt", "calm refuse")
        tab.click("#generate")
        ending = tab.locator("article.ending.failed")
        ending.wait_for()
        assert ending.locator(".message").inner_text().strip()
        ending.get_by_role("button", name="Use settings").click()
        assert tab.input_value("#prompt") == "calm refuse"


@pytest.mark.browser
def test_a_busy_server_says_when_to_come_back(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("429",)) as tab:
        error = {"message": "as much is waiting as this server takes", "type": "rate_limit_error", "code": "queue_full"}
        headers = {"Retry-After": "7", "Content-Type": "application/json"}
        tab.route(
            "**/v1/audio/jobs",
            lambda route: route.fulfill(status=429, headers=headers, body=json.dumps({"error": error})),
        )
        tab.fill("#prompt", "calm piano")
        tab.click("#generate")
        until(tab, "document.querySelector('#form-alert').textContent.includes('Try again in')")
        assert re.search(r"Try again in [67] s", tab.locator("#form-alert").inner_text())


@pytest.mark.browser
def test_a_warming_server_and_random_weights_are_said(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("503",)) as tab:
        assert "noise, not music" in tab.locator("#banners").inner_text()
        body = json.dumps({"error": {"message": "the model is being loaded", "code": "warming_up"}})
        tab.route("**/ready", lambda route: route.fulfill(status=503, content_type="application/json", body=body))
        tab.reload()
        tab.get_by_text("The model is warming up").wait_for()
        tab.unroute("**/ready")
        tab.get_by_text("The model is warming up").wait_for(state="detached")


@pytest.mark.browser
def test_a_lost_stream_is_made_up_for_by_asking(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("ERR_FAILED",)) as tab:
        tab.route("**/events", lambda route: route.abort())
        assert make_song(tab, duration=2).is_visible()


# What the browser keeps


@pytest.mark.browser
def test_the_history_outlives_a_reload(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("404",)) as tab:
        make_song(tab, prompt="first song", duration=2)
        make_song(tab, prompt="second song", duration=2)
        entries = "entries => localStorage.setItem('acestep.history', JSON.stringify(entries))"
        known = tab.evaluate("JSON.parse(localStorage.getItem('acestep.history'))")
        tab.evaluate(entries, [*known, {"id": GONE, "request": {"prompt": "old song", "seed": 3}}])
        tab.reload()
        tab.locator("article.ending").wait_for()
        until(tab, "document.querySelectorAll('article.song').length === 3")
        assert tab.locator("article.song h3").all_inner_texts() == ["second song", "first song", "old song"]
        gone = tab.locator("article.ending")
        assert "No longer on the server" in gone.inner_text()
        gone.get_by_role("button", name="Remove").click()
        tab.once("dialog", lambda dialog: dialog.accept())
        tab.locator("article.song").first.get_by_role("button", name="Delete").click()
        until(tab, "document.querySelectorAll('article.song').length === 1")
        tab.once("dialog", lambda dialog: dialog.accept())
        tab.click("#clear-history")
        assert tab.locator("#empty").is_visible()
        assert tab.input_value("#prompt") == "second song", "what is in the form stays"


@pytest.mark.browser
def test_a_key_goes_with_every_request(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        tab.click("#settings summary")
        tab.fill("#api-key", "secret-key")
        tab.press("#api-key", "Enter")
        asked: list[Any] = []
        tab.on("request", lambda request: asked.append(request))
        song = make_song(tab, duration=2)
        song.get_by_role("button", name=re.compile("^Play")).click()
        until(tab, "document.querySelector('.time').textContent.startsWith('0:01')")
        calls = [request for request in asked if "/v1/" in request.url]
        assert {request.all_headers().get("authorization") for request in calls} == {"Bearer secret-key"}
        assert not [request.url for request in calls if request.resource_type == "media"]
        command = copied(tab, song.get_by_role("button", name="Copy as curl"))
        assert "secret-key" not in command and "$ACESTEP_API_KEY" in command
        tab.reload()
        assert tab.input_value("#api-key") == "secret-key"


@pytest.mark.browser
def test_a_server_with_keys_asks_for_one(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url, expected=("401",)) as tab:
        error = {"message": "no such key", "type": "authentication_error", "code": "invalid_api_key"}
        answer = json.dumps({"error": error})
        tab.route("**/v1/models", lambda route: route.fulfill(status=401, content_type="application/json", body=answer))
        tab.reload()
        until(tab, "document.querySelector('#api-key').ariaInvalid === 'true'")
        assert tab.locator("#settings .error").inner_text() == "No such key."


# Taking it elsewhere


@pytest.mark.browser
def test_a_song_can_be_copied_as_a_command(chromium: Any, server_url: str, tmp_path: Path) -> None:
    with opened(chromium, server_url) as tab:
        prompt = 'it\'s "calm" piano, $HOME `x`'
        song = make_song(tab, prompt=prompt, duration=2, seed=7)
        command = copied(tab, song.get_by_role("button", name="Copy as curl"))
        words = shlex.split(command)
        request = {"prompt": prompt, "duration": 2, "seed": 7}
        assert words[:2] == ["curl", f"{server_url}/v1/audio/generations"]
        assert json.loads(words[words.index("-d") + 1]) == request
        if shutil.which("curl"):
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
            assert (tmp_path / "song.flac").read_bytes()[:4] == b"fLaC"

        (tmp_path / "song.flac").unlink(missing_ok=True)
        code = copied(tab, song.get_by_role("button", name="Copy as Python"))
        run_python(code, tmp_path)
        assert (tmp_path / "song.flac").read_bytes()[:4] == b"fLaC"
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        assert {each.arg: ast.literal_eval(each.value) for call in calls for each in call.keywords} == request

        tab.fill("#prompt", "another")
        tab.fill("#n", "2")
        words = shlex.split(copied(tab, tab.locator("#copy-curl")))
        assert json.loads(words[words.index("-d") + 1]) == {"prompt": "another", "duration": 2, "seed": 7, "n": 2}
        assert "-o" not in words, "several songs are answered as JSON"
        run_python(copied(tab, tab.locator("#copy-python")), tmp_path)
        assert (tmp_path / "song-1.flac").is_file() and (tmp_path / "song-2.flac").is_file()


# How it looks


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_fits(chromium: Any, server_url: str, tmp_path: Path, scheme: str, width: int) -> None:
    size = {"width": width, "height": 800}
    with opened(chromium, server_url, viewport=size, color_scheme=scheme, device_scale_factor=2) as tab:
        longest = "averylongwordwithoutanyspaceinit" * 4
        song = make_song(tab, prompt=f"calm piano, {longest}", duration=2)
        tab.evaluate("document.querySelectorAll('details:not(#settings)').forEach(fold => (fold.open = true))")
        for panel in ("Vary", "Extend", "Edit", "Repaint"):
            song.get_by_role("button", name=panel, exact=True).click()
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, panel
        wait_for_waveform(song)
        canvas = song.locator("canvas")
        assert canvas.evaluate("canvas => canvas.width / canvas.clientWidth") == pytest.approx(2, abs=0.05)
        dark = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).every(part => part < 90)"
        assert tab.evaluate(dark) == (scheme == "dark")
        tab.click("#theme")
        assert tab.evaluate(dark) == (scheme == "light")
        tab.reload()
        assert tab.evaluate(dark) == (scheme == "light"), "the choice stays"
        tab.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)


@pytest.mark.browser
def test_it_needs_nothing_inline(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        answer = tab.goto(server_url)
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.browser
def test_a_spectrogram_shows_a_tone_at_its_pitch(chromium: Any, server_url: str) -> None:
    with opened(chromium, server_url) as tab:
        loudest = tab.evaluate(
            """async () => {
                const { spectrogramOf } = await import("/page/spectrogram.js");
                const [rate, rows] = [44100, 300];
                const tone = (hertz) =>
                    Float32Array.from({ length: rate }, (_, at) => Math.sin(2 * Math.PI * hertz * at / rate));
                return [220, 1000, 8000].map((hertz) => {
                    const column = [...spectrogramOf(tone(hertz), rate, 10, rows).slice(4 * rows, 5 * rows)];
                    const row = column.indexOf(Math.max(...column));
                    return 40 * (20000 / 40) ** (1 - (row + 0.5) / rows);
                });
            }"""
        )
        assert loudest == [pytest.approx(hertz, rel=0.06) for hertz in (220, 1000, 8000)]
        song = make_song(tab, duration=2)
        wait_for_waveform(song)
        song.get_by_role("button", name="Spectrogram").click()
        song.locator(".stage.tall").wait_for()
        colours = song.locator("canvas").evaluate(
            "canvas => new Set(new Uint32Array(canvas.getContext('2d')"
            ".getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
        )
        assert colours > 30
