"""Tokenizers: llama.cpp's ids, streaming, stop strings, hostile vocabularies and folders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers as backends
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import byte_level_tokenizer
from tokenizer_cases import KINDS, REFERENCE, TURNS, metadata, normalized_llama, tokenizer_metadata

import lowbit
from lowbit.tokenizer.differences import TEXTS
from lowbit.tokenizer.load import from_metadata
from lowbit.tokenizer.naming import GPT4O, QWEN2, TEKKEN
from lowbit.tokenizer.stream import StopFilter

BARD = Path(lowbit.__file__).parent / "data" / "bard"
TEXT = st.text() | st.text("ab \n\t<|>_é你😀\u2581").map(lambda text: text * 2)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def chain(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


CHAINS = {
    "tekken": chain(split(TEKKEN), BYTES),
    "gpt-4o": chain(split(GPT4O), BYTES),
    "smollm": chain({"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, lowbit.Tokenizer]:
    return {"bard": lowbit.load_tokenizer(BARD), **{name: from_metadata(metadata(name)) for name in REFERENCE}}


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_ids_are_those_of_llama_cpp(tokenizers, name):
    t = tokenizers[name]
    assert len(REFERENCE[name]["cases"]) >= 40
    for text, special, ids in REFERENCE[name]["cases"]:
        # llama.cpp takes what looks as an end for a control token; these files say it is text (Phi-3: matched whole).
        # BERT's own normalizer takes Hangul apart and strips more marks than llama.cpp's.
        left_out = {"llama-spm": "\0\0", "bert-bge": "\uc138|\u0e27", "aquila": r"</s>|<\|endoftext"}.get(name, "</s>")
        if not re.search(left_out, text):
            assert t.encode(text, add_special_tokens=special, parse_special=special) == ids, (text, special)


@pytest.mark.parametrize("name", CHAINS)
def test_ids_are_those_of_the_tokenizers_library(tmp_path, name):
    """Families without a vocabulary in llama.cpp: a small tokenizer.json of each, and what GGUF keeps of it."""
    tokenizer = byte_level_tokenizer(QWEN2, ["<|endoftext|>", "<|im_start|>", "<fim_prefix>"], None)
    if name == "smollm":  # known by its second token
        words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
        words = [words[0], "<|im_start|>", *words[1:]]
        tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(words)}
        ids = {"<|endoftext|>": len(words), "<|im_start|>": 1, "<fim_prefix>": len(words) + 1}
        tokenizer["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in tokenizer["added_tokens"]]
    tokenizer["pre_tokenizer"] = CHAINS[name]
    folder_with(tmp_path, tokenizer_json=json.dumps(tokenizer))
    keys = tokenizer_metadata(tmp_path, {}, "llama", 280)
    assert keys["tokenizer.ggml.pre"] == name
    theirs, ours = backends.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), from_metadata(keys)
    for text in (*TEXTS, "the<|im_start|>and"):
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize(
    "name", ["bard", *sorted({*REFERENCE} - {"bert-bge", "nomic-bert-moe"})]
)  # they lose case, lines
def test_round_trip(tokenizers, name):
    t = tokenizers[name]
    for text in ("Hello, world", "tabs\tand\n\nlines", "caf\u00e9 \u4f60\u597d \U0001f600", "x  y", ""):
        ids = t.encode(text, add_special_tokens=False)
        assert t.decode(ids) == text
        assert all(t.id(t.token(i)) == i for i in ids)


@pytest.mark.parametrize("name", ["bard", *KINDS])
@settings(max_examples=40)
@given(data=st.data())
def test_stream_is_decode_in_pieces(tokenizers, name, data):
    t = tokenizers[name]
    single = [i for i in range(min(t.vocab_size, 512)) if len(t.token(i)) == 1 or t.token(i).startswith("<0x")]
    ids = data.draw(
        TEXT.map(lambda text: t.encode(text))
        | st.lists(st.integers(0, t.vocab_size - 1) | st.sampled_from(single), max_size=30)
    )
    for skip in (False, True):
        stream = t.stream(skip_special_tokens=skip)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.flush() == t.decode(ids, skip_special_tokens=skip)
        assert stream.flush() == ""


@pytest.mark.parametrize("name", ["bard", "gpt-2", "llama-spm"])
def test_stream_never_splits_a_character(tokenizers, name):
    t = tokenizers[name]
    text = "a \U0001f9ff\U0001f600 \u4f60\u597d b"
    stream = t.stream()
    ids = t.encode(text, add_special_tokens=False)
    pieces = [stream.push(i) for i in ids]
    assert len(ids) > len([piece for piece in pieces if piece]) > 3
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == text
    cut = t.stream()  # an incomplete character comes at the end, and only there
    assert "".join(cut.push(i) for i in t.encode("x\U0001f9ff", add_special_tokens=False)[:-1]) == "x"
    assert set(cut.flush()) == {"\ufffd"}


def test_stream_as_continuation_keeps_the_space(tokenizers):
    t = tokenizers["llama-spm"]
    ids = t.encode("Hello", add_special_tokens=False)
    for continuation, text in ((False, "Hello"), (True, " Hello")):
        stream = t.stream(continuation=continuation)
        assert "".join(map(stream.push, ids)) + stream.flush() == text


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": True},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                           "use_regex": True}]},
        {"type": "CTC", "pad_token": ".", "word_delimiter_token": " ", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 2, "stop": 0}]},
        None,
    ],
)  # fmt: skip
@settings(max_examples=40)
@given(ids=st.lists(st.integers(0, 7), max_size=12))
def test_stream_for_every_kind_of_decoder(tmp_path_factory, decoder, ids):
    vocab = {token: i for i, token in enumerate(["a", "##b", "\u2581c", "\u2581", " ", "<0xC3>", "<0xA9>", "."])}
    folder = tmp_path_factory.mktemp("folder")
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                    "post_processor": None, "decoder": decoder, "model": {"type": "BPE", "vocab": vocab, "merges": []}})
    )  # fmt: skip
    t = lowbit.load_tokenizer(folder)
    stream = t.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids)


def stopped(text: str, stops: list[str]) -> str:
    """What a stop filter must let through, one character at a time."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_filter_cuts_wherever_the_text_is_cut(text, stops, data):
    filter_ = StopFilter(stops)
    given_ = ""
    rest = text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        given_ += filter_.push(rest[:size])
        rest = rest[size:]
        assert stopped(text, stops).startswith(given_)
    assert given_ + filter_.flush() == stopped(text, stops)
    assert filter_.stopped == (stopped(text, stops) != text)


