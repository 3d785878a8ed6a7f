"""The lyric tokenizer, with a vocabulary made here; the published one where `ACESTEP_LYRIC_VOCAB` names it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from acestep.errors import ACEStepError, CheckpointError, InvalidRequestError
from acestep.lyrics import LyricTokenizer, packages
from acestep.lyrics.tags import TAGS, normalize_tag, normalized_lines
from acestep.request import LANGUAGES
from tests.golden_cases.lyrics import check_lyrics, check_songs

DATA = Path(__file__).parent / "golden_data"
VERSES = json.loads((DATA / "lyric_verses.json").read_text(encoding="utf-8"))
SPECIAL = ("[STOP]", "[UNK]", "[SPACE]", "[START]", "[en]")
LANGUAGE_TOKENS = tuple("[zh-cn]" if code == "zh" else f"[{code}]" for code in LANGUAGES if code != "en")


def make_vocabulary(path: Path, special: tuple[str, ...]) -> Path:
    """A vocabulary of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!?'()-"
    ids = {token: index for index, token in enumerate((*special, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.json", SPECIAL + LANGUAGE_TOKENS + TAGS)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> LyricTokenizer:
    return LyricTokenizer(vocabulary)


@pytest.fixture(scope="module")
def names(vocabulary: Path) -> dict[int, str]:
    return {index: token for token, index in Tokenizer.from_file(str(vocabulary)).get_vocab().items()}


def test_a_line_is_its_language_then_its_text_then_a_newline(tokenizer, names):
    encoded = tokenizer.encode("[Verse]\nHi you\n\nOh", language="de")
    assert [names[id_] for id_ in encoded.ids] == [
        *("[START]", "[en]", "[verse]", "[SPACE]"),
        *("[de]", "h", "i", "[SPACE]", "y", "o", "u", "[SPACE]"),
        *("[SPACE]", "[de]", "o", "h", "[SPACE]"),
    ]
    assert encoded.languages == ("en", "de", "", "de")
    assert encoded.mask == (1,) * len(encoded.ids)
    assert encoded.warnings == ()
    assert not encoded.is_instrumental


@pytest.mark.parametrize("nothing", ["", None, " ", "\n\n\t\n", "\u200b\ufeff", "\r\n"])
def test_no_lyrics_is_one_masked_id(tokenizer, nothing):
    encoded = tokenizer.encode(nothing)
    assert (encoded.ids, encoded.mask, encoded.is_instrumental) == ((0,), (0,), True)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\u2028", "\f"])
def test_every_kind_of_line_end_ends_a_line(tokenizer, line_end):
    assert tokenizer.encode(f"one{line_end}{line_end}two").ids == tokenizer.encode("one\n\ntwo").ids


def test_a_language_token_in_the_lyrics_is_not_one(tokenizer, names):
    tokens = [names[id_] for id_ in tokenizer.encode("say [JA] or [en] or [verse]", "en").ids]
    assert tokens.count("[en]") == 1
    assert "[ja]" not in tokens
    assert "[verse]" in tokens


def test_the_limit_is_named_with_the_count(tokenizer):
    assert len(tokenizer.encode("a" * 4093, "en").ids) == 4096
    with pytest.raises(InvalidRequestError, match=r"4,097 tokens, the limit is 4,096") as caught:
        tokenizer.encode("a" * 4094, "en")
    assert caught.value.problems[0].field == "lyrics"


def test_an_unknown_language_is_a_problem_with_a_hint(tokenizer):
    with pytest.raises(InvalidRequestError, match="did you mean 'per-line'"):
        tokenizer.encode("hello", "perline")


def test_unsung_scripts_are_reported_with_their_share(tokenizer):
    encoded = tokenizer.encode("abcde\nฉันรักเธอ", "auto")
    assert 0 < encoded.unknown_share < 1
    assert any("Thai, which the model does not sing" in warning for warning in encoded.warnings)
    assert len(encoded.languages) == 2


def test_emoji_are_kept_as_unknown_tokens(tokenizer, names):
    encoded = tokenizer.encode("hey 🎵", "en")
    assert [names[id_] for id_ in encoded.ids[-3:]] == ["[SPACE]", "[UNK]", "[SPACE]"]
    assert encoded.unknown_share == pytest.approx(1 / 5)
    assert any("🎵" in warning for warning in encoded.warnings)


def test_tags_the_model_was_not_taught_are_reported_and_can_be_normalized(tokenizer):
    encoded = tokenizer.encode("[Verse 1]\nla", "en")
    assert any("[Verse 1]" in warning for warning in encoded.warnings)
    assert encoded.unknown_share == 0
    normal = tokenizer.encode("[Verse 1]\nla", "en", normalize_tags=True)
    assert normal.ids == tokenizer.encode("[verse]\nla", "en").ids
    assert normal.warnings == ()


@pytest.mark.parametrize(
    ("line", "normal"),
    [
        ("[Verse 2]", "[verse]"),
        ("[VERSE2: quiet]", "[verse]"),
        ("[Pre Chorus]", "[pre-chorus]"),
        ("[Chorus x2] again", "[chorus] again"),
        ("[instrumental]", "[inst]"),
        ("[guitar solo]", "[solo]"),
        ("[Intro]", "[Intro]"),
        ("[whatever]", "[whatever]"),
        ("[tender]", "[tender]"),
        ("no tag [Verse 2]", "no tag [Verse 2]"),
    ],
)
def test_normalized_tags(line, normal):
    assert normalize_tag(line) == normal


def test_text_behind_a_tag_in_another_script_is_reported(tokenizer):
    assert any("line of its own" in warning for warning in tokenizer.encode("[verse] 我爱你").warnings)
    assert not any("line of its own" in warning for warning in tokenizer.encode("[verse] hello").warnings)


def test_a_small_vocabulary_marks_other_languages_as_english(tmp_path):
    small = LyricTokenizer(make_vocabulary(tmp_path / "vocab.json", SPECIAL))
    encoded = small.encode("Guten Tag", "de")
    assert small.languages == ("en",)
    assert encoded.ids == small.encode("guten tag", "en").ids
    assert any("no token for de" in warning for warning in encoded.warnings)


@pytest.mark.parametrize("missing", ["[START]", "[SPACE]", "[UNK]", "[en]"])
def test_a_vocabulary_must_have_the_special_tokens(tmp_path, missing):
    path = make_vocabulary(tmp_path / "vocab.json", tuple(token for token in SPECIAL if token != missing))
    with pytest.raises((CheckpointError, ValueError), match=r"\[|unk"):
        LyricTokenizer(path)


def test_a_file_that_is_no_vocabulary_is_a_checkpoint_error(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    for path in (tmp_path / "vocab.json", tmp_path / "absent.json"):
        with pytest.raises(CheckpointError, match="not a lyric vocabulary"):
            LyricTokenizer(path)


def test_it_travels_between_processes(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("Hello 5", "en") == tokenizer.encode("Hello 5", "en")


def test_threads_agree_with_one_thread(vocabulary):
    lyrics = [
        "\n".join(f"{line} {number}" for line in verse)
        for number, verses in enumerate(VERSES.values())
        for verse in verses
    ]
    alone = [LyricTokenizer(vocabulary).encode(text) for text in lyrics]
    shared = LyricTokenizer(vocabulary)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(shared.encode, lyrics * 4))
    assert together == alone * 4


@pytest.fixture
def _nothing_installed(monkeypatch):
    def missing(name: str, purpose: str):
        raise packages.MissingPackageError(f"{purpose} needs {name}: {packages.INSTALL_HINT}")

    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    monkeypatch.setattr(packages, "load", missing)


@pytest.mark.usefixtures("_nothing_installed")
def test_without_the_extra_english_still_works_and_says_what_is_missing(vocabulary):
    encoded = LyricTokenizer(vocabulary).encode("Meet me at 5\nor at 6")
    assert encoded.languages == ("en", "en")
    assert len([warning for warning in encoded.warnings if "py3langid" in warning]) == 1
    assert len([warning for warning in encoded.warnings if "num2words" in warning]) == 1
    assert all('pip install "acestep-ray[lyrics]"' in warning for warning in encoded.warnings)
    assert LyricTokenizer(vocabulary).encode("Hello", "fr").warnings == ()


@pytest.mark.usefixtures("_nothing_installed")
@pytest.mark.parametrize("language", ["zh", "ko", "ja"])
def test_without_the_extra_other_scripts_say_what_to_install(vocabulary, language, monkeypatch):
    from acestep.lyrics import romaji

    monkeypatch.setattr(romaji, "_cutlet", romaji._cutlet.__wrapped__)
    monkeypatch.setattr(romaji, "_transliter", romaji._transliter.__wrapped__)
    with pytest.raises(ACEStepError, match=r"pip install .acestep-ray\[lyrics\]."):
        LyricTokenizer(vocabulary).encode("夜の街 사랑", language)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(codec=None), max_size=80) | st.text("0123456789.,$£€%/:-年月 aé我のव[]\n", max_size=40),
    language=st.sampled_from(("auto", "per-line", *LANGUAGES)),
)
def test_no_text_breaks_it_and_no_line_is_lost(tokenizer, text, language):
    encoded = tokenizer.encode(text, language)
    if not encoded.is_instrumental:
        assert encoded.ids[-1] == tokenizer.newline
        num_lines = len(encoded.languages)
        assert encoded.ids.count(tokenizer.newline) >= num_lines
        assert num_lines == 1 + sum(text.replace("\r\n", "\n").count(end) for end in "\n\r\v\f\x85\u2028\u2029")
        assert 0 <= encoded.unknown_share <= 1


@pytest.mark.parametrize("language", ["en", "zh", "de", "ru"])
@pytest.mark.parametrize(
    "text", ["1" * 4000, "1," * 2000, "$" * 4000, "1.1" * 1500, "[" * 4000, "[en]" * 1000, "年5" * 99]
)
def test_hostile_lines_end_soon(tokenizer, text, language):
    started = time.monotonic()
    with contextlib.suppress(InvalidRequestError):
        assert tokenizer.encode(text, language).ids
    assert time.monotonic() - started < 20


def published_vocabulary() -> str:
    path = os.environ.get("ACESTEP_LYRIC_VOCAB")
    if not path:
        pytest.skip("ACESTEP_LYRIC_VOCAB does not name the published lyric vocabulary")
    return path


def golden_lyrics() -> str:
    path = os.environ.get("ACESTEP_GOLDEN_LYRICS")
    if not path:
        pytest.skip("ACESTEP_GOLDEN_LYRICS does not name a file of golden lyrics")
    return path


@pytest.mark.parametrize("check", [check_lyrics, check_songs])
def test_golden_ids(check):
    num_equal, num_lines, different = check(golden_lyrics(), published_vocabulary())
    assert num_equal == num_lines, different


def test_the_published_vocabulary_knows_every_tag_and_language():
    published = LyricTokenizer(published_vocabulary())
    assert published.languages == LANGUAGES
    assert published.encode("[verse]").ids == (261, 259, 6683, 2)
    for tag in TAGS:
        assert len(published.encode_line(tag, "en").ids) == 2


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("[Verse 2] Hello", ["[verse]", "Hello"]),
        ("[verse] \u6211\u7231\u4f60", ["[verse]", "\u6211\u7231\u4f60"]),
        ("[Chorus x2]", ["[chorus]"]),
        ("(Bridge)", ["[bridge]"]),
        ("(Chorus x2)", ["[chorus]"]),
        ("(Instrumental)", ["[inst]"]),
        ("(the end of all)", ["(the end of all)"]),
        ("(ooh, break my heart)", ["(ooh, break my heart)"]),
        ("[guitar drop] la", ["[guitar drop] la"]),
        ("Hello [verse]", ["Hello [verse]"]),
        ("", [""]),
    ],
)
def test_text_behind_a_tag_gets_a_line_of_its_own(line, lines):
    assert normalized_lines(line) == lines


def test_text_behind_a_tag_is_read_in_the_song_language(tokenizer):
    together = tokenizer.encode("[Verse 1] la\nla", "en", normalize_tags=True)
    apart = tokenizer.encode("[verse]\nla\nla", "en")
    assert together.ids == apart.ids
    assert not together.warnings
