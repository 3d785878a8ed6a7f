"""How each language reads symbols, abbreviations and ordinals aloud: data only.

These are the readings that the published weights were trained with. Where the original read nothing or the wrong
thing, they are ours: the euro sign on its own, Czech numbers, Turkish decimals, and money in Arabic and wherever
num2words does not know the currency (see `acestep.lyrics.numbers`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

SYMBOLS = "&@%#$£°€"


@dataclass(frozen=True)
class Readings:
    """What one language says for what is not a word."""

    symbols: str
    """A word for each of `SYMBOLS`, in its order."""
    ordinal: str
    """Pattern of what makes the number before it an ordinal."""
    and_cents: str = ", "
    """What stands between the two parts of an amount of money."""
    abbreviations: dict[str, str] = field(default_factory=dict)
    abbreviation_end: str = r"\."
    """Pattern of what closes an abbreviation."""
    thousands: str = "."
    """What sets off groups of three digits."""


READINGS = {
    "en": Readings(
        symbols="and at percent hash dollar pound degree euro",
        ordinal="st|nd|rd|th",
        thousands=",",
        abbreviations={
            **{"capt": "captain", "co": "company", "col": "colonel", "dr": "doctor", "drs": "doctors"},
            **{"esq": "esquire", "ft": "fort", "gen": "general", "hon": "honorable", "jr": "junior"},
            **{"lt": "lieutenant", "ltd": "limited", "maj": "major", "mr": "mister", "mrs": "misess"},
            **{"rev": "reverend", "sgt": "sergeant", "st": "saint"},
        },
    ),
    "de": Readings(
        symbols="und at prozent raute dollar pfund grad euro",
        ordinal=r"st|nd|rd|th|º|ª|\.(?=\s|$)",
        and_cents=" und ",
        abbreviations={"co": "firma", "dr": "doktor", "fr": "frau", "jr": "junior", "st": "sankt"},
    ),
    "fr": Readings(
        symbols="et arobase pour_cent dièse dollar livre degrés euro",
        ordinal="º|ª|er|re|e|ème",
        and_cents=" et ",
        abbreviations={
            **{"co": "compagnie", "dr": "docteur", "jr": "junior", "ltd": "limitée"},
            **{"mme": "madame", "mr": "monsieur", "st": "saint"},
        },
    ),
    "es": Readings(
        symbols="y arroba por_ciento numeral dolar libra grados euro",
        ordinal="º|ª|er|o|a|os|as",
        and_cents=" con ",
        abbreviations={
            **{"co": "compañía", "dr": "doctor", "dra": "doctora", "jr": "junior", "ltd": "limitada"},
            **{"sr": "señor", "sra": "señora", "st": "santo"},
        },
    ),
    "it": Readings(
        symbols="e chiocciola per_cento cancelletto dollaro sterlina gradi euro",
        ordinal="º|°|ª|o|a|i|e",
        and_cents=" e ",
        abbreviations={
            **{"co": "compagnia", "dr": "dottore", "jr": "junior", "ltd": "limitata"},
            **{"sig": "signore", "st": "santo"},
        },
    ),
    "pt": Readings(
        symbols="e arroba por_cento cardinal dólar libra graus euro",
        ordinal="º|ª|o|a|os|as",
        and_cents=" e ",
        abbreviations={
            **{"co": "companhia", "dr": "doutor", "dra": "doutora", "jr": "júnior", "ltd": "limitada"},
            **{"sr": "senhor", "sra": "senhora", "st": "santo"},
        },
    ),
    "pl": Readings(
        symbols="i małpa procent krzyżyk dolar funt stopnie euro",
        ordinal="º|ª|st|nd|rd|th",
        abbreviations={"dr": "doktor", "jr": "junior", "m": "pan", "p": "pani", "sw": "święty"},
    ),
    "tr": Readings(
        symbols="ve at yüzde diyez dolar sterlin derece euro",
        ordinal=r"\.|inci|nci|uncu|üncü",
        abbreviations={"b": "bay", "byk": "büyük", "dr": "doktor"},
    ),
    "ru": Readings(
        symbols="и собака процентов номер доллар фунт градус евро",
        ordinal="-й|-я|-е|-ое|-ье|-го",
        thousands=",",
        abbreviations={"г-жа": "госпожа", "г-н": "господин", "д-р": "доктор"},
        abbreviation_end=r"\b",
    ),
    "cs": Readings(
        symbols="a na procento křížek dolar libra stupně euro",
        ordinal=r"\.(?=\s|$)",
        abbreviations={"dr": "doktor", "ing": "inženýr", "p": "pan"},
    ),
    "nl": Readings(
        symbols="en bij procent hekje dollar pond graden euro",
        ordinal="de|ste|e",
        abbreviations={"dhr": "de heer", "dr": "dokter", "jhr": "jonkheer", "mevr": "mevrouw"},
    ),
    "ar": Readings(symbols="و على في_المئة رقم دولار جنيه درجة يورو", ordinal="ون|ين|ث|ر|ى"),
    "hu": Readings(
        symbols="és kukac százalék kettőskereszt dollár font fok euró",
        ordinal=r"\.|adik|edik|odik|ödik|ödike|ik",
        abbreviations={"b": "bácsi", "dr": "doktor", "nőv": "nővér"},
    ),
    "ko": Readings(symbols="그리고 에 퍼센트 번호 달러 파운드 도 유로", ordinal="번째|번|차|째"),
}
