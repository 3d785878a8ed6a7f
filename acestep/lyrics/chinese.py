"""Chinese lyrics as pinyin with tone digits: numbers and punctuation first, then the characters."""

from __future__ import annotations

import re
import string

from acestep.lyrics import packages

_DIGITS = "零一二三四五六七八九"
_PLACES = tuple(zip((1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32), "十百千万亿兆京垓秭穰沟", strict=True))
"""Powers of ten that have a name."""
_MAX_DIGITS = 32
"""Longer numbers are read digit by digit."""

_MEASURES = (
    "丈世丘丝两个丸代令件伏位冬出刀分刻勺匹升单卮厘双叠口只合名周啖回场块坡堂堆墙壳壶夏夜天头季客家寸对寻尺尾层山岁岭常幢年座张忽户手扎打"
    "担挑捆撮支斗斛斤日旬时春曲更月本条杯板枝根桶棵毫江泡溪炮煲片瓶盆盏盒盘石砣碗碟秋秒程窠笼管箩箱篮簋粒纪线罐网罗群脚腔袋袭课贯贴跳身辆辈"
    "道里针钟钧钱钵铢铺锅锱阙队阵面页顶颗首"
)
"""After one of these a long number is a quantity; elsewhere it is read digit by digit."""

_YEAR = re.compile(r"(?<!\d)(?:[089]\d|(?:19|20)\d\d)(?=年)")
_MONEY = re.compile(
    r"(?<!\d)\d+(?:\.\d+)?[多余几]?(?:亿|千万|百万|[万千百元块角毛分])(?:\d(?:亿|千万|百万|[万千百元块角毛分])?)?"
)
_MOBILE_PHONE = re.compile(r"(?<!\d)(?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8}(?!\d)")
_PHONE = re.compile(r"(?<!\d)(?:0(?:10|2[1-3]|[3-9]\d\d)-?)?[1-9]\d{6,7}(?!\d)")
_FRACTION = re.compile(r"(?<!\d)(\d+)/(\d+)")
_PERCENTAGE = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)%")
_QUANTITY = re.compile(rf"(?<!\d)\d+(?:\.\d+)?(?=[多余几]?(?:[{_MEASURES}]|[千微][克米]))")
_SERIAL = re.compile(r"\d{4,}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TWO_IN_A_NAME = re.compile(r"([a-zA-Z])二(?=[a-zA-Z])")  # P2P, B2B
_TWO_BEFORE_PLACE = re.compile(r"(?<![零一二三四五六七八九十])二(?=[百千万亿兆京垓秭穰沟])")

_SYMBOLS = {ord("£"): " 英镑 ", ord("°"): " 度 ", ord("€"): " 欧元 "}
_PUNCTUATION = string.punctuation + "·–—‘’‛“”„‟…‧﹏〰〾〿"
_PUNCTUATION_RANGES = (
    *((0x3001, 0x3003), (0x3008, 0x3011), (0x3014, 0x301F)),
    *((0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64)),
)
_TO_COMMA = {ord(mark): "," for mark in _PUNCTUATION} | {
    code: "," for first, last in _PUNCTUATION_RANGES for code in range(first, last + 1)
}


def pinyin(text: str) -> str:
    """Han characters as pinyin (`wo3ai4ni3`, neutral tone 5), whatever else is in `text` as it is.

    Raises:
        MissingPackageError: without pypinyin.
    """
    pypinyin = packages.load("pypinyin", "Chinese lyrics")
    syllables = pypinyin.lazy_pinyin(text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True)
    return "".join(syllables)


def spell(text: str) -> str:
    """Numbers and symbols as characters, every punctuation mark as a comma."""
    if _NUMBER.search(text):
        text = _spell_numbers(text)
    return text.lstrip("^").rstrip("$").translate(_TO_COMMA).translate(_SYMBOLS).strip()


def _spell_numbers(text: str) -> str:
    text = _YEAR.sub(lambda year: digit_by_digit(year[0]), text)
    text = _MONEY.sub(lambda money: _NUMBER.sub(lambda number: cardinal(number[0]), money[0]), text)
    text = _MOBILE_PHONE.sub(lambda phone: digit_by_digit(phone[0]), text)
    text = _PHONE.sub(lambda phone: digit_by_digit(phone[0]), text)
    text = _FRACTION.sub(lambda parts: f"{cardinal(parts[2])}分之{cardinal(parts[1])}", text)
    text = _PERCENTAGE.sub(lambda share: "百分之" + cardinal(share[1]), text.replace("％", "%"))
    text = _QUANTITY.sub(lambda number: cardinal(number[0]), text)
    text = _SERIAL.sub(lambda number: digit_by_digit(number[0]), text)
    text = _NUMBER.sub(lambda number: cardinal(number[0]), text)
    return _TWO_IN_A_NAME.sub(r"\g<1>2", text)


def digit_by_digit(number: str) -> str:
    """`2024` as 二零二四; what is no digit is left out."""
    return "".join(_DIGITS[int(digit)] for digit in number if digit.isdigit())


def cardinal(number: str) -> str:
    """`1050.5` as 一千零五十点五."""
    whole, _, fraction = number.partition(".")
    if len(whole) == 1 or len(whole) > _MAX_DIGITS or not whole.strip("0"):
        words = digit_by_digit(whole)
    else:
        words = _TWO_BEFORE_PLACE.sub("两", _with_places(whole))
    if fraction:
        words = f"{words}点{digit_by_digit(fraction)}"
    return words.removeprefix("一") if words.startswith("一十") else words


def _with_places(digits: str) -> str:
    significant = digits.lstrip("0")
    if not significant:
        return ""
    skipped = _DIGITS[0] if len(significant) < len(digits) else ""
    if len(significant) == 1:
        return skipped + _DIGITS[int(significant)]
    power, place = next(item for item in reversed(_PLACES) if item[0] < len(significant))
    return skipped + _with_places(significant[:-power]) + place + _with_places(significant[-power:])
