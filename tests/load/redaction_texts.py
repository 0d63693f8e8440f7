"""Texts with personal data of known places, and texts with none, made by Faker from a seed given at run time."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faker import Faker

LOCALES = (
    "en_US",
    "en_GB",
    "de_DE",
    "fr_FR",
    "es_ES",
    "it_IT",
    "nl_NL",
    "pl_PL",
    "pt_BR",
    "ru_RU",
    "zh_CN",
    "ja_JP",
    "ko_KR",
    "tr_TR",
    "sv_SE",
    "en_IN",
    "ar_SA",
    "he_IL",
    "th_TH",
    "el_GR",
    "uk_UA",
)
_FRAMES = {
    "en": (
        "please call {phone} after six",
        "my number is {phone}",
        "Reach me by phone: {phone}.",
        "fax {phone}, thanks",
        "{phone} is my mobile",
    ),
    "de": ("Bitte ruf mich an: {phone}", "Telefon {phone}", "erreichbar unter {phone}", "Handy: {phone}, abends"),
    "fr": ("appelez-moi au {phone}", "Téléphone : {phone}", "mon portable {phone} est toujours ouvert"),
    "es": ("llámame al {phone}", "mi teléfono es {phone}", "Móvil: {phone}"),
    "it": ("chiamami al {phone}", "il mio cellulare: {phone}", "Telefono {phone}"),
    "nl": ("bel mij op {phone}", "Telefoon: {phone}", "mijn nummer is {phone}"),
    "pl": ("zadzwoń: {phone}", "mój numer to {phone}", "tel. {phone}"),
    "pt": ("me liga no celular {phone}", "Telefone: {phone}"),
    "ru": ("позвоните {phone}", "мой телефон {phone}", "тел.: {phone}"),
    "zh": ("手机号{phone}请联系", "我的电话是{phone}。", "电话：{phone}"),
    "ja": ("電話番号は{phone}です", "携帯 {phone}"),
    "ko": ("전화번호는 {phone} 입니다", "연락처: {phone}"),
    "tr": ("beni {phone} numaradan ara", "telefonum {phone}", "Cep: {phone}"),
    "ar": ("هاتفي {phone}", "رقم الهاتف: {phone}", "اتصل بي على {phone}"),
    "he": ("הטלפון שלי {phone}", "אפשר בטלפון {phone}", "נייד: {phone}"),
    "th": ("กรุณาโทร {phone}", "เบอร์โทร {phone}", "มือถือ{phone}ครับ"),
    "el": ("τηλ. {phone}", "το κινητό μου {phone}"),
    "uk": ("мій телефон {phone}", "тел. {phone}"),
    "sv": ("ring mig på {phone}", "Telefon: {phone}"),
}
_ANY = (
    "contact: {value}",
    "{value}",
    "I wrote to {value} yesterday",
    "(see {value})",
    "value={value}; ok",
    "von {value}, bitte",
    "注册信息：{value}。",
    "использую {value} сейчас",
    "地址{value}登录",
    "адрес{value}",
    "접속{value}에서",
)
_IDS = {
    "en_US": "US_SSN",
    "en_GB": "UK_NINO",
    "es_ES": "ES_NIF",
    "it_IT": "IT_FISCAL_CODE",
    "pl_PL": "PL_PESEL",
    "pt_BR": "BR_CPF",
    "zh_CN": "CN_RESIDENT_ID",
    "ko_KR": "KR_RRN",
    "sv_SE": "SE_PERSONNUMMER",
    "tr_TR": "TR_NATIONAL_ID",
    "fr_FR": "FR_NIR",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, and what of it is personal: the kind and the value; empty where nothing is."""

    text: str
    entity: str = ""
    value: str = ""


