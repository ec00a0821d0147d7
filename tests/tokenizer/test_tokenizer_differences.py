"""What `tokenizer_differences` finds, and that the built-in texts tell tokenizers apart."""

import json
import unicodedata

import pytest
from tokenizer_cases import KINDS, metadata
from tokenizers import Regex, pre_tokenizers

from lowbit.tokenizer.backend import LibraryBackend
from lowbit.tokenizer.differences import TEXTS, record, tokenizer_differences
from lowbit.tokenizer.load import Tokenizer, from_metadata
from lowbit.tokenizer.regexes import PRE_TOKENIZERS


def changed(name: str, **parts: object) -> Tokenizer:
    """The tokenizer of that name with other values in its tokenizer.json."""
    t = from_metadata(metadata(name))
    state = {**json.loads(t.backend.to_str()), **parts}
    return Tokenizer(LibraryBackend(type(t.backend).from_str(json.dumps(state))), {"bos": t.bos_id, "eos": t.eos_id})


@pytest.mark.parametrize("name", KINDS)
def test_nothing_differs_from_itself(name):
    report = tokenizer_differences(record(from_metadata(metadata(name))), from_metadata(metadata(name)))
    assert report.equal
    assert report.num_texts > len(TEXTS)


def test_the_texts_hold_what_tokenizers_get_wrong():
    text = "".join(TEXTS)
    kinds = {unicodedata.category(c) for c in text}
    assert kinds >= {"Cc", "Cf", "Co", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Zs", "Zl", "Zp"}
    scripts = {unicodedata.name(c, "").split(" ")[0] for c in text if unicodedata.category(c) == "Lo"}
    assert len(scripts) >= 30
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert unicodedata.normalize(form, text) != text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen2", {"normalizer": {"type": "NFC"}}),
        ("qwen2", {"normalizer": {"type": "Lowercase"}}),
        ("qwen2", {"decoder": None}),
        ("qwen2", {"added_tokens": []}),
        ("llama-bpe", {"post_processor": None}),
        ("llama-spm", {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}}),
    ],
)
def test_each_part_counts(name, parts):
    assert not tokenizer_differences(record(from_metadata(metadata(name))), changed(name, **parts)).equal


def words(splits: tuple[str, ...]) -> list[list[str]]:
    """The words that a chain of splits makes of every text."""
    chain = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated") for split in splits])
    return [[word for word, _ in chain.pre_tokenize_str(text)] for text in TEXTS]


def test_the_texts_tell_all_pre_tokenizers_apart():
    # bailingmoe's possessive quantifiers and single line ends cut as qwen2's pattern does.
    chains = {
        pre.splits for name, pre in PRE_TOKENIZERS.items() if name not in ("bailingmoe", "bailingmoe2", "llada-moe")
    }
    cut = {str(words(splits)): splits for splits in chains}
    assert chains == set(cut.values())


def test_what_a_difference_says():
    a, b = from_metadata(metadata("qwen2")), changed("qwen2", normalizer={"type": "Lowercase"})
    (difference,) = tokenizer_differences(record(a, ["x yZ"], added=False), b).differences
    assert (difference.source_ids, difference.result_ids) == (a.encode("x yZ"), a.encode("x yz"))
    assert str(difference) == f"'x yZ': ids from token 2 on are {b.encode('z')}, expected {a.encode('Z')}"
    (difference,) = tokenizer_differences(record(a, ["x y"], added=False), changed("qwen2", decoder=None)).differences
    assert str(difference) == "'x y': decoded 'x Ġy', expected 'x y'"
    fields = metadata("qwen2")
    other = a.eos_id - 1
    source = record(a, [], added=False)
    report = tokenizer_differences(source, from_metadata({**fields, "tokenizer.ggml.eos_token_id": other}))
    assert report.tokens == (("eos", a.eos_id, other),)
    assert (report.num_texts, report.differences, report.equal) == (0, (), False)
