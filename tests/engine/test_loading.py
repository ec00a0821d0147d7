"""What a fresh program loads, makes and keeps when it runs a GGUF file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from program import check

import lowbit
from lowbit import gguf
from lowbit.gguf.reading import strings
from lowbit.tensors.qtensor import bytes_of

BARD = Path(str(files("lowbit") / "data" / "bard"))
T = "tokenizer.ggml."
#: As many as Gemma has.
NUM_TOKENS = 262_144


@pytest.fixture(scope="module")
def bard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "bard.gguf"
    lowbit.convert(BARD, path, format="Q4_0", verify=False)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece vocabulary of words of one to three letters."""
    path = tmp_path_factory.mktemp("gguf") / "large.gguf"
    alphabet = [chr(0x4E00 + i) for i in range(80)]
    pairs = [a + b for a in alphabet for b in alphabet]
    words = [pair + c for pair in pairs for c in alphabet]
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *alphabet, *pairs, *words][:NUM_TOKENS]
    metadata = {
        "general.architecture": "llama",
        T + "model": "llama",
        T + "tokens": tokens,
        T + "scores": -np.arange(NUM_TOKENS, dtype=np.float32),
        T + "token_type": np.array([2, 3, 3] + [1] * (NUM_TOKENS - 3), np.int32),
    }
    gguf.write(path, metadata, {})
    return path


def test_the_first_token_needs_no_tokenizer_and_no_writer(bard: Path) -> None:
    code = """
import sys, numpy, ml_dtypes
theirs = set(sys.modules)
import lowbit
lowbit.load(sys.argv[1]).logits([1])
print(*sys.modules.keys() - theirs)
"""
    loaded = set(check(code, bard).split())
    rooms = {f"lowbit.{room}" for room in ("conversion", "quantization", "evaluate", "export", "onnx", "chat", "cli")}
    modules = {f"lowbit.{name}" for name in ("gguf.editing", "gguf.comparing", "gguf.writing", "hf.hub", "hf.lora")}
    others = {"tokenizers", "huggingface_hub", "jinja2", "rich", "typer", "zipfile", "logging", "secrets"}
    assert "lowbit.engine.model" in loaded
    assert not loaded & (rooms | modules | others)


def test_a_vocabulary_is_not_a_list_of_python_strings(large: Path) -> None:
    code = """
import sys, lowbit
lowbit.load_tokenizer(sys.argv[1]).encode("x")
before = sys.getallocatedblocks()
tokenizer = lowbit.load_tokenizer(sys.argv[1])
ids = tokenizer.encode("\u4e00\u4e01\u4e02")
print(sys.getallocatedblocks() - before, tokenizer.vocab_size, *ids)
"""
    blocks, vocab_size, *ids = map(int, check(code, large).split())
    assert (vocab_size, ids) == (NUM_TOKENS, [1, 3, 4 + 80 + 6400 + 80 + 2])
    assert blocks < 1000


def test_the_tokenizer_is_that_of_the_opened_file(bard: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bard.read_bytes())
    model = lowbit.load(path)
    with gguf.open(bard) as file:
        gguf.write(tmp_path / "other.gguf", {**file.metadata, T + "add_bos_token": True, T + "bos_token_id": 7}, {})
    (tmp_path / "other.gguf").replace(path)
    assert model.tokenizer.encode("Hello") == lowbit.load_tokenizer(bard).encode("Hello")
    assert lowbit.load_tokenizer(path).encode("Hello")[0] == 7


def test_errors_of_the_tokenizer_name_the_file(bard: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with gguf.open(bard) as file:
        keys = {key: value for key, value in file.metadata.items() if not key.startswith(T)}
        gguf.write(path, {**keys, "qwen3.vocab_size": file.infos["token_embd.weight"].shape[0]}, file.tensors)
    with pytest.raises(lowbit.FormatError, match=r"model\.gguf: tokenizer\.ggml\.model") as caught:
        _ = lowbit.load(path).tokenizer
    assert caught.value.path == str(path)


def test_an_array_of_strings_of_a_file(large: Path) -> None:
    with gguf.open(large) as file:
        for mapping in (file.metadata, dict(file.metadata)):
            found = strings(mapping, T + "tokens")
            assert found is not None
            assert len(found) == NUM_TOKENS
            assert [strings(mapping, T + key) for key in ("scores", "model", "no such")] == [None] * 3
    assert strings({"a": ["b", 1]}, "a") is None


@pytest.mark.parametrize("source", ["gguf", "checkpoint"])
def test_weights_in_memory(source: str, bard: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bard.read_bytes())
    where = {"gguf": path, "checkpoint": BARD}[source]
    counts: list[tuple[str, int, int | None]] = []
    mapped = lowbit.load(where)
    copied = lowbit.load(where, mmap=False, progress=lambda p: counts.append((p.title, p.done, p.total)))
    assert counts[-1][1] == counts[-1][2] == len(copied.weights)
    expected = mapped.logits([1, 2, 3])
    assert np.array_equal(copied.logits([1, 2, 3]), expected)
    for name, weight in mapped.weights.items():
        copy = copied.weights[name]
        assert type(copy) is type(weight)
        assert (copy.shape, copy.dtype) == (weight.shape, weight.dtype)
        data, copied_data = bytes_of(weight), bytes_of(copy)
        assert not np.shares_memory(data, copied_data)
        assert copied_data.ctypes.data % 64 == 0
        assert np.asarray(copied_data).tobytes() == np.asarray(data).tobytes()
    if source == "gguf":
        path.write_bytes(b"")  # overwritten in place
        assert np.array_equal(copied.logits([1, 2, 3]), expected)
        with pytest.raises(lowbit.FileError):
            mapped.logits([1, 2, 3])


if Path("/proc/self/status").exists():

    def test_a_large_vocabulary_takes_little_memory(large: Path) -> None:
        """Python, NumPy and the tokenizer together: at most 50 MB that are not mapped files."""
        code = """
import sys, lowbit
lowbit.load_tokenizer(sys.argv[1]).encode("\\u4e00\\u4e01\\u4e02")
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""
        assert int(check(code, large)) * 1024 < 50e6

    def test_weights_in_memory_are_the_process_s_own_and_may_have_large_pages(bard: Path) -> None:
        model = lowbit.load(bard, mmap=False)
        address = min(bytes_of(weight).ctypes.data for weight in model.weights.values())
        permissions, flags = "", []
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                begin, end = (int(number, 16) for number in words[0].split("-"))
                inside = begin <= address < end
                permissions = words[1] if inside else permissions
            elif inside and words[0] == "VmFlags:":
                flags = words[1:]
        assert permissions == "rw-p"
        assert ("hg" in flags) == Path("/sys/kernel/mm/transparent_hugepage").exists()