def personal_texts(seed: int, count: int) -> Iterator[Labelled]:
    """`count` texts, each with one value of a documented kind."""
    draw = random.Random(seed)
    faker = {locale: Faker(locale) for locale in LOCALES}
    for each in faker.values():
        each.seed_instance(draw.getrandbits(32))
    general = faker["en_US"]
    kinds: list[tuple[str, Callable[[Faker], str]]] = [
        ("EMAIL_ADDRESS", lambda local: local.ascii_email()),
        ("EMAIL_ADDRESS", _address_of),
        ("IBAN_CODE", lambda local: draw.choice((str, str.lower, _in_fours))(_iban(local))),
        ("CREDIT_CARD", lambda _: draw.choice((str, _in_fours, _dashed, _wide))(general.credit_card_number())),
        ("IP_ADDRESS", lambda _: general.ipv4_public() + draw.choice(("", "", ":8080", "/24"))),
        ("IP_ADDRESS", lambda _: general.ipv6()),
        ("MAC_ADDRESS", lambda _: general.mac_address()),
    ]
    while count > 0:
        locale = draw.choice(LOCALES)
        local = faker[locale]
        choice = draw.randrange(len(kinds) + 5)
        if choice < len(kinds):
            entity, make = kinds[choice]
            value = make(local)
            text = draw.choice(_ANY).format(value=value)
        elif choice < len(kinds) + 4:
            entity, value = "PHONE_NUMBER", local.phone_number()
            text = draw.choice(_FRAMES[locale.partition("_")[0]]).format(phone=value)
        elif locale in _IDS:
            entity, value = _IDS[locale], local.ssn()
            text = draw.choice(_ANY).format(value=value)
        else:
            continue
        count -= 1
        yield Labelled(f"{local.sentence()} {text} {local.sentence()}", entity, value)


def impersonal_texts(seed: int, count: int) -> Iterator[Labelled]:
    """`count` texts of products and events, with prices, dates, sizes, versions and order numbers."""
    draw = random.Random(seed)
    faker = [Faker(locale) for locale in LOCALES]
    for each in faker:
        each.seed_instance(draw.getrandbits(32))
    for _ in range(count):
        local = draw.choice(faker)
        fact = draw.choice(_facts(local, draw))
        yield Labelled(f"{local.sentence()} {fact} {local.sentence()}")


def _facts(local: Faker, draw: random.Random) -> list[str]:
    """One of each kind of number and name that says nothing about a person."""
    return [
        f"order {draw.randrange(10**6, 10**9)}",
        f"{draw.randrange(1, 9999):,}.{draw.randrange(100):02d} EUR",
        f"{draw.randrange(1, 999)} {draw.randrange(1000):03d} {draw.randrange(1000):03d} views",
        local.date(pattern="%Y-%m-%d %H:%M"),
        local.date(pattern="%d.%m.%Y"),
        f"{draw.randrange(1900, 2020)}-{draw.randrange(1900, 2020)}",
        f"{draw.randrange(1, 300)}x{draw.randrange(1, 300)}x{draw.randrange(1, 99)} cm",
        f"version {draw.randrange(30)}.{draw.randrange(30)}.{draw.randrange(30)}.{draw.randrange(300)}",
        local.isbn13(),
        local.ean(),
        f"{draw.uniform(-90, 90):.6f}, {draw.uniform(-180, 180):.6f}",
        f"SKU-{draw.randrange(1000, 9999)}-{''.join(draw.choices(string.ascii_uppercase, k=3))}",
        local.uuid4(),
        f"{draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}",
        f"{draw.random():.8f}",
        f"@{local.user_name()} said",
        local.url(),
        local.color(),
    ]


