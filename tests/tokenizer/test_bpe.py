"""The core's BPE against the tokenizers library's, with vocabularies that have every gap."""

import copy
import pickle
import random

import numpy as np
import pytest
from tokenizer_cases import KINDS, metadata
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

import lowbit
from lowbit._core import Bpe, Merges, TokenIndex
from lowbit.tokenizer.backend import BpeBackend, BpeModel, LibraryBackend, backend_of
from lowbit.tokenizer.load import from_metadata

ALPHABET = "abcdé\u2581😀"
ADDED = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("<x>", normalized=False, lstrip=True, rstrip=True),
    AddedToken("N y", normalized=True),
    AddedToken("ab", normalized=False, single_word=True),
]


def _case(seed: int) -> tuple[list[str], list[tuple[str, str]], dict]:
    """Tokens, merges and options; of characters and byte tokens some are missing, of merges some are listed twice."""
    rng = random.Random(seed)
    tokens = ["<unk>", "<s>", "<x>", "N y", "ab", *rng.sample(ALPHABET, rng.randint(4, len(ALPHABET)))]
    byte_fallback = rng.random() < 0.5
    if byte_fallback:
        tokens += [f"<0x{byte:02X}>" for byte in range(256) if rng.random() < 0.8]
    merges = []
    for _ in range(60):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) < 12 and " " not in left + right:
            merges.append((left, right))
            tokens += [left + right] * (left + right not in tokens)
    merges += rng.sample(merges, min(5, len(merges)))
    rng.shuffle(merges)
    options = {"fuse_unk": rng.random() < 0.5, "byte_fallback": byte_fallback, "ignore_merges": rng.random() < 0.3}
    return tokens, merges, {**options, "unk_token": rng.choice([None, "<unk>"])}


def _steps(tokenizer: Tokenizer, seed: int) -> Tokenizer:
    if seed % 2:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "\u2581")])
    if seed % 3:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if seed % 5:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A", "<x>"], pair=["$A", "$B"], special_tokens=[("<s>", 1), ("<x>", 2)]
        )
    return tokenizer


def _backends(seed: int) -> tuple[LibraryBackend, BpeBackend]:
    tokens, merges, options = _case(seed)
    whole = _steps(Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges, **options)), seed)
    whole.add_tokens(ADDED)
    index = TokenIndex(tokens)
    lines = Merges.of_lines(index, [f"{left} {right}" for left, right in merges], "key")
    unknown = options.pop("unk_token")
    model = BpeModel(index, lines, None if unknown is None else 0, **options)
    ours = backend_of(_steps(Tokenizer(models.BPE()), seed), model, ADDED)
    assert isinstance(ours, BpeBackend)
    return LibraryBackend(whole), ours


@pytest.mark.parametrize("seed", range(60))
def test_ids_are_those_of_the_library(seed):
    theirs, ours = _backends(seed)
    rng = random.Random(seed)
    pieces = [*ALPHABET, "ab", "abc", "e\u0301", "z", "ü", " ", "  ", "\n", "\0", "<s>", "<x>", "N y", "<unk>"]
    for length in (0, 1, 2, *(rng.randint(3, 40) for _ in range(25))):
        text = "".join(rng.choices(pieces, k=length))
        for framed in (False, True):
            for special in (False, True):
                assert ours.encode(text, framed, special) == theirs.encode(text, framed, special), text


@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_those_of_the_library(seed):
    theirs, ours = _backends(seed)
    ids = list(range(len(theirs) + 3))
    assert ours.pieces(ids) == theirs.pieces(ids)
    assert ours.added.keys() == theirs.added.keys()
    assert (len(ours), ours.num_ids(0), ours.num_ids(10**6)) == (len(theirs), theirs.num_ids(0), 10**6)
    for token in ("<s>", "N y", "N\u2581y", "ab", "a", "no such", "", "\0", "\ud800"):
        try:
            expected = theirs.id(token)
        except UnicodeEncodeError:
            continue
        assert ours.id(token) == expected
    assert ours.whole.to_str() == theirs.whole.to_str()


def test_long_words():
    theirs, ours = _backends(0)
    text = "".join(random.Random(0).choices("abcd", k=200_000))
    assert ours.encode(text, False, True) == theirs.encode(text, False, True)


def test_added_tokens_outside_of_the_vocabulary_get_new_ids():
    index = TokenIndex(["a", "b"])
    added = [AddedToken("<new>", normalized=False)]
    backend = backend_of(Tokenizer(models.BPE()), BpeModel(index, Merges.of_lines(index, [], "key")), added)
    assert backend.encode("ab<new>", False, True) == [0, 1, 2]


