"""How personal data is written: in the letters and digits of all scripts, glued to words; and what resembles it."""

import pytest
from gyre_privacy.plain import plain
from gyre_privacy.redaction import redactor
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Mail: müller@example.de", "Mail: <EMAIL_ADDRESS>"),
        ("jürgen.schäfer@example.de schreibt", "<EMAIL_ADDRESS> schreibt"),
        ("mu\u0308ller@example.de", "<EMAIL_ADDRESS>"),
        ("иван.петров@пример.рф пишет", "<EMAIL_ADDRESS> пишет"),
        ("राम@उदाहरण.भारत", "<EMAIL_ADDRESS>"),
        ("me@sub.exämple.de", "<EMAIL_ADDRESS>"),
        ("联系bob@example.com谢谢", "联系<EMAIL_ADDRESS>谢谢"),
        ("bob\uff20example.com", "<EMAIL_ADDRESS>"),
        ("a@b.co@c.de@f.gh", "<EMAIL_ADDRESS>"),
        ("IP地址203.0.113.7登录", "IP地址<IP_ADDRESS>登录"),
        ("адрес203.0.113.7", "адрес<IP_ADDRESS>"),
        ("접속203.0.113.7에서", "접속<IP_ADDRESS>에서"),
        ("我的IP是8.8.4.4。", "我的IP是<IP_ADDRESS>。"),
        ("203.000.113.007", "<IP_ADDRESS>"),
        ("MAC地址00:1A:2B:3C:4D:5E", "MAC地址<MAC_ADDRESS>"),
        ("MAC:00:1A:2B:3C:4D:5E: up", "MAC:<MAC_ADDRESS>: up"),
        ("الهاتف 0501234567", "الهاتف <PHONE_NUMBER>"),
        ("هاتفي ٠٥٠١٢٣٤٥٦٧", "هاتفي <PHONE_NUMBER>"),
        ("בטלפון 0501234567", "בטלפון <PHONE_NUMBER>"),
        ("กรุณาโทร 0812345678", "กรุณาโทร <PHONE_NUMBER>"),
        ("Tel+49 170 1234567", "Tel<PHONE_NUMBER>"),
        ("(+30) 2660 086155", "<PHONE_NUMBER>"),
        ("卡号４１１１１１１１１１１１１１１１", "卡号<CREDIT_CARD>"),
        ("4111–1111–1111–1111", "<CREDIT_CARD>"),
        ("4111 1111  1111 1111", "<CREDIT_CARD>"),
        ("1111 4111 1111 1111 1111", "1111 <CREDIT_CARD>"),
        ("12-4111111111111111", "12-<CREDIT_CARD>"),
        ("536‑90‑4399", "<US_SSN>"),
        ("IBAN DE89  3704 0044 0532 0130 00", "IBAN <IBAN_CODE>"),
        ("IBAN:DE89370400440532013000BIC:COBADEFF", "IBAN:<IBAN_CODE>BIC:COBADEFF"),
        ("IBANDE89370400440532013000", "IBAN<IBAN_CODE>"),
        ("DE89\t3704\t0044\t0532\t0130\t00", "<IBAN_CODE>"),
        ("4111\t1111\t1111\t1111", "<CREDIT_CARD>"),
        ("Kärtle\t4111\t1111\t1111\t1111", "Kärtle\t<CREDIT_CARD>"),
        ("card no.4111111111111111", "card no.<CREDIT_CARD>"),
        ("Karte Nr.4111 1111 1111 1111", "Karte Nr.<CREDIT_CARD>"),
        ("visa4111111111111111", "visa<CREDIT_CARD>"),
        ("4111111111111111.4111111111111111", "<CREDIT_CARD>.<CREDIT_CARD>"),
        ("http://10.0.0.1/x", "http://<IP_ADDRESS>/x"),
        ("ftp://me:pw@10.0.0.1/", "ftp://me:pw@<IP_ADDRESS>/"),
    ],
)
def test_values_of_all_scripts_are_masked_whole(text: str, redacted: str) -> None:
    """A value goes with all its letters, whatever its digits and separators are and whatever word it is glued to."""
    assert redactor()(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "0012345678",
        "10.0.19045.3693",
        "120.0.6099.129",
        "4.18.120.3",
        "36 37 38 39 40",
        "120 60 45 mm",
        "100-200-300",
        "DOI 10.1000/182345",
        "12/24/36/48",
        "4006381333931",
        "5012345000046",
        "1234-5678",
        "123-456-7890",
        "dial 0.06431025",
        "phone of 1990-1995",
        "401-023-2137",
        "130 692 544",
        "0.4111111111111111",
        "-12.4111111111111111",
        "SKU4111111111111111",
        "TIBANX9370400440532013000",
    ],
)
def test_numbers_of_versions_articles_and_sizes_stay(text: str) -> None:
    """Without a word that says so, no number of a version, an article, a size or a series is personal data."""
    assert redactor()(text) == text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("call 123-456-7890", "call <PHONE_NUMBER>"),
        ("tel 0012345678", "tel <PHONE_NUMBER>"),
        ("client ip 4.18.120.3", "client ip <IP_ADDRESS>"),
        ("card 5012345000046", "card <CREDIT_CARD>"),
        ("NHS 401-023-2137", "NHS <UK_NHS>"),
        ("(415) 555-2671", "<PHONE_NUMBER>"),
        ("0170 1234567", "<PHONE_NUMBER>"),
        ("06 12 34 56 78", "<PHONE_NUMBER>"),
        ("0049 170 1234567", "<PHONE_NUMBER>"),
    ],
)
def test_a_word_or_a_form_of_its_own_makes_them_personal(text: str, redacted: str) -> None:
    """The same numbers are masked behind a word for them; mobile numbers, area codes and prefixes need none."""
    assert redactor()(text) == redacted


@pytest.mark.parametrize(
    ("word", "entity", "value"),
    [
        ("phones", "PHONE_NUMBER", "555 {number:03} 4567"),
        ("IPs", "IP_ADDRESS", "10.0.0.{number}"),
        ("SSN", "US_SSN", "078{number:02}1120"),
        ("cards", "CREDIT_CARD", "5012345000046"),
    ],
)
@pytest.mark.parametrize("separator", [", ", "; ", "\n", " | ", " and "])
def test_a_word_speaks_for_all_of_a_list(word: str, entity: str, value: str, separator: str) -> None:
    """Of a list of forty numbers behind one word, the last is masked as the first."""
    listed = separator.join([value.format(number=number) for number in range(10, 50)])
    assert redactor()(f"{word}: {listed}") == f"{word}: {separator.join([f'<{entity}>'] * 40)}"


@given(st.text())
def test_plain_texts_have_the_same_length(text: str) -> None:
    """Each sign gives one sign, so that what is found in the plain text lies at the same place in the text."""
    assert len(plain(text)) == len(text)
    assert plain(plain(text)) == plain(text)
