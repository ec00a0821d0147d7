"""Compares the ids of two tokenizers on a fixed set of texts that are difficult for tokenizers.

The texts cover known losses of conversions: pre-tokenizing in every script, digits and contractions, all kinds of white
space, characters that a normalizer changes, bytes without a token, special tokens in a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile

from lowbit.base.errors import InputError
from lowbit.tokenizer.load import Tokenizer
from lowbit.tokenizer.sample_text import TEXT

__all__ = ["TEXTS", "TokenizerDifference", "TokenizerRecord", "TokenizerReport", "record", "tokenizer_differences"]

# The most added tokens in the texts; vocabularies can have thousands of reserved ones.
_MAX_ADDED = 96

_SCRIPTS = (
    "Größe, naïve œuvre, straße, ŁÓDŹ, İstanbul ıİ; Xin chào các bạn, tiếng Việt; það er ágætt",
    "Привет, мир! Съешь же ещё. Καλημέρα κόσμε, ἀρχὴ σοφίας. გამარჯობა მსოფლიო. Բարև աշխարհ",
    "你好\uff0c世界。漢字と平仮名、カタカナ ｶﾀｶﾅ 안녕하세요 세계 \u3000全角\uff11\uff12\uff13\uff21\uff42 注音ㄅㄆㄇ",
    "שָׁלוֹם עוֹלָם مرحبا بالعالم العَرَبِيَّة دنیا سلام ܫܠܡܐ ދިވެހި ߒߞߏ",
    "नमस्ते दुनिया क्षत्रिय বাংলা ভাষা தமிழ் మాతృభాష ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ ଓଡ଼ିଆ සිංහල",
    "สวัสดีชาวโลก ภาษาไทย ລາວ ខ្មែរ မြန်မာ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⴰⵎⴰⵣⵉⵖ 𐌰𐌱 𐎠𐎡 𓀀𓀁 𒀀",
)
_CODE = (
    "\t\tdef f(x: int = 0x7f) -> dict:\n\t\t\treturn {'k': x**2}  # 12345.678\r\n\r\n",
    "for (int i = 0; i < n; ++i) { s += a[i] / 2; }  // don't\n/* über */ #include <vector>\n\n\n",
    "SELECT * FROM \"t\" WHERE a<>b AND c LIKE '%_x'; \\\\server\\path $HOME ${x:-y} `ls | wc -l` && ~/a",
    "<div class='a'>&nbsp;</div>\n{\"a\": [1, -2.5e+10, null]}\n\\frac{a}{b}^{2}_{i} $$ x \\to \\infty $$",
)
_NUMBERS = (
    "1 12 123 1234 12345 123456 1234567 1,234,567.89 -0.5e-3 2024-01-31 12:34:56 192.168.0.1 3rd 4x4 a1b22c333",
    "    12   345\n\n  678",
    "٣٤٥ ۱۲۳ १२३ ๑๒๓ Ⅷ ½ ² x² ① 〇 𝟘𝟙 ៥",  # noqa: RUF001
)
_WORDS = (
    "Hello",
    " Hello  world   three    four     five",
    "it's IT'S we'll WE'LL don'T rock'n'roll Ali'den can'tx 'sx ''s I'd've y'all O\u2019Neill \u02bcs",
    "HTTPServerError camelCase snake_case kebab-case SCREAMING ǅ ﬁ ſ K Å",  # noqa: RUF001
    "wait... what?!?! -- \u2014 \u2026 (a) [b] {c} «d» \u201ee\u201c *f* _g_ ~h~ ==i== #j @k $5 5% a/b a\\b",
    "aaaaaaaaaaaaaaaaaaaaaaa abababababab =-=-=-=-=- ........ ------------ ################ ______ hahahahahaha",
)
_SPACES = (
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n",
    "\t\t \t\n \n\n  \n   x\n\n\n\n",
    "a  b   c    d\n e\t f \t\tg\r\nh\ri \r\n  j ",
    "trailing   \n   \n\n   \t ",
    " " * 7 + "x" + " " * 33 + "y" + "\n" * 9 + "\t" * 17 + "z",
    "\u00a0a\u00a0\u00a0b \u2003\u2009c\u200bd\u3000\u3000e\u2028f\u2029g\u0085h\u1680i\ufeff\u200e\u202e",
    "literal \u2581 and \u2581\u2581 marks\u2581, Ġ and Ċ, <0x0A> <0xE2> </w> ## @@",
)
_ODD = (
    "😀🎉 👍🏽👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇩🇪🇯🇵🇺 ☺\ufe0f ☺ 1\ufe0f\u20e3 🧿🫠 ✓→∑√∞≠ \U0001d518",
    "\u0000\u0001\u0007\b\u001b[0m\u007f\u0080\u009f\u00ad\u061c\ue000\uf8ff\ufffc\ufffd\ufffe\uffff\U0010ffff\U000f0000",
    "e\u0301 é \u0301 \u0301\u0302 a\u0328\u0301 Å \u212b \u1e9b\u0323 각 \u1100\u1161\u11a8 ㎏ ﷺ \u0958 \u2126",
    "Z\u0361\u0322a\u0334\u0353l\u0337\u0301g\u0335o\u0338\u0301; q\u0307\u0323 q\u0323\u0307 \u0f71\u0f72\u0f74",
)

#: The built-in texts.
TEXTS: tuple[str, ...] = (*_WORDS, *_SCRIPTS, *_CODE, *_NUMBERS, *_SPACES, *_ODD, TEXT)


@dataclass(frozen=True)
class TokenizerDifference:
    """A text with different results. If the ids are equal, the decoded texts differ."""

    text: str
    source_ids: list[int]
    result_ids: list[int]
    source_decoded: str = ""
    result_decoded: str = ""

    def __str__(self) -> str:
        text = repr(self.text[:60])
        if self.source_ids == self.result_ids:
            return f"{text}: decoded {self.result_decoded[:60]!r}, expected {self.source_decoded[:60]!r}"
        pairs = zip(self.source_ids, self.result_ids, strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        found, expected = self.result_ids[same : same + 5], self.source_ids[same : same + 5]
        return f"{text}: ids from token {same} on are {found}, expected {expected}"


@dataclass(frozen=True)
class TokenizerReport:
    """The result of `tokenizer_differences`.

    num_texts: number of compared texts. differences: the texts that differ, in order. tokens: special tokens that the
    result lacks or has with another id, as (name, source's id, result's id).
    """

    num_texts: int
    differences: tuple[TokenizerDifference, ...]
    tokens: tuple[tuple[str, int, int | None], ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and not self.tokens


@dataclass(frozen=True)
class TokenizerRecord:
    """A tokenizer's results for texts: the input of a comparison. It is small, while a vocabulary can take 100 MB.

    ids: of each text; empty if it cannot be encoded. decoded: the texts of these ids. roles: "bos" and "eos" -> id.
    eos_ids: all ids that end a text.
    """

    texts: tuple[str, ...]
    ids: tuple[list[int], ...]
    decoded: tuple[str, ...]
    roles: Mapping[str, int | None]
    chat_templates: Mapping[str, str]
    eos_ids: frozenset[int]


def record(tokenizer: Tokenizer, texts: Iterable[str] = TEXTS, *, added: bool = True) -> TokenizerRecord:
    """The results of `tokenizer` for `texts` and, if `added`, for texts with its first added tokens.

    Texts are encoded with special tokens around them, and special tokens inside them are recognised. The built-in texts
    take tens of milliseconds, for any vocabulary. Never raises for the content of texts or vocabulary: a text that the
    tokenizer refuses has no ids.
    """
    texts = (*texts, *(_around_added(tokenizer) if added else ()))
    ids = tuple(_ids(tokenizer, text) for text in texts)
    decoded = tuple(_text(tokenizer, some) for some in ids)
    return TokenizerRecord(texts, ids, decoded, _named(tokenizer), tokenizer.chat_templates, tokenizer.eos_ids)


def tokenizer_differences(source: TokenizerRecord, result: Tokenizer | TokenizerRecord) -> TokenizerReport:
    """The differences of `result` from the record of its source. Never raises, like `record`.

    If `result` is a record, it must be of the same texts.
    """
    found = result if isinstance(result, TokenizerRecord) else record(result, source.texts, added=False)
    differences = []
    for text, ids, decoded, new_ids, new_decoded in zip(
        source.texts, source.ids, source.decoded, found.ids, found.decoded, strict=True
    ):
        if ids != new_ids:
            differences.append(TokenizerDifference(text, ids, new_ids))
        elif decoded != new_decoded:
            differences.append(TokenizerDifference(text, ids, new_ids, decoded, new_decoded))
    tokens = tuple(
        (name, a, found.roles[name]) for name, a in source.roles.items() if a not in (None, found.roles[name])
    )
    return TokenizerReport(len(source.texts), tuple(differences), tokens)


def _named(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}


def _around_added(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts with added tokens: alone, inside words, next to white space, one after another."""
    tokens = [text for _, text in sorted(tokenizer.added_tokens.items())]
    for token in islice(tokens, _MAX_ADDED):
        yield f"{token}a {token} b{token}\n{token}  {token}{token}c"
    some = tokens[:8]
    yield "".join(some)
    yield " ".join(f"{token[:-1]} {token.upper()}" for token in some)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except InputError:
        return []


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    try:
        return tokenizer.decode(ids)
    except InputError:
        return ""