def test_scores_of_one_height():
    """Of pieces with one score the one whose left part is longest comes first, then the one with the lower id."""
    index = TokenIndex(["a", "b", "ab", "ba", "aba", "bab", "é", "aé"])
    scores = np.array([0, 0, -1, -1, -1, -3, 0, -2], np.float64)
    merges = Merges.of_scores(index, scores, np.array([True] * 7 + [False]))
    assert merges.pairs() == [("ab", "a"), ("a", "b"), ("b", "a"), ("a", "ba"), ("ba", "b"), ("b", "ab")]


@pytest.mark.parametrize("seed", range(40))
def test_ids_of_scores_are_those_of_the_library(seed):
    """Of the pieces some are not mergeable, and many have one score. The library gets the list of pairs."""
    rng = random.Random(seed)
    letters = rng.sample(ALPHABET, 4)
    words = {"".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(80)}
    tokens = ["<unk>", *letters, *sorted(words), "\u2581" * 70, "b" * 65]
    rng.shuffle(tokens)
    index = TokenIndex(tokens)
    scores = np.array([-float(rng.randrange(1 + seed)) for _ in tokens])
    is_mergeable = np.array([text != "<unk>" and rng.random() < 0.9 for text in tokens])
    merges = Merges.of_scores(index, scores, is_mergeable)
    model = BpeModel(index, merges, tokens.index("<unk>"), fuse_unk=seed % 2 == 0)
    ours = backend_of(Tokenizer(models.BPE()), model, [])
    theirs = Tokenizer(model.in_library())
    assert isinstance(ours, BpeBackend)
    for length in (0, 1, 2, 3, 10, 200):
        for _ in range(20):
            text = "".join(rng.choices([*letters, "z", *words], k=length))
            assert ours.encode(text, False, True) == theirs.encode(text).ids, text


def test_scores_make_long_pieces():
    """Pieces up to the limit merge; a long control token, which is no piece, does not."""
    pieces = ["a" * 2**i for i in range(11)]
    index = TokenIndex([*pieces, "<" + "a" * 5000 + ">"])
    merges = Merges.of_scores(index, np.arange(12, dtype=np.float64), np.array([True] * 11 + [False]))
    bpe = Bpe(merges, [None], 11, False, False, False)
    assert bpe.encode(["a" * 1024, "az", "z" * 3], [0, 0, 0], [0, 0, 0]) == [10, 0, 11, 11, 11, 11]
    with pytest.raises(lowbit.FormatError, match="at most 1024 characters in token 0, found 1025"):
        Merges.of_scores(TokenIndex(["\u00e9" * 1025]), np.zeros(1), np.ones(1, bool))


@pytest.mark.parametrize(
    ("line", "shown"), [("a", '"a"'), ("a c", '"a c"'), ("", '""'), (" ", '" "'), ("b b", '"b b"')]
)
def test_what_is_no_merge_is_named(line, shown):
    index = TokenIndex(["a", "b", "ab"])
    with pytest.raises(
        lowbit.FormatError, match=f"^key: expected two tokens that merge into a third at index 1, .*{shown}$"
    ):
        Merges.of_lines(index, ["a b", line], "key")


def test_a_repeated_token_is_that_of_the_last_id():
    index = TokenIndex(["a", "", "b", "a", ""])
    assert (index.repeated, index.find("a"), index.text(0), index.text(3), index.text(9)) == (0, 3, None, "a", None)
    assert index.ids() == {"a": 3, "b": 2}
    assert (index.blank(), index.spellings([0, 1, 3])) == ([1, 4], ["a", "", "a"])


def test_other_texts_of_tokens():
    index = TokenIndex(["a", "b", "c"], {1: "", 2: "d"})
    assert (index.ids(), index.blank()) == ({"a": 0, "d": 2}, [1])
    with pytest.raises(lowbit.FormatError, match="strings that UTF-8 can encode at index 1"):
        TokenIndex(["a", "b"], {1: "\ud800"})
    with pytest.raises(IndexError):
        TokenIndex(["a"], {1: "b"})
    with pytest.raises(IndexError):
        index.spellings([3])


@pytest.mark.parametrize("name", KINDS)
def test_tokenizers_of_files_are_pickled(name):
    tokenizer = from_metadata(metadata(name))
    text = "Hello <s> wörld\n\n12345 \u00e9\u0301"
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again.encode(text) == tokenizer.encode(text) == tokenizer.backend.encode(text).ids
        assert again.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("name", KINDS)
def test_changes_of_the_backend_are_seen(name):
    tokenizer = from_metadata(metadata(name))
    tokenizer.backend.add_tokens(["Hello"])
    ids = tokenizer.backend.encode("Hello Hello").ids
    assert tokenizer.encode("Hello Hello") == ids
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Hello Hello") == ids
