"""What files, arguments and other packages say appears in messages as one printable line of bounded length."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import edit_json, make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.base import quoting
from lowbit.cli.execution import execute

#: Escapes and line breaks, a text that turns its direction, one that is long, one of long characters, and no Unicode.
HOSTILE = {
    "escapes": "\x1b]0;x\x07\x1b[2J\r\n\x00\x9b31m",
    "directions": "a\u202e\u2066b\u200b\u2028\ufeff",
    "long": "x" * 100_000,
    "wide": "\U0001f600" * 30_000,
    "surrogate": "a\ud800\udc80",
}
#: A message has at most this many bytes, as one that a user sees on the screen has.
MOST = 500

Place = Callable[[Path, str], Any]


def check(message: str) -> None:
    assert message.isprintable(), message
    assert len(message.encode()) <= MOST, message


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what is made of it."""
    folder = tmp_path_factory.mktemp("messages")
    make_checkpoint(folder / "m", layers=1, hidden=64, ffn=64, head_dim=16)
    lowbit.convert(folder / "m", folder / "m.gguf", "F32", verify=False, provenance=False)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def as_name(text: str) -> str:
    """The same for names in an archive or a folder, which have no NUL and no surrogates."""
    return text.replace("\0", "").encode(errors="replace").decode()


def gguf_with(folder: Path, **keys: Any) -> Path:
    """The GGUF file with keys changed, dots written as two underscores, and those of None removed."""
    changes = {name.replace("__", "."): value for name, value in keys.items()}
    with lowbit.gguf.open(folder / "m.gguf") as file:
        metadata = {name: file.typed(name) for name in file.metadata} | changes
        lowbit.gguf.write(
            folder / "x.gguf", {name: v for name, v in metadata.items() if v is not None}, dict(file.tensors)
        )
    return folder / "x.gguf"


def templated(folder: Path, template: str) -> str:
    return lowbit.load_tokenizer(gguf_with(folder, tokenizer__chat_template=template)).apply_chat_template([])


def tokens_of(folder: Path) -> list[str]:
    with lowbit.gguf.open(folder / "m.gguf") as file:
        return list(file.metadata["tokenizer.ggml.tokens"])


def converted(folder: Path, **options: Any) -> Any:
    return lowbit.convert(folder / "m", folder / "o.gguf", "F32", verify=False, provenance=False, **options)


def with_config(folder: Path, **changes: Any) -> Any:
    edit_json(folder / "m" / "config.json", changes)
    return converted(folder)


def with_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Any:
    value = json.loads((folder / "m" / "tokenizer.json").read_text())
    change(value)
    write_json(folder / "m" / "tokenizer.json", value)
    return converted(folder)


