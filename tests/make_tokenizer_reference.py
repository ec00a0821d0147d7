"""Writes tests/data/tokenizers.json.xz: small vocabularies and the ids that llama.cpp gives.

    make_tokenizer_reference.py MODELS LLAMA_TOKENIZE

MODELS is the folder `models` of a llama.cpp checkout (MIT), with ggml-vocab-*.gguf and their .inp (texts) and .out
(ids); LLAMA_TOKENIZE its program of that name, asked for the ids of TEXTS. Vocabularies are cut to the tokens that the
texts can reach: dropping a token that is no part of any text cannot change the ids of one. The others are renumbered,
the ids too.
"""

import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

VOCABS = ("gpt-2", "qwen2", "llama-bpe", "llama-spm", "phi-3")
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
    reader = GGUFReader(path)
    names = [name for name in reader.fields if name.startswith(("tokenizer.", "general.name"))]
    return {name: reader.fields[name].contents() for name in names}


def llama_ids(program: str, vocab: Path, text: str, special: bool) -> list[int]:
    """Ids of `text` by llama.cpp: with BOS and special tokens, or as plain text."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        plain = [] if special else ["--no-bos", "--no-parse-special"]
        command = [program, "-m", str(vocab), "-f", file.name, "--ids", "--log-disable", *plain]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def reduced(metadata: dict, texts: list[str], used: set[int]) -> tuple[dict, dict[int, int]]:
    """`metadata` with the tokens that are part of `texts`, and the new id of each old one."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merged = metadata["tokenizer.ggml.model"] == "gpt2"
    shown = [byte_text(text) if merged else f" {text}".replace(" ", "\u2581") for text in texts]
    whole = "\n".join(shown)
    kept = [
        i
        for i, token in enumerate(tokens)
        if i in used
        or types[i] in (2, 3, 6)
        or (types[i] in (1, 4) and (token in whole or (merged and len(token) == 1)))
    ]
    new = {old: i for i, old in enumerate(kept)}
    names = {tokens[i] for i in kept}
    small = {name: value for name, value in metadata.items() if not isinstance(value, list)}
    for name in ("tokens", "token_type", "scores"):
        if (values := metadata.get(f"tokenizer.ggml.{name}")) is not None:
            small[f"tokenizer.ggml.{name}"] = [values[i] for i in kept]
    if merged:
        merges = metadata["tokenizer.ggml.merges"]
        small["tokenizer.ggml.merges"] = [m for m in merges if m.replace(" ", "") in names and {*m.split(" ")} <= names]
    for name, value in small.items():
        if name.endswith("_token_id"):
            small[name] = new[value]
    return small, new


def main() -> None:
    """Write the file and print its size."""
    models, program = Path(sys.argv[1]), sys.argv[2]
    result = {}
    for name in VOCABS:
        path = models / f"ggml-vocab-{name}.gguf"
        metadata = fields(path)
        texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
        lines = path.with_suffix(".gguf.out").read_text().split("\n")[: len(texts)]
        cases = [[text, False, [int(i) for i in line.split()]] for text, line in zip(texts, lines, strict=True)]
        cases += [
            [text, special, llama_ids(program, path, text, special)] for text in TEXTS for special in (False, True)
        ]
        ends = [metadata[key] for key in metadata if key.endswith("_token_id")]
        small, new = reduced(metadata, [case[0] for case in cases], {i for case in cases for i in case[2]} | {*ends})
        result[name] = {"metadata": small, "cases": [[t, s, [new[i] for i in ids]] for t, s, ids in cases]}
        print(f"{name}: {len(new)} tokens, {len(cases)} cases")
    out = Path(__file__).parent / "data" / "tokenizers.json.xz"
    out.write_bytes(lzma.compress(json.dumps(result, ensure_ascii=False).encode(), preset=9))
    print(f"{out}: {out.stat().st_size} bytes")


main()
