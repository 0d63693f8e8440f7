"""Words before a match that speak for it: a bare number is personal data only where the text says what it is."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Self

_WINDOW, _BEHIND = 60, 16
"""How many characters before and behind a match, or a list of numbers that holds it, are searched."""
_LETTERS = re.compile(r"[^\W\d_]+")
_CONJUNCTIONS = frozenset(
    ["and", "or", "und", "oder", "et", "ou", "y", "o", "e", "en", "of", "i", "и", "или", "x", "ext"]
)
"""Words within a list of numbers."""
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
"""The letters, within the brackets of a pattern, of scripts that write words together."""
_PREFIXED = r"\u0590-\u06ff"
_ANYWHERE = re.compile(f"[{UNSPACED}{_PREFIXED}]")
_SPACED = rf"^\W\d_{UNSPACED}"


def context_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern of any of the words: whole words, or with any ending where one ends with `*`.

    Words are given in lower case, and are to be searched for in texts of lower case.
    Chinese, Japanese, Korean and Thai write words together, Arabic and Hebrew write prepositions, articles and
    possessives with them, so theirs match anywhere.
    """
    chosen = sorted(set(words), key=len, reverse=True)
    unspaced = [re.escape(word) for word in chosen if _is_unspaced(word)]
    stems = [re.escape(word[:-1]) for word in chosen if word.endswith("*")]
    whole = [re.escape(word) for word in chosen if not word.endswith("*") and not _is_unspaced(word)]
    parts = [rf"(?<![{_SPACED}])(?:(?:{'|'.join(whole)})(?![{_SPACED}])|{'|'.join(stems) or '(?!)'})"] if whole else []
    return re.compile("|".join([*parts, *unspaced]))


class SearchedText(str):
    """A text that remembers where words of context stand in it: each pattern is searched for once only."""

    __slots__ = ("_found", "_word_ends")
    _found: dict[re.Pattern[str], tuple[list[int], list[int]]]
    _word_ends: list[int] | None

    def __new__(cls, text: str) -> Self:
        """Wrap a text."""
        made = super().__new__(cls, text)
        made._found, made._word_ends = {}, None
        return made

    def words(self, pattern: re.Pattern[str]) -> tuple[list[int], list[int]]:
        """Where the words of a pattern begin, and where they end (exclusive): two lists by position, in any case."""
        if pattern not in self._found:
            lower = self.lower()
            if len(lower) != len(self):  # \u0130 has two signs in lower case
                lower = "".join(each if len(each.lower()) > 1 else each.lower() for each in self)
            spans = [match.span() for match in pattern.finditer(lower)]
            self._found[pattern] = ([start for start, _ in spans], [end for _, end in spans])
        return self._found[pattern]

    def list_start(self, start: int) -> int:
        """Where the list of numbers begins that a position lies in: right behind the last word before it."""
        if self._word_ends is None:
            words = _LETTERS.finditer(self)
            self._word_ends = [word.end() for word in words if word.group().lower() not in _CONJUNCTIONS]
        last = bisect_right(self._word_ends, start) - 1
        return self._word_ends[last] if last >= 0 else 0


def has_context(text: str, start: int, pattern: re.Pattern[str], *, end: int | None = None) -> bool:
    """Whether one of the pattern's words stands shortly before `start`, or right behind `end` where it is given.

    A word before a list of numbers speaks for all of them.
    """
    searched = text if isinstance(text, SearchedText) else SearchedText(text)
    starts, ends = searched.words(pattern)
    last = bisect_right(ends, start) - 1
    if last >= 0 and (starts[last] >= start - _WINDOW or starts[last] >= searched.list_start(start) - _WINDOW):
        return True
    if end is None:
        return False
    first = bisect_left(starts, end)
    return first < len(ends) and ends[first] <= end + _BEHIND


def has_word_before(text: SearchedText, start: int, pattern: re.Pattern[str]) -> bool:
    """Whether one of the pattern's words stands shortly before `start`: for a pattern that is seldom asked for.

    Or shortly before the list of numbers that holds it.
    """
    first = text.list_start(start)
    last = start if first >= start - _WINDOW else first  # a longer list holds no words
    return pattern.search(text[max(first - _WINDOW, 0) : last].lower()) is not None


def follows_word(text: str, start: int, pattern: re.Pattern[str]) -> bool:
    """Whether one of the pattern's words ends where `start` is, with nothing between."""
    _, ends = (text if isinstance(text, SearchedText) else SearchedText(text)).words(pattern)
    last = bisect_right(ends, start) - 1
    return last >= 0 and ends[last] == start


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", " ").split(",")]


def _is_unspaced(word: str) -> bool:
    return _ANYWHERE.search(word) is not None


PHONE = context_pattern(
    _words("""
    phone*, tel, telephone*, telefon*, teléfono*, telefono*, téléphone*, telefoon*, telefone*, mobile*, mobil*, mobiel*,
    móvil*, movil*, cell, cellphone, celular*, cellulare*, portable, handy, handynummer, komórk*, kom, gsm, puhelin*,
    matkapuhelin*, cep, телефон*, тел, моб, мобильн*, call, calling,
    dial, ring, fax, sms, whatsapp, viber, signal, text
    me, text us, reach, contact, hotline, helpline, anruf*, ruf, ruft, rufen, erreichbar, erreichen, appeler, appelez,
    appelle*, joindre, joignable, llama, llame, llám*, chiama*, ligue, ligar, liga, bel, bellen, zadzwoń*, dzwoń*,
    soita*, ara, arayın, звон*, позвон*, my number,
    his number, her number, our number, your number, their number, meine
    nummer, rufnummer*, mon numéro, mi número, mio numero, meu número, mijn nummer, mój numer, mitt nummer, numaram,
    numaradan, мой номер, 手机, 手機, 电话, 電話, 联系, 聯繫, 致电, 拨打,
    撥打, 座机, 热线, 微信, wa.me,
    携帯, 番号, ケータイ, スマホ, 連絡, 전화, 휴대, 연락, 번호, 핸드폰, फोन*, फ़ोन*, मोबाइल*, संपर्क*, नंबर*, कॉल*,
    هاتف, جوال, موبايل, محمول, تلفون, اتصل, اتصال, واتساب, تلفن, موبایل, تماس, טלפון, נייד, סלולר, פלאפון, התקשר, חייג,
    τηλ, τηλέφωνο, τηλεφων*, κινητό, โทร, เบอร์, มือถือ, điện thoại, gọi, sđt, tlf, telp, hubungi, telemóvel*,
    volejte, zavol*, volat, hív*, sună*, подзвон*, обад*, bereikbaar
    """)
)
"""Words for telephones and for calling, in the languages of the documented regions."""

IP = context_pattern(
    _words("""
    ip, ips, ipv4, ipv6, addr, address, adresse, host, client, server, from, peer, remote, 地址, 服务器,
    адрес*, сервер*, アドレス, サーバ, 주소, 서버, dirección, indirizzo, endereço, adres*, عنوان
    """)
)
"""Words for the addresses of machines."""

CARD = context_pattern(
    _words("""
    card*, visa, mastercard, maestro, amex, american express, carte*, karte*, kreditkarte*, tarjeta*, carta, cartão*,
    kaart*, karta*, kart*, kort*, карт*, 卡, カード, 카드, بطاقة, כרטיס, บัตร
    """)
)
"""Words for payment cards."""