def with_header(folder: Path, header: Any) -> Any:
    text = json.dumps(header).encode()
    (folder / "m" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return converted(folder)


def with_tensor(folder: Path, name: str) -> Any:
    return with_header(folder, {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})


def adapted(folder: Path, config: dict[str, Any], names: list[str]) -> Any:
    (folder / "a").mkdir()
    write_json(folder / "a" / "adapter_config.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config})
    write_safetensors(folder / "a" / "adapter_model.safetensors", {n: np.ones((1, 1), np.float32) for n in names})
    return converted(folder, lora=folder / "a")


def npz_with(folder: Path, name: str, format: str | None) -> Any:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        arrays = {f"{name}.data": np.zeros((1, 4), np.uint8)}
        arrays |= {} if format is None else {f"{name}.format": np.array(format)}
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    return lowbit.load_npz(folder / "x.npz")


def legacy_imatrix(folder: Path, name: str) -> Any:
    data = name.encode("utf-8", "surrogatepass")
    (folder / "i.dat").write_bytes(struct.pack("<ii", 1, len(data)) + data + struct.pack("<ii", 1, 1000))
    return lowbit.imatrix.read(folder / "i.dat")


def type_file(folder: Path, text: str) -> Any:
    (folder / "types").write_text(text, encoding="utf-8", errors="surrogatepass")
    return converted(folder, tensor_type_file=folder / "types")


def arch_file(folder: Path, text: str) -> Any:
    (folder / "own.py").write_text(f"raise ValueError({text!r})")
    return lowbit.arch.register(folder / "own.py")


def indexed(folder: Path, weight_map: dict[str, str]) -> Any:
    (folder / "m" / "model.safetensors").rename(folder / "m" / "model-00001-of-00001.safetensors")
    write_json(folder / "m" / "model.safetensors.index.json", {"weight_map": weight_map})
    return converted(folder)


FLOATS = np.ones((2, 256), np.float32)

#: Where a text of others comes in, and words that the message still has. The file's or argument's text is `t`.
PLACES: dict[str, tuple[Place, str]] = {
    "key to write": (lambda f, t: lowbit.gguf.write(f / "x.gguf", {t: object()}, {}), "expected"),
    "tensor to write": (lambda f, t: lowbit.gguf.write(f / "x.gguf", {}, {t: np.array("a")}), "expected"),  # type: ignore[dict-item]
    "name of a tensor": (lambda f, t: lowbit.gguf.write(f / "x.gguf", {}, {t * 9: FLOATS}), "63 bytes"),
    "key to unset": (lambda f, t: lowbit.gguf.edit(f / "m.gguf", unset=[t]), "key"),
    "value to set": (lambda f, t: lowbit.gguf.edit(f / "m.gguf", {"general.file_type": t}), "general.file_type"),
    "architecture": (lambda f, t: lowbit.load(gguf_with(f, general__architecture=t)), "arch"),
    "vocabulary": (lambda f, t: lowbit.load_tokenizer(gguf_with(f, tokenizer__ggml__model=t)), "expected one of"),
    "pre-tokenizer": (lambda f, t: lowbit.load_tokenizer(gguf_with(f, tokenizer__ggml__pre=t)), "unknown pre-"),
    "token": (
        lambda f, t: lowbit.load_tokenizer(gguf_with(f, tokenizer__ggml__tokens=[t, t, *tokens_of(f)[2:]])),
        "more than once",
    ),
    "merge": (lambda f, t: lowbit.load_tokenizer(gguf_with(f, tokenizer__ggml__merges=[t])), "expected two tokens"),
    "id": (lambda f, t: lowbit.load_tokenizer(gguf_with(f, tokenizer__ggml__bos_token_id=t)), "expected an integer"),
    "template's syntax": (lambda f, t: templated(f, "{% " + t), "chat template"),
    "template's own words": (lambda f, t: templated(f, "{{ raise_exception(" + repr(t) + ") }}"), "refused"),
    "template's name": (
        lambda f, t: lowbit.load_tokenizer(f / "m.gguf").apply_chat_template([], chat_template=t),
        "chat template",
    ),
    "rotation": (lambda f, t: lowbit.load(gguf_with(f, qwen3__rope__scaling__type=t)), "expected none, linear"),
    "number": (lambda f, t: lowbit.load(gguf_with(f, qwen3__block_count=t)), "expected an integer"),
    "tensor": (with_tensor, "not part of"),
    "type of a tensor": (
        lambda f, t: with_header(f, {"a": {"dtype": t, "shape": [0], "data_offsets": [0, 0]}}),
        "unknown type",
    ),
    "shape": (lambda f, t: with_header(f, {t: {"dtype": "F32", "shape": t, "data_offsets": [0, 0]}}), "expected"),
    "file in the index": (lambda f, t: indexed(f, {"a": f"{t}/"}), "expected a plain file name"),
    "tensor in the index": (lambda f, t: indexed(f, {t: "model-00001-of-00001.safetensors"}), "index"),
    "class": (lambda f, t: with_config(f, architectures=[t]), "is unknown"),
    "activation": (lambda f, t: with_config(f, hidden_act=t), "expected silu in the qwen3 architecture"),
    "size": (lambda f, t: with_config(f, vocab_size=t), "expected a positive integer"),
    "rope_type": (lambda f, t: with_config(f, rope_parameters={"rope_type": t}), "expected default"),
    "layer types": (lambda f, t: with_config(f, layer_types=[t], use_sliding_window=True), "layer_types"),
    "quantization": (lambda f, t: with_config(f, quantization_config={"quant_method": t}), "quantized"),
    "added token": (
        lambda f, t: with_tokenizer(f, lambda j: j["added_tokens"].append({"id": t, "content": "a"})),
        "token id",
    ),
    "token's id": (lambda f, t: with_tokenizer(f, lambda j: j["model"]["vocab"].update(a=t)), "token id"),
    "tokens of one id": (lambda f, t: with_tokenizer(f, lambda j: j["model"]["vocab"].update({t: 5})), "the same id"),
    "adapter's kind": (lambda f, t: adapted(f, {"peft_type": t}, []), "LORA"),
    "adapter's tensor": (lambda f, t: adapted(f, {}, [t]), "adapter_model.safetensors: tensor"),
    "npz tensor": (lambda f, t: npz_with(f, as_name(t)[:9999], None), "only one of data and format"),
    "npz format": (lambda f, t: npz_with(f, "a", t.rstrip("\0")), "format"),
    "npz name": (lambda f, t: lowbit.QTensor.load(f / "m.gguf", t), "npz"),
    "imatrix": (legacy_imatrix, "not an importance matrix"),
    "imatrix tensor": (
        lambda f, t: lowbit.imatrix.load_imatrix({t: np.ones((1, 1))}),
        "expected finite, non-negative numbers in one dimension",
    ),
    "pattern": (lambda f, t: converted(f, tensor_types=[("(" + t, "F16")]), "tensor_types"),
    "pattern of nothing": (lambda f, t: lowbit.quantize_file(
        f / "m.gguf", f / "o.gguf", "Q8_0", tensor_types=[("^" + re.escape(t[:99]) + "$^", "F16")]
    ), "matches no tensor"),
    "pattern's format": (lambda f, t: converted(f, tensor_types=[("a", t)]), "format"),
    "pattern in a file": (type_file, "types: "),
    "override's key": (lambda f, t: converted(f, override_kv={t: [1]}), "expected bool, int, float or str"),
    "split size": (lambda f, t: converted(f, split_max_size=t), "expected a number of bytes"),
    "part of a name": (
        lambda f, t: converted(f, imatrix={"a": np.ones(1)}, include_weights=[t]),
        "no name in the importance matrix contains",
    ),
    "format": (lambda f, t: lowbit.quantize(FLOATS, t), "format"),
    "mix": (lambda f, t: lowbit.convert(f / "m", f / "o.gguf", t, verify=False, provenance=False), "expected"),
    "kind of product": (lambda f, t: lowbit.matmul(FLOATS, FLOATS, compute=t), "compute"),
    "instruction set": (lambda f, t: lowbit.simd.force(t), "SIMD"),
    "path": (lambda f, t: lowbit.gguf.open(str(f / "missing") + as_name(t)[:60]), "cannot open"),
    "Python file": (arch_file, "ValueError"),
    "token to look up": (lambda f, t: lowbit.load_tokenizer(f / "m.gguf").id(t + "!"), "in the vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_errors(folder: Path, place: str, kind: str) -> None:
    use, words = PLACES[place]
    with pytest.raises(lowbit.Error) as caught:
        use(folder, HOSTILE[kind])
    check(str(caught.value))
    if kind != "surrogate":  # which no UTF-8 has: often that is the error
        assert words in str(caught.value)


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """What a command prints, both streams, where every line is fit for a terminal."""
    execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).split("\n")
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < 4 * MOST, line
    return lines


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "surrogate"])
def test_tables_notes_and_changes(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Names and values of a file in what the commands print; --json gives them as they are."""
    text = HOSTILE[kind][:9999]  # keys have 65,535 bytes at most
    lowbit.gguf.edit(folder / "m.gguf", {text: text, "a.list": [text], "tokenizer.chat_template": "{% " + text})
    for command in (["metadata", "m.gguf"], ["inspect", "m.gguf"], ["verify", "m.gguf", "m"]):
        assert len(lines_of(capsys, *(folder / a if a.startswith("m") and a != "metadata" else a for a in command))) > 4
    shutil.copy(folder / "m.gguf", folder / "n.gguf")
    lowbit.gguf.edit(folder / "n.gguf", {text: f"{text}b"}, ["a.list"])
    lines_of(capsys, "diff", folder / "m.gguf", folder / "n.gguf")
    lines_of(capsys, "metadata", folder / "n.gguf", "set", text.replace("\0", "0"), text.replace("\0", "0"))
    lines_of(capsys, "metadata", folder / "n.gguf", "unset", text.replace("\0", "1"))
    (folder / "m" / "README.md").write_text(f"---\na: [{text}\n---\n", encoding="utf-8")
    edit_json(folder / "m" / "config.json", {"auto_map": {text: text}})
    assert any("note: README.md" in line for line in lines_of(capsys, "convert", folder / "m", folder / "c.gguf"))
    execute(["metadata", str(folder / "m.gguf"), "--json"])
    assert text in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", HOSTILE)
def test_arguments_of_commands(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text = as_name(HOSTILE[kind])[:9999]
    for arguments in (
        ["convert", folder / "m", folder / "o.gguf", "--format", text],
        ["convert", folder / "m", folder / "o.gguf", "--override-kv", text],
        ["convert", folder / "m", folder / "o.gguf", "--tensor-type", f"({text}=F16"],
        ["convert", folder / "m", folder / "o.gguf", f"--{text}"],
        ["run", folder / "m.gguf", "the", "--compute", text],
        ["run", folder / "m.gguf", "the", "--context", text],
        ["metadata", folder / "m.gguf", text],
        ["metadata", folder / "m.gguf", "set", "general.file_type", text],
        [text],
    ):
        assert [line for line in lines_of(capsys, *arguments) if line]


def test_a_message_is_made_once() -> None:
    """An error that goes through another process, and one within another's message, stay as they are."""
    error = lowbit.FormatError("a\x1b" + "b" * 10_000 + "end")
    assert str(error).startswith("a\\x1bbbb")
    assert str(error).endswith("end")
    check(str(error))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (lowbit.FormatError, str(error))
    assert str(lowbit.InputError(str(error))) == str(error)


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("blk.0.ffn_down.weight", "Größe", "名前", "it's  a\\b", ""):
        assert quoting.shown(text) == text
        assert quoting.one_line(text) == text
        assert quoting.quoted(text) == f"'{text}'"
    assert quoting.listed("abcde", 4) == "a, b, c, d and 1 more"
    assert quoting.reason(ValueError("two\n  lines")) == "two lines"
    assert quoting.reason(ValueError()) == "ValueError"
    assert quoting.shown(10**5000) == "an int of 16610 bits"