def bare_numbers(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Kind and text of numbers without any context: whole, padded and grouped ones, seconds, versions, articles."""
    draw = random.Random(seed)

    def digits(size: int) -> str:
        return "".join(draw.choices(string.digits, k=size))

    def grouped(sign: str, *sizes: int) -> str:
        return sign.join(digits(size) for size in sizes)

    for _ in range(count):
        for size in range(7, 17):
            yield f"{size} digits", str(draw.randrange(10 ** (size - 1), 10**size))
        yield "unix seconds", str(draw.randrange(1_000_000_000, 2_000_000_000))
        yield "unix milliseconds", str(draw.randrange(1_000_000_000_000, 2_000_000_000_000))
        yield "versions a.b.c.d", ".".join(str(draw.randrange(30)) for _ in range(4))
        yield "builds 10.0.x.y", f"10.0.{draw.randrange(10000, 29999)}.{draw.randrange(100, 4000)}"
        yield "browsers x.0.y.z", f"{draw.randrange(80, 150)}.0.{draw.randrange(4000, 7000)}.{draw.randrange(10, 250)}"
        yield (
            "drivers a.b.x.d",
            f"{draw.randrange(20)}.{draw.randrange(20)}.{draw.randrange(100, 256)}.{draw.randrange(9)}",
        )
        yield "padded", "00" + digits(draw.randrange(5, 13))
        for sign in " -":
            for sizes in ((3, 3, 3), (3, 3, 4), (4, 4), (2, 5, 3), (2, 2, 2, 2, 2), (4, 4, 4), (3, 2, 2)):
                yield f"groups {sign.join(map(str, sizes))}", grouped(sign, *sizes)
        yield "fractions", grouped("/", 2, 2, 2, 2)
        yield "DOI", f"10.{digits(4)}/{digits(6)}"
        yield "EAN-13", _article(draw.choice(("40", "50", "57", "76", "30", "69")) + digits(10))
        yield "GTIN-14", _article(digits(13))


def _article(digits: str) -> str:
    """The digits with the check digit of GS1."""
    total = sum(int(digit) * (3 - 2 * (place % 2)) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _iban(local: Faker) -> str:
    """An account's number of the locale's state; of Germany where it has none, as Thailand."""
    made = str(local.iban())
    return "DE89370400440532013000" if made.startswith("TH") else made


def _address_of(local: Faker) -> str:
    """An e-mail address of a person's own name, in the letters of the locale."""
    name = ".".join(local.name().lower().translate(str.maketrans("", "", ".,'()\u200f\u200e")).split()[-2:])
    return f"{name}@{local.ascii_free_email().partition('@')[2]}"


def _dashed(value: str) -> str:
    return _in_fours(value).replace(" ", "\u2013")


def _wide(value: str) -> str:
    """The value in full-width digits."""
    return "".join(chr(ord(sign) + 0xFEE0) for sign in value)


_UNITS = (
    "a@b.co", "1.2.3.4", "203.0.113.7", "203.0.113.7:80", "0170 1234567", "+491701234567", "+49 170 12345", "::1",
    "2001:db8::1", "00:1A:2B:3C:4D:5E", "DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111",
    "4111111111111111", "536-90-4399", "529.982.247-25", "11010519491231002X", "AB123456C", "ABCPE1234F", "X1234567L",
    "12345678Z", "900101-1234567", "112-233-445 95", "1 84 12 76 451 089 46", "123456789", "1234567890",
    "123456789012", "12 34 56 78", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "m\u00fcller@example.de", "a-", "a.",
)  # fmt: skip
"""Whole values of the documented kinds, and what resembles them."""
_GLUE = ("", " ", "  ", "-", ".", "+", "/", "(", ":", "@", "_", ", ", "A1", "x1", "1", "tel ", "ip ", "\u624b", "\xa0")


def fuzzed_texts(seed: int, count: int, length: int) -> Iterator[str]:
    """`count` texts of `length` characters, pieced together from what patterns are made of and from whole values."""
    draw = random.Random(seed)
    signs = string.digits + string.ascii_letters + "@@..--::++(( //_%#\u624b\u0430\u00e9"
    for _ in range(count):
        kind = draw.randrange(7)
        if kind == 0:
            pool = draw.sample(signs, draw.randrange(1, 6))
            made = "".join(draw.choices(pool, k=length))
        elif kind == 1:
            piece = "".join(draw.choices(signs, k=draw.randrange(1, 24)))
            made = piece * (length // len(piece) + 1)
        elif kind == 2:
            head, tail = "".join(draw.choices(signs, k=draw.randrange(1, 4))), draw.choice(signs)
            made = head * (length // len(head)) + tail
        elif kind == 3:
            made = "".join(draw.choices(signs, k=length))
        else:
            made = _glued(draw, length)
        yield made[:length]


def _glued(draw: random.Random, length: int) -> str:
    """One to six values with something between them, again and again; a word or a sign may stand before."""
    piece = "".join(draw.choice(_UNITS) + draw.choice(_GLUE) for _ in range(draw.randrange(1, 7)))
    return draw.choice(("", "", "1", "a", "@", "+", "tel ")) + piece * (length // len(piece) + 1)


def _in_fours(value: str) -> str:
    return " ".join(value[place : place + 4] for place in range(0, len(value), 4))