def test_stop_filter_holds_only_what_may_stop():
    filter_ = StopFilter(["</end>"])
    assert [filter_.push(text) for text in ("a<", "b</", "en", "d> gone", "more")] == ["a", "<b", "", "", ""]
    assert filter_.stop == "</end>"
    with pytest.raises(lowbit.InputError, match="not empty"):
        StopFilter([""])


def test_special_tokens_and_ends(tokenizers):
    assert tokenizers["bard"].eos_ids == {2046, 2047}
    llama3 = tokenizers["llama-bpe"]
    assert {llama3.token(i) for i in llama3.eos_ids} == {"<|end_of_text|>", "<|eot_id|>"}
    assert llama3.encode("a")[0] == llama3.bos_id
    qwen2 = tokenizers["qwen2"]
    assert {qwen2.token(i) for i in qwen2.eos_ids} == {"<|endoftext|>", "<|im_end|>"}
    assert qwen2.bos_id not in qwen2.encode("a")
    spm = tokenizers["llama-spm"]
    assert spm.encode("a")[0] == spm.bos_id == spm.id("<s>")
    assert spm.decode(spm.encode("a"), skip_special_tokens=True) == "a"
    changed = {**metadata("llama-spm"), "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    assert from_metadata(changed).encode("a") == [*spm.encode("a")[1:], spm.eos_id]


def test_normalized_special_tokens_are_written_as_they_are(tmp_path):
    """The library calls them by their normalized form, "\u2581<s>"."""
    tokenizer = lowbit.load_tokenizer(normalized_llama(tmp_path, "PreTrainedTokenizerFast"))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert [tokenizer.token(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert [tokenizer.id(tokenizer.token(i)) for i in range(3)] == [0, 1, 2]
    assert tokenizer.apply_chat_template(TURNS) == "<s>[INST] hi [/INST] a b </s><s>[INST] c [/INST]"
    ids = [1, 1, 292, 2, 574, 0]
    for skip in (False, True):
        stream = tokenizer.stream(skip_special_tokens=skip)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


def test_gguf_file_and_open_file(tmp_path, tokenizers):
    path = tmp_path / "vocab.gguf"
    fields = {**metadata("llama-spm"), "general.architecture": "llama", "tokenizer.chat_template": "{{ bos_token }}",
              "tokenizer.chat_template.tool_use": "tools"}  # fmt: skip
    lowbit.gguf.write(path, fields, {})
    text = "Hello <s> \U0001f600"
    t = lowbit.load_tokenizer(path)
    assert t.encode(text) == tokenizers["llama-spm"].encode(text)
    assert t.chat_templates == {"default": "{{ bos_token }}", "tool_use": "tools"}
    assert t.apply_chat_template([]) == "<s>"
    with lowbit.gguf.open(path) as file:
        assert lowbit.load_tokenizer(file).encode(text) == t.encode(text)


SPECIAL_KEYS = ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask", "eot", "eom")


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
@pytest.mark.parametrize("key", SPECIAL_KEYS)
def test_ids_that_no_token_has_are_ignored(tmp_path, caplog, name, key):
    """As if the key were not there, which llama.cpp does as well; real files have the largest number for "none"."""
    key = f"tokenizer.ggml.{key}_token_id"
    fields = {**metadata(name), "general.architecture": "x"}
    fields.pop(key, None)
    expected = from_metadata(fields)
    for value in (np.uint32(0xFFFFFFFF), np.int32(-1), np.uint32(len(fields["tokenizer.ggml.tokens"]))):
        caplog.clear()
        lowbit.gguf.write(tmp_path / "x.gguf", {**fields, key: value}, {})
        tokenizer = lowbit.load_tokenizer(tmp_path / "x.gguf")
        assert [record.getMessage() for record in caplog.records] == tokenizer.notes
        assert len(tokenizer.notes) == 1
        assert tokenizer.notes[0].startswith(f"{key} is {value}, but the ids are 0 to ")
        assert tokenizer.special_tokens == expected.special_tokens
        assert (tokenizer.eos_ids, tokenizer.encode("a")) == (expected.eos_ids, expected.encode("a"))
    for wrong in ("2", 1.5, True, -2, np.array([2]), ["2"]):
        with pytest.raises(lowbit.FormatError, match=key):
            from_metadata({**fields, key: wrong})


def test_ends_that_a_file_keeps_under_our_key():
    fields = metadata("gpt-2")
    key = "lowbit.tokenizer.eos_token_ids"
    ends = from_metadata(fields).eos_ids
    assert from_metadata({**fields, key: np.uint32([7, 5])}).eos_ids == ends | {5, 7}
    for wrong in (7, "7", ["7"], [7.5], np.float32([7]), np.int32([-1]), np.uint32([1 << 31]), np.uint32([[7]])):
        with pytest.raises(lowbit.FormatError, match=key):
            from_metadata({**fields, key: wrong})


def test_no_pre_tokenizer_is_the_default_one():
    """llama.cpp's choice, with a warning as well."""
    fields = metadata("gpt-2")
    fields.pop("tokenizer.ggml.pre")
    tokenizer = from_metadata(fields)
    named = from_metadata({**fields, "tokenizer.ggml.pre": "default"})
    assert len(tokenizer.notes) == 1
    assert tokenizer.notes[0].startswith("tokenizer.ggml.pre is missing")
    assert named.notes == []
    assert tokenizer.encode("don't 12345") == named.encode("don't 12345")


GGUF_FAULTS = {
    "no model": ({"tokenizer.ggml.model": None}, "FormatError: tokenizer.ggml.model: expected a string"),
    "model of another kind": ({"tokenizer.ggml.model": 7}, "FormatError: .*found int"),
    "unknown model": (
        {"tokenizer.ggml.model": "rwkv"},
        "UnsupportedError: tokenizer.ggml.model: unsupported model 'rwkv'",
    ),
    "unknown pre-tokenizer": ({"tokenizer.ggml.pre": "x"}, "UnsupportedError: tokenizer.ggml.pre"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "FormatError: .*found nothing"),
    "empty tokens": ({"tokenizer.ggml.tokens": []}, "FormatError: .*at least one"),
    "tokens are numbers": ({"tokenizer.ggml.tokens": np.arange(3)}, "FormatError: .*array of strings"),
    "too few types": (
        {"tokenizer.ggml.token_type": np.ones(3, np.int32)},
        "FormatError: .*one for each token, found 3",
    ),
    "types are text": ({"tokenizer.ggml.token_type": ["a"]}, "FormatError: .*array of numbers"),
    "merges missing": ({"tokenizer.ggml.merges": None}, "FormatError: tokenizer.ggml.merges is missing.*convert"),
    "merge of unknown tokens": ({"tokenizer.ggml.merges": ["\u4f60 \u597d"]}, "FormatError: .*index 0"),
    "merge of one token": ({"tokenizer.ggml.merges": ["a"]}, "FormatError: .*index 0"),
    "bos negative": ({"tokenizer.ggml.bos_token_id": -2}, "FormatError: .*bos_token_id"),
    "eos is text": ({"tokenizer.ggml.eos_token_id": "2"}, "FormatError: .*integer"),
    "add_bos is text": ({"tokenizer.ggml.add_bos_token": "yes"}, "FormatError: .*boolean"),
    "template is a number": ({"tokenizer.chat_template": 1}, "FormatError: tokenizer.chat_template"),
}


def matches(message: str, error: str) -> bool:
    """True if `error` begins as `message` says; shows it otherwise."""
    assert re.match(message, error), error
    return True


def error_of(function, *args) -> str:
    with pytest.raises(lowbit.Error) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_broken_gguf_metadata(fault):
    changes, message = GGUF_FAULTS[fault]
    fields = {key: value for key, value in {**metadata("gpt-2"), **changes}.items() if value is not None}
    assert matches(message, error_of(from_metadata, fields))


def test_broken_sentencepiece_metadata():
    fields = metadata("llama-spm")
    count = len(fields["tokenizer.ggml.tokens"])
    for changes, message in (
        ({"tokenizer.ggml.scores": np.full(count, np.nan, np.float32)}, "FormatError: .*NaN at index 0"),
        ({"tokenizer.ggml.scores": np.zeros(1, np.float32)}, "FormatError: .*one for each token, found 1"),
        ({"tokenizer.ggml.scores": None}, "FormatError: .*missing"),
        ({"tokenizer.ggml.tokens": ["a"] * count}, "FormatError: .*'a' occurs more than once"),
        ({"tokenizer.ggml.tokens": [*fields["tokenizer.ggml.tokens"][:-1], "b" * 5000]}, "FormatError: .*at most 1024"),
    ):
        broken = {key: value for key, value in {**fields, **changes}.items() if value is not None}
        assert matches(message, error_of(from_metadata, broken))


def folder_with(path: Path, **files: str) -> Path:
    for name, content in files.items():
        stem, _, extension = name.rpartition("_")
        (path / f"{stem}.{extension}").write_text(content)
    return path


TINY = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FormatError: .*tokenizer.json"),
        ("{", "FormatError"),
        ("[" * 100000, "FormatError"),
        (json.dumps({**TINY, "model": {**TINY["model"], "merges": ["x y"]}}), "FormatError: .*: tokenizer: "),
        (json.dumps({**TINY, "model": {**TINY["model"], "vocab": {"a": -1}}}), "FormatError"),
        (json.dumps({**TINY, "model": {"type": "Nonsense"}}), "FormatError"),
        (json.dumps({**TINY, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                                               "invert": False}}), "FormatError"),
        (json.dumps({**TINY, "added_tokens": [{"id": 1 << 40}]}), "FormatError"),
    ],
)  # fmt: skip
def test_broken_tokenizer_json(tmp_path, content, message):
    assert matches(message, error_of(lowbit.load_tokenizer, folder_with(tmp_path, tokenizer_json=content)))


