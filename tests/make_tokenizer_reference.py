"""Writes tests/data/tokenizers.json.xz: small vocabularies and the ids that llama.cpp gives.

    make_tokenizer_reference.py MODELS LIBLLAMA

MODELS is the folder `models` of a llama.cpp checkout (MIT), with ggml-vocab-*.gguf and their .inp (texts) and .out
(ids); LIBLLAMA its libllama.so, asked for the ids of TEXTS. Vocabularies are cut to the tokens that the
texts can reach: dropping a token that is no part of any text cannot change the ids of one. The others are renumbered,
the ids too. The unigram model loses its table of characters (it would be most of the file), so its ids are asked for
once more, of the cut-down vocabulary.
"""

import re
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from llama_vocabulary import LlamaVocabulary
from stored import store

import lowbit
from lowbit.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
SEPARATOR = "\n__ggml_vocab_test__\n"
# Beside llama.cpp's own texts: special tokens in the text, ties between merges, scripts, code, odd white space.
TEXTS = [
    "",
    " ",
    "Hello",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|>a<|eot_id|><|end_of_text|>b",
    "<s>x</s> <unk> <s>\n\n y",
    "<|user|>\nWho?<|end|>\n<|assistant|>\n",
    "<|endoftext|> <|endoftext|>  after",
    "literal <0x0A> and \u2581 marks\u2581\u2581",
    "aaaaaaaaaaaaaaaaaaaaaaa abababababababab =-=-=-=-=-=-=-",
    "\t\tdef f(x):\n\t\t\treturn {'k': x**2}  # 12345.678\r\n\r\n",
    "for (int i = 0; i < n; ++i) { s += a[i]; }\n",
    "Größe, naïve œuvre, straße; Привет, мир! Καλημέρα κόσμε. გამარჯობა",
    "你好\uff0c世界。こんにちは世界 カタカナ 안녕하세요 세계 \u3000全角\uff11\uff12\uff13",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก Xin chào",
    "😀🎉👨\u200d👩\u200d👧\u200d👦🇩🇪 ½ ² Ⅷ ٣٤٥ e\u0301 ﬁ ǅ",
    "\u0000\u0001\u007f\u0085\u00a0\u2028\ufeff\ufffd\U0010ffff",
    "it's IT'S we'll WE'LL don'T 'sx ''s",
    "1 12 123 1234 12345 123456 1,234,567.89 0x7fff",
    "trailing   \n   \n\n   \t ",
]


def byte_text(text: str) -> str:
    """Text as byte-level BPE writes it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    table = {b: chr(b) for b in plain} | {b: chr(0x100 + i) for i, b in enumerate(rest)}
    return "".join(table[b] for b in text.encode())


def fields(path: Path) -> dict:
    """The tokenizer metadata of a GGUF file."""
    with lowbit.gguf.open(path) as file:
        names = [name for name in file.metadata if name.startswith(("tokenizer.", "general.name")) and name != CHARSMAP]
        values = {name: file.metadata[name] for name in names}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def spelled(texts: list[str], model: str) -> str:
    """All that the tokens of a vocabulary can be part of."""
    if model == "gpt2":
        return "\n".join(map(byte_text, texts))
    marked = [f"{SPACE}{text}".replace(" ", SPACE) for text in texts]
    if model == "bert":  # the file marks where words begin, and accents are stripped
        plain = [
            "".join(c for c in unicodedata.normalize("NFD", t.lower()) if not unicodedata.combining(c)) for t in texts
        ]
        return "\n".join([*plain, *(re.sub(r"(\w+|[^\w\s])", SPACE + r"\1", t) for t in plain), *marked])
    return "\n".join(marked)


def reduced(metadata: dict, texts: list[str], used: set[int]) -> tuple[dict, dict[int, int]]:
    """`metadata` with the tokens that are part of `texts`, and the new id of each old one."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    model = metadata["tokenizer.ggml.model"]
    merged = model == "gpt2"
    whole = spelled(texts, model)
    reserved = (USER_DEFINED,) if model == "gemma4" else (CONTROL, USER_DEFINED)  # thousands of unused ones
    kept = [
        i
        for i, token in enumerate(tokens)
        if i in used
        or types[i] in (UNKNOWN, BYTE)
        or (types[i] in reserved and "unused" not in token and "reserved" not in token)
        or (types[i] in (NORMAL, USER_DEFINED) and (token in whole or (merged and len(token) == 1)))
    ]
    new = {old: i for i, old in enumerate(kept)}
    names = {tokens[i] for i in kept}
    small = {name: value for name, value in metadata.items() if not isinstance(value, list)}
    for name in ("tokens", "token_type", "scores"):
        if (values := metadata.get(f"tokenizer.ggml.{name}")) is not None:
            small[f"tokenizer.ggml.{name}"] = [values[i] for i in kept]
    if (merges := metadata.get("tokenizer.ggml.merges")) is not None:
        parts = [(m, m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]) for m in merges]
        small["tokenizer.ggml.merges"] = [m for m, a, b in parts if {a, b, a + b} <= names]
    for name, value in small.items():
        if name.endswith("_token_id"):
            small[name] = new[value]
    return small, new


def write_vocabulary(path: Path, metadata: dict) -> None:
    """A GGUF file that llama.cpp takes for a vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        name = key.rsplit(".", 1)[1]
        if name == "token_type":
            writer.add_token_types(value)
        elif name == "scores":
            writer.add_token_scores(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def given_cases(path: Path) -> list[tuple[str, bool, list[int]]]:
    """(text, with BOS and special tokens, ids) of the texts that llama.cpp keeps beside a vocabulary."""
    given = Path(f"{path}.inp")
    if not given.is_file():
        return []
    texts = given.read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().split("\n")[: len(texts)]
    return [(text, False, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


def main() -> None:
    """Write the file and print its size."""
    models, library = Path(sys.argv[1]), sys.argv[2]
    result = {}
    for path in sorted(models.glob("ggml-vocab-*.gguf")):
        name = path.stem.removeprefix("ggml-vocab-")
        metadata = fields(path)
        if metadata["tokenizer.ggml.model"] == "bert":  # these stand for keys that the file lacks
            metadata["tokenizer.ggml.bos_token_id"] = 101
        vocabulary = LlamaVocabulary(library, path)
        cases = given_cases(path)
        cases += [(text, special, vocabulary.encode(text, special)) for text in TEXTS for special in (False, True)]
        vocabulary.close()
        ends = [value for key, value in metadata.items() if key.endswith("_token_id")]
        small, new = reduced(metadata, [case[0] for case in cases], {i for case in cases for i in case[2]} | {*ends})
        cases = [(text, special, [new[i] for i in ids]) for text, special, ids in cases]
        with tempfile.TemporaryDirectory() as folder:
            cut = Path(folder) / "cut.gguf"
            write_vocabulary(cut, small)
            vocabulary = LlamaVocabulary(library, cut)
            again = [(text, special, vocabulary.encode(text, special)) for text, special, _ in cases]
            vocabulary.close()
        changed = [case[0] for case, other in zip(cases, again, strict=True) if case != other]
        result[name] = {"metadata": small, "cases": again}
        print(f"{name}: {len(new)} tokens, {len(cases)} cases, {len(changed)} changed {changed[:2]}", flush=True)
    store("tokenizers", result)


main()
