"""The evaluation as a whole, of an engine that plays the synthesiser: a perfect model, and ones with known faults."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from acestep.evaluation.findings import Comparison, Share, agreement
from acestep.evaluation.page import Shown, draw, page, spectrogram, table, verdicts
from acestep.evaluation.prompts import held_out
from acestep.evaluation.report import FEW_STEPS, Plan, Report, evaluate
from acestep.evaluation.songs import Song, Studio, judged
from acestep.evaluation.task_checks import TaskChecks, plain_prompt
from acestep.frames import SAMPLE_RATE
from acestep.request import GenerationRequest
from acestep.synth import render
from tests.synth_maker import SynthMaker

PLAN = Plan(num_prompts=8, steps=6, duration=6.0, batch_size=3)


def by_name(shares: list[Share]) -> dict[str, Share]:
    return {share.name: share for share in shares}


def hasty_or_unguided(request: GenerationRequest) -> bool:
    return request.num_inference_steps <= FEW_STEPS or request.guidance_scale <= 1


@pytest.fixture(scope="module")
def songs() -> list[Song]:
    return []


@pytest.fixture(scope="module")
def report(songs: list[Song]) -> Report:
    steps = []
    made = evaluate(
        SynthMaker(deaf=hasty_or_unguided),
        PLAN,
        there_and_back=lambda waveform: 0.9 * waveform,
        on_song=lambda song, outcome: songs.append(song),
        advance=steps.append,
    )
    assert sum(steps) == PLAN.total_steps
    return made


def test_a_perfect_model_meets_every_goal(report: Report) -> None:
    assert report.met, table(report)
    shares = by_name(report.shares)
    assert all(shares[name].share >= 0.8 for name in ("tempo", "key", "instrument", "all three", "best key"))
    assert shares["same seed, same sha256"].share == shares["other seed, other song"].share == 1


def test_chance_is_told_and_is_lower(report: Report) -> None:
    for share in report.shares[:5]:
        assert share.by_chance is not None and share.by_chance < 0.5 < share.share


def test_settings_that_matter_are_seen_to(report: Report) -> None:
    guidance, steps = report.comparisons
    assert (guidance.name, guidance.less[0], guidance.more[0]) == ("guidance scale", 1.0, 15.0)
    assert (steps.name, steps.less[0], steps.more[0]) == ("steps", 4, 6)
    for found in report.comparisons:
        assert found.met and found.less[1]["instrument"] < found.more[1]["instrument"]


def test_the_codec_is_told_of(report: Report) -> None:
    assert report.round_trip is not None
    assert 0 < report.round_trip.log_mel_error < 0.2
    assert all(share.num == 8 and share.share >= 0.8 for share in report.round_trip.shares)


def test_the_speed_is_that_of_30_seconds(report: Report) -> None:
    assert report.speed is not None
    assert report.speed.audio_seconds == pytest.approx(30, abs=0.1) and report.speed.seconds > 0


def test_every_song_becomes_a_row_of_json(report: Report, songs: list[Song]) -> None:
    assert report.songs == songs
    rows = [json.loads(json.dumps(song.row())) for song in songs]
    assert [row["prompt"] for row in rows] == [item.prompt for item in held_out()[:8]]
    assert all(row["agrees"].keys() >= {"tempo", "key", "instrument", "key_share"} for row in rows)
    assert json.loads(json.dumps(report.row()))["met"] is True


def test_the_page_shows_songs_and_figures(report: Report) -> None:
    song = dataclasses.replace(report.songs[0], item=dataclasses.replace(report.songs[0].item, prompt="<b> & co"))
    waveform = render(song.item.piece, 2.0)
    shown = [Shown(song, waveform, "audio/000.mp3")]
    text = page(report, shown, "spectrograms.png", {"model": "synthesiser", "steps": 6})
    assert "&lt;b&gt; &amp; co" in text and "<b>" not in text
    assert 'src="audio/000.mp3"' in text and 'src="spectrograms.png"' in text
    assert "no song is another" in text and "guidance scale 1: tempo" in text
    assert "<img" not in page(report, shown, None, {"model": "synthesiser"})
    assert draw(shown)[:4] == b"\x89PNG"


def test_the_picture_has_tones_where_they_sound() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for hertz, row in ((50 * 320 ** (40 / 219), 40), (50 * 320 ** (200 / 219), 200)):
        picture = spectrogram(np.stack([np.sin(2 * np.pi * hertz * time)] * 2).astype(np.float32))
        assert abs(int(picture.mean(axis=1).argmax()) - row) <= 2
        assert picture[row].max() == pytest.approx(0, abs=3)


def test_songs_that_cannot_be_made_count_as_wrong() -> None:
    def broken(request: GenerationRequest, waveform: np.ndarray) -> np.ndarray:
        raise RuntimeError("no")

    studio = Studio(SynthMaker(spoil=broken), {"duration": 4.0, "num_inference_steps": 2})
    songs = studio.songs(held_out()[:2])
    assert {(share.num_good, share.num) for share in agreement(songs)} == {(0, 2)}
    assert songs[0].row()["failure"] == "no"
    assert verdicts(songs[0]) == [(False, "not made: no")]


def test_silence_and_copies_are_found() -> None:
    maker = SynthMaker(spoil=lambda request, waveform: np.zeros_like(waveform))
    report = evaluate(maker, dataclasses.replace(PLAN, num_prompts=2, duration=4.0, steps=2))
    shares = by_name(report.shares)
    assert not report.met
    for name in ("clean", "tempo", "key", "instrument", "other seed, other song"):
        assert shares[name].num_good == 0, name
    assert shares["no song is another's copy"].num_good == 1
    assert shares["same seed, same sha256"].num_good == 2
    assert [found.met for found in report.comparisons] == [False]


def test_a_model_that_is_not_repeatable_is_found_out() -> None:
    rng = np.random.default_rng(0)
    maker = SynthMaker(spoil=lambda request, waveform: waveform * np.float32(rng.uniform(0.5, 0.9)))
    report = evaluate(maker, dataclasses.replace(PLAN, num_prompts=2, duration=4.0, steps=2))
    assert by_name(report.shares)["same seed, same sha256"].num_good == 0


def test_songs_are_made_in_batches() -> None:
    maker = SynthMaker()
    Studio(maker, {"duration": 4.0}, batch_size=3).songs(held_out()[:4])
    assert maker.calls == [3, 1]


def task_checks(maker: SynthMaker, num_prompts: int) -> TaskChecks:
    studio = Studio(maker, {"duration": 10.0, "num_inference_steps": 2, "guidance_scale": 15.0})
    return TaskChecks(studio, held_out()[:num_prompts])


def test_tasks_done_well_meet_their_goals() -> None:
    shares = task_checks(SynthMaker(), 2).run()
    assert all(share.num == 2 for share in shares)
    assert [share for share in shares if share.num_good < 2] == []


def test_tasks_done_badly_do_not() -> None:
    def spoiled(request: GenerationRequest, waveform: np.ndarray) -> np.ndarray:
        if request.task == "text2music":
            return waveform
        noise = np.random.default_rng(request.seed).standard_normal(waveform.shape).astype(np.float32)
        return 0.1 * noise

    shares = by_name(task_checks(SynthMaker(spoil=spoiled), 2).run())
    for name in ("repaint keeps the rest", "repaint keeps the key", "extend keeps the source", "extend keeps the key"):
        assert shares[name].num_good == 0, name
    for name in ("edit follows the instrument", "repaint keeps the tempo", "audio2audio: stronger is closer"):
        assert shares[name].share <= 0.5, name


def test_nothing_changed_is_no_repaint() -> None:
    class Lazy(SynthMaker):
        def _play(self, request: GenerationRequest, source):  # type: ignore[no-untyped-def]
            return super()._play(request, source) if source is None else self._songs[int(source.latents.flatten()[0])]

    shares = by_name(task_checks(Lazy(), 2).repaint())
    assert shares["repaint changes its span"].num_good == 0 < shares["repaint keeps the rest"].num_good


def test_plain_prompts_say_what_is_judged() -> None:
    piece = held_out()[0].piece
    assert plain_prompt(piece).startswith(f"{piece.instrument}, {piece.key}, {piece.tempo} bpm")


def test_shares_know_how_sure_they_are() -> None:
    low, high = Share("x", 80, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.711, 0.867)
    assert Share("x", 0, 0).interval == (0.0, 1.0)
    assert Share("x", 8, 10, 0.8).met is True and Share("x", 7, 10, 0.8).met is False
    assert Share("x", 0, 0, 0.8).met is False and Share("x", 1, 2).met is None


@pytest.mark.parametrize(
    ("less", "more", "met"), [(0.2, 0.5, True), (0.5, 0.2, False), (0.5, 0.5, False), (1, 1, True)]
)
def test_more_is_better_or_as_good_at_the_top(less: float, more: float, met: bool) -> None:
    sides = [(value, dict.fromkeys(("tempo", "key", "instrument"), value)) for value in (less, more)]
    assert Comparison("x", sides[0], sides[1]).met is met


def test_a_failure_is_judged_without_sound() -> None:
    item = held_out()[0]
    from acestep.result import GenerationFailure

    request = GenerationRequest(prompt=item.prompt, duration=4)
    song = judged(item, request, GenerationFailure(request=request, error_class="quality", message="not finite"))
    assert song.heard is None and not song.verdict.tempo and song.failure == "not finite"
