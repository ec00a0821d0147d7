"""The regexes of each `tokenizer.ggml.pre`, which split a text into words before byte-level BPE.

A GGUF file has only the name of its pre-tokenizer. Each regex splits the pieces of the previous one; matches and the
text between them both become pieces. If llama.cpp adapts a regex to `std::regex`, the table has the original one of
the models' tokenizer.json, which accepts the same words.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_ASCII_SYMBOL_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED_WORD = _ASCII_SYMBOL_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_NEWLINES = r"[^\n]+|[\n]+"
_HEAD, _TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# The cased letters of Unicode 13. DeepSeek LLM separates them from other letters.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)


def _words(digits: str, contractions: str = _CONTRACTIONS + "|", letters: str = r"\p{L}+") -> str:
    """The words of GPT-4's first tokenizer and its relatives. digits: a regex for the digits of one word."""
    return (
        contractions
        + r"[^\r\n\p{L}\p{N}]?"
        + letters
        + "|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        + _SPACES
    )


def _cased_words(digits: str, contractions: str = _CONTRACTIONS + "?") -> str:
    """The words of GPT-4o's tokenizer and its relatives: capitals followed by small letters."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{lead}{_HEAD}*{_TAIL}+{contractions}|{lead}{_HEAD}+{_TAIL}*{contractions}|{digits}"
        + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
        + _SPACES
    )


@dataclass(frozen=True)
class PreTokenizer:
    """splits: regexes, in order. ignore_merges: a word that is a token stays whole. add_bos: default of the key."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_THREE_DIGITS = r"\p{N}{1,3}"
_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_QWEN2 = PreTokenizer((_words(r"\p{N}"),))
_LLAMA3 = PreTokenizer((_words(_THREE_DIGITS),), ignore_merges=True, add_bos=True)
_DEEPSEEK3 = PreTokenizer(
    (_THREE_DIGITS, _CJK, _MARKED_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|" + _SPACES),
)
_GPT4O = PreTokenizer((_cased_words(_THREE_DIGITS),))
_BAILING = PreTokenizer(
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACES,)
)
_WIDE_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    ("gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling", _PLAIN_GPT2),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _DIGITS_THEN_GPT2),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN2),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2", _LLAMA3),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_words(_THREE_DIGITS),))),
    ("glm4 glm5", PreTokenizer((_words(_THREE_DIGITS),), ignore_merges=True)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK3),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O),
    ("bailingmoe bailingmoe2 llada-moe", _BAILING),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    ("tekken", PreTokenizer((_cased_words(r"\p{N}", ""),), ignore_merges=True, add_bos=True)),
    ("tiny_aya cohere2moe", PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _cased_words(_THREE_DIGITS)))),
    ("ufakzeka", PreTokenizer((_words(r"\p{N}", ""),))),
    ("laguna", PreTokenizer((_NEWLINES, _words(r"\p{N}")))),
    ("minicpm5", PreTokenizer((_THREE_DIGITS, _words(r"\p{N}+")), ignore_merges=True)),
    (
        "qwen35",
        PreTokenizer(
            (
                _CONTRACTIONS
                + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                + _SPACES,
            )
        ),
    ),
    (
        "jais-2",
        PreTokenizer((_words(_THREE_DIGITS).replace(_SPACES, _WIDE_SPACES),)),
    ),
    (
        "seed-coder",
        PreTokenizer(
            (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|" + _SPACES,)
        ),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                _CONTRACTIONS
                + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|"
                + _SPACES,
            )
        ),
    ),
    (
        "spark2_5",
        PreTokenizer(
            (_THREE_DIGITS, _CJK, _MARKED_WORD + r"| ?[\p{P}\p{S}]+|[\r\n]|" + _SPACES, r"\p{N}"),
        ),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, r"\p{N}"))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _CJK_HANGUL,
                r"\p{N}+",
            )
        ),
    ),
    ("default", PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: pre for names, pre in _FAMILIES for name in names.split()}