def test_broken_folders(tmp_path):
    assert matches("FileError", error_of(lowbit.load_tokenizer, tmp_path / "missing"))
    assert matches("UnsupportedError: .*no tokenizer.json, tokenizer.model", error_of(lowbit.load_tokenizer, tmp_path))
    folder_with(tmp_path, tokenizer_json=json.dumps(TINY))
    for config in ("[]", "{", "[" * 100000, '{"chat_template": 5}', '{"chat_template": [{"name": "x"}]}'):
        folder_with(tmp_path, tokenizer_config_json=config)
        assert matches("FormatError: .*tokenizer_config.json", error_of(lowbit.load_tokenizer, tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "\xff"}')
    assert matches("FormatError: .*: tokenizer: ", error_of(lowbit.load_tokenizer, tmp_path))


def test_line_ends_of_a_template(tmp_path):
    """As Python reads a text, and with it transformers."""
    folder_with(tmp_path, tokenizer_json=json.dumps(TINY))
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"{{ messages }}\r\n\n a\rb\r\r\n")
    assert lowbit.load_tokenizer(tmp_path).chat_templates == {"default": path.read_text(encoding="utf-8")}


def test_wrong_arguments(tokenizers):
    t = tokenizers["bard"]
    for call in (
        lambda: t.encode(b"x"),
        lambda: t.encode("\ud800"),
        lambda: t.decode([t.vocab_size]),
        lambda: t.decode([-1]),
        lambda: t.decode([1 << 80]),
        lambda: t.decode(["a"]),
        lambda: t.token(-1),
        lambda: t.id("no such token"),
        lambda: t.id(5),
        lambda: t.stream().push(1 << 40),
        lambda: t.apply_chat_template([]),
        lambda: lowbit.load_tokenizer(5),
    ):
        error_of(call)
    assert t.decode(np.array([5, 6])) == t.decode([5, 6])


def test_ids_that_only_the_model_has_decode_to_nothing(tmp_path):
    folder_with(tmp_path, tokenizer_json=json.dumps(TINY), config_json='{"vocab_size": 8, "eos_token_id": [1, 7]}')
    t = lowbit.load_tokenizer(tmp_path)
    assert t.vocab_size == 8
    assert t.eos_ids == {1, 7}
    assert t.decode([0, 7]) == "a"
    assert t.stream().push(7) == ""
    error_of(t.decode, [8])
