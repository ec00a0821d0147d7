"""Conversions that verify themselves: every check is seen failing, and a failed one leaves no file. Provenance keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command import run
from stored import sha256
from tiny_checkpoint import conversion_source, make_checkpoint, write_imatrix, write_json

import lowbit
from lowbit.base.dtypes import FLOATS
from lowbit.conversion import provenance, verification
from lowbit.conversion.open import OpenedCheckpoint, open_checkpoint
from lowbit.conversion.tensor_pairs import tensor_pairs
from lowbit.gguf.source import gguf_tensors
from lowbit.quantization.recipes import MIXES
from lowbit.tokenizer.differences import TokenizerRecord

Damage = Callable[[Path], None]


def checks(verdict: lowbit.Verdict) -> dict[str, bool | None]:
    return {check.name: check.ok for check in verdict.checks}


def detail(verdict: lowbit.Verdict, name: str) -> str:
    return next(check.detail for check in verdict.checks if check.name == name)


def metadata(path: Path, prefix: str = "") -> dict[str, Any]:
    with lowbit.gguf.open(path) as file:
        return {key: value for key, value in file.metadata.items() if key.startswith(prefix)}


@pytest.mark.parametrize("format", [name for name in MIXES if name != "COPY"])
def test_every_mix_passes_on_a_trained_model(tmp_path: Path, format: str) -> None:
    source = conversion_source(tmp_path, "bard")
    options: dict[str, Any] = {"imatrix": write_imatrix(tmp_path / "i.gguf", source), "provenance": False}
    report = lowbit.convert(source, tmp_path / "a.gguf", format, verify=True, **options)
    assert report.verdict is not None
    assert checks(report.verdict) == {"file": True, "tensors": True, "tokenizer": True, "logits": True}
    found = metadata(tmp_path / "a.gguf", "lowbit.verify.")
    assert found["lowbit.verify.verdict"] == "ok"
    assert found["lowbit.verify.tensors.checked"] == 46
    if format in ("F32", "BF16"):
        assert found["lowbit.verify.tensors.exact"] == 46
        assert found["lowbit.verify.logits.max_difference"] == 0
    elif format not in FLOATS:
        assert found["lowbit.verify.tensors.worst_rmse"] > 1e-4
        assert found["lowbit.verify.logits.kl"] > 1e-6


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q4_K_M", "TQ1_0"])
def test_random_models_pass(tmp_path: Path, dtype: str, format: str) -> None:
    source = make_checkpoint(tmp_path / "source", "llama", dtype=dtype, layers=1)
    lowbit.convert(source, tmp_path / "a.gguf", format, verify=False, provenance=False)
    verdict = lowbit.verify(tmp_path / "a.gguf", source)
    assert verdict.ok, verdict.failures
    assert None not in checks(verdict).values()


def in_tensor(name: str, change: Callable[[npt.NDArray[np.uint8]], None]) -> Damage:
    """Changes the bytes of a tensor, uint8 (rows, row bytes)."""

    def damage(path: Path) -> None:
        with lowbit.gguf.open(path) as file:
            place, rows = file.place(name), file.infos[name].shape[0]
        with open(path, "r+b") as out:
            out.seek(place.offset)
            data = np.frombuffer(bytearray(out.read(place.num_bytes)), np.uint8).reshape(rows, -1)
            change(data)
            out.seek(place.offset)
            out.write(data.tobytes())

    return damage


def exchanged(data: npt.NDArray[np.uint8]) -> None:
    data[[3, 4]] = data[[4, 3]]


def one_bit(data: npt.NDArray[np.uint8]) -> None:
    data[5, 8] ^= 1


def scale(data: npt.NDArray[np.uint8]) -> None:
    data[2, 1] ^= 0x04


def zeros(data: npt.NDArray[np.uint8]) -> None:
    data[:] = 0


def not_a_number(data: npt.NDArray[np.uint8]) -> None:
    data[1, :4] = 0xFF


def keys(**changes: Any) -> Damage:
    return lambda path: lowbit.gguf.edit_unfinished(path, {k.replace("__", "."): v for k, v in changes.items()})


def other_merges(path: Path) -> None:
    merges = metadata(path)["tokenizer.ggml.merges"]
    lowbit.gguf.edit_unfinished(path, {"tokenizer.ggml.merges": merges[::-1]})


def other_tokens(path: Path) -> None:
    tokens = metadata(path)["tokenizer.ggml.tokens"]
    tokens[10], tokens[11] = tokens[11], tokens[10]
    lowbit.gguf.edit_unfinished(path, {"tokenizer.ggml.tokens": tokens})


def unknown_pre(path: Path) -> None:
    lowbit.gguf.edit_unfinished(path, {"tokenizer.ggml.pre": "odd"})


@pytest.mark.parametrize(
    ("format", "damage", "failed", "message"),
    [
        ("BF16", in_tensor("blk.1.ffn_up.weight", one_bit), "tensors", r"blk\.1\.ffn_up\.weight \(BF16\) is off by"),
        ("F32", in_tensor("blk.1.attn_v.weight", one_bit), "tensors", "expected at most 0"),
        ("F16", in_tensor("blk.0.ffn_up.weight", scale), "tensors", r"blk\.0\.ffn_up\.weight \(F16\)"),
        ("Q8_0", in_tensor("blk.1.ffn_down.weight", exchanged), "tensors", r"blk\.1\.ffn_down\.weight \(Q8_0\)"),
        ("Q8_0", in_tensor("token_embd.weight", scale), "tensors", r"token_embd\.weight"),
        ("Q4_K_M", in_tensor("blk.0.attn_q.weight", exchanged), "tensors", r"blk\.0\.attn_q\.weight \(Q4_K\)"),
        (
            "Q4_K_M",
            in_tensor("blk.0.attn_q.weight", not_a_number),
            "tensors",
            "is not finite in row 1, but the source is",
        ),
        ("Q2_K", in_tensor("blk.1.ffn_gate.weight", exchanged), "tensors", r"blk\.1\.ffn_gate\.weight \(Q2_K\)"),
        (
            "Q2_K",
            in_tensor("blk.1.ffn_gate.weight", zeros),
            "tensors",
            r"blk\.1\.ffn_gate\.weight \(Q2_K\) is off by 1 in",
        ),
        ("TQ1_0", in_tensor("blk.1.ffn_gate.weight", zeros), "tensors", r"blk\.1\.ffn_gate\.weight \(TQ1_0\) is off"),
        ("BF16", keys(general__sampling__temp=0.5), "file", r"other than in the source: general\.sampling\.temp"),
        ("BF16", keys(qwen3__attention__layer_norm_rms_epsilon=0.5), "file", r"layer_norm_rms_epsilon"),
        ("BF16", keys(qwen3__odd=1), "file", r"other than in the source: qwen3\.odd"),
        ("BF16", keys(general__name="other"), "file", r"general\.name"),
        ("BF16", other_merges, "tokenizer", "texts differ"),
        ("BF16", other_tokens, "tokenizer", "texts differ"),
        ("BF16", unknown_pre, "tokenizer", "cannot be loaded"),
        ("BF16", keys(tokenizer__chat_template="{{ 1 }}"), "tokenizer", "chat templates differ"),
        ("BF16", keys(qwen3__attention__layer_norm_rms_epsilon=0.5), "logits", "largest difference"),
        ("Q8_0", keys(qwen3__rope__freq_base=2.0, qwen3__attention__layer_norm_rms_epsilon=9.0), "logits", "diverg"),
        ("BF16", keys(qwen3__attention__head_count=3), "logits", "the source runs, but the file does not"),
    ],
)
def test_a_damaged_file_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, damage: Damage, failed: str, message: str
) -> None:
    source = make_checkpoint(tmp_path / "source", scale=0.3 if failed == "logits" else 0.05)
    original = verification.compare_with

    def compare_with(path: str, *arguments: Any, **options: Any) -> lowbit.Verdict:
        damage(Path(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(verification, "compare_with", compare_with)
    (tmp_path / "a.gguf").write_bytes(b"before")
    with pytest.raises(lowbit.VerificationError, match=r"a\.gguf: not written, verification failed: ") as caught:
        lowbit.convert(source, tmp_path / "a.gguf", format, verify=True, provenance=True)
    assert (tmp_path / "a.gguf").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "source"]
    verdict = caught.value.verdict
    assert checks(verdict)[failed] is False
    assert re.search(message, detail(verdict, failed)), detail(verdict, failed)
    assert verdict.metadata()["lowbit.verify.verdict"] == verdict.word != "ok"


def test_unasked_a_tokenizer_that_differs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source", layers=1)
    original = verification.tokenizer_differences

    def differing(a: TokenizerRecord, b: TokenizerRecord) -> Any:
        return dataclasses.replace(original(a, b), tokens=(("bos", 1, 2),))

    monkeypatch.setattr(verification, "tokenizer_differences", differing)
    report = lowbit.convert(source, tmp_path / "a.gguf", "BF16", verify=None, provenance=False)
    assert report.verdict is not None
    assert (report.verdict.word, report.verdict.ok) == ("differs", False)
    assert metadata(tmp_path / "a.gguf")["lowbit.verify.verdict"] == "differs"
    with pytest.raises(lowbit.VerificationError, match="special token"):
        lowbit.convert(source, tmp_path / "b.gguf", "BF16", verify=True, provenance=False)
    assert not (tmp_path / "b.gguf").exists()


def test_ids_that_end_a_text(tmp_path: Path) -> None:
    """generation_config.json names one more than the keys of GGUF: lost without provenance, and said."""
    source = make_checkpoint(tmp_path / "source", layers=1)
    write_json(source / "generation_config.json", {"eos_token_id": [7, *sorted(lowbit.load_tokenizer(source).eos_ids)]})
    report = lowbit.convert(source, tmp_path / "a.gguf", "BF16", verify=None, provenance=False)
    assert report.verdict is not None
    assert report.verdict.word == "differs"
    assert "only one of the two ends a text at tokens 7" in detail(report.verdict, "tokenizer")
    (source / "generation_config.json").unlink()
    lowbit.gguf.edit(tmp_path / "a.gguf", {"tokenizer.ggml.eot_token_id": 7})
    verdict = lowbit.verify(tmp_path / "a.gguf", source)
    assert "only one of the two ends a text at tokens 7" in detail(verdict, "tokenizer")
    report = lowbit.convert(source, tmp_path / "b.gguf", "BF16", verify=True, provenance=True)
    assert lowbit.load_tokenizer(tmp_path / "b.gguf").eos_ids == lowbit.load_tokenizer(source).eos_ids


def test_another_network(tmp_path: Path) -> None:
    a, b = (make_checkpoint(tmp_path / name, layers=layers) for name, layers in (("a", 2), ("b", 1)))
    lowbit.convert(a, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    verdict = lowbit.verify(tmp_path / "a.gguf", b)
    assert checks(verdict) == {"file": False, "tensors": False}
    assert "only one of the two has blk.1." in detail(verdict, "tensors")
    c = make_checkpoint(tmp_path / "c", ffn=768)
    assert "ffn_down.weight: expected shape [256, 768], found [256, 512]" in detail(
        lowbit.verify(tmp_path / "a.gguf", c), "tensors"
    )


@pytest.mark.parametrize("arch", ["bitnet", "bitnet-bf16"])
@pytest.mark.parametrize(("format", "to"), [("TQ1_0", "TQ2_0"), ("TQ2_0", "TQ1_0"), ("F16", "TQ2_0")])
def test_what_a_format_keeps_exactly_must_be_exact(tmp_path: Path, arch: str, format: str, to: str) -> None:
    source = make_checkpoint(tmp_path / "source", arch)
    lowbit.convert(source, tmp_path / "a.gguf", format, verify=False, provenance=False)
    lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", to, allow_requantize=True)
    assert lowbit.verify(tmp_path / "b.gguf", source).ok

    def half_a_scale(data: npt.NDArray[np.uint8]) -> None:
        data[3, 64:66] = np.frombuffer(np.float16(0.5), np.uint8)

    if to == "TQ2_0":
        in_tensor("blk.1.ffn_gate.weight", half_a_scale)(tmp_path / "b.gguf")
        verdict = lowbit.verify(tmp_path / "b.gguf", source)
        assert re.search(r"blk\.1\.ffn_gate\.weight \(TQ2_0\) is off by 0\.\d+ in one", detail(verdict, "tensors"))


@pytest.mark.parametrize("broken", ["source", "file"])
def test_logits_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    source = make_checkpoint(tmp_path / "source")
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    original = verification._Networks.logits

    def infinite(self: verification._Networks, ids: list[int]) -> Any:
        expected, found = original(self, ids)
        return (expected / 0, found) if broken == "source" else (expected, found / 0)

    monkeypatch.setattr(verification._Networks, "logits", infinite)
    with np.errstate(divide="ignore"):
        verdict = lowbit.verify(tmp_path / "a.gguf", source)
    assert checks(verdict)["logits"] is (None if broken == "source" else False)
    assert f"the {broken}'s logits are not finite" in detail(verdict, "logits")


def test_what_cannot_be_compared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source")

    def unsupported(*_: object, **__: object) -> None:
        raise lowbit.UnsupportedError("does not run yet")

    monkeypatch.setattr(verification, "spec_of", unsupported)
    report = lowbit.convert(source, tmp_path / "a.gguf", "Q8_0", verify=True, provenance=False)
    assert report.verdict is not None
    assert report.verdict.ok
    assert checks(report.verdict)["logits"] is None
    assert metadata(tmp_path / "a.gguf")["lowbit.verify.logits.not_run"] == "not run: does not run yet"


def test_unasked_whole_models_only(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", layers=3)
    assert lowbit.convert(source, tmp_path / "a.gguf", "Q8_0", verify=None, provenance=False).verdict is not None
    pruned = lowbit.convert(source, tmp_path / "a.gguf", "Q8_0", verify=None, prune_layers=[1], provenance=False)
    assert pruned.verdict is None
    with pytest.raises(lowbit.InputError, match="a pruned model cannot be compared"):
        lowbit.convert(source, tmp_path / "a.gguf", "Q8_0", verify=True, prune_layers=[1], provenance=False)
    split = lowbit.convert(source, tmp_path / "b.gguf", "Q8_0", verify=None, split_max_tensors=20, provenance=False)
    assert split.verdict is None


#: Options of a mix with tensors of floats, which the reference's quantizer reads from a file of another float format.
FLOATS_IN_A_MIX: dict[str, dict[str, Any]] = {
    "output-f16": {"output_tensor_type": "F16"},
    "embedding-f32": {"token_embedding_type": "F32"},
    "embedding-bf16": {"token_embedding_type": "BF16"},
    "named": {"tensor_types": [("ffn_down", "F32"), ("attn_q", "F16"), ("ffn_up", "BF16")]},
    "through-f16": {"tensor_types": [("ffn_down", "F32"), ("attn_q", "BF16")], "intermediate": "F16"},
    "through-f32": {"tensor_types": [("ffn_down", "F16"), ("attn_q", "BF16")], "intermediate": "F32"},
}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("options", FLOATS_IN_A_MIX.values(), ids=FLOATS_IN_A_MIX.keys())
def test_floats_in_a_mix_pass(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    source = make_checkpoint(tmp_path / "source", "llama", dtype=dtype, layers=1)
    lowbit.convert(source, tmp_path / "a.gguf", "Q4_K_M", verify=True, provenance=False, **options)
    verdict = lowbit.verify(tmp_path / "a.gguf", source)
    assert verdict.ok, verdict.failures


def test_rows_that_no_block_divides_pass(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "llama", dtype="F16", layers=1, ffn=520)
    report = lowbit.convert(source, tmp_path / "a.gguf", "Q8_0", verify=True, provenance=False)
    assert {tensor.format for tensor in report.tensors if tensor.fallback} == {"F16"}


def test_a_wrong_bit_of_a_float_in_a_mix_fails(tmp_path: Path) -> None:
    """The last bit of a float16 weight, which went through bfloat16: rounding would explain more."""
    source = make_checkpoint(tmp_path / "source", "llama", dtype="F16", layers=1)
    types = {"tensor_types": [("ffn_down", "F16")]}
    lowbit.convert(source, tmp_path / "a.gguf", "Q4_K_M", verify=False, provenance=False, **types)
    in_tensor("blk.0.ffn_down.weight", one_bit)(tmp_path / "a.gguf")
    verdict = lowbit.verify(tmp_path / "a.gguf", source)
    assert checks(verdict) == {"file": True, "tensors": False}
    assert "blk.0.ffn_down.weight (F16)" in detail(verdict, "tensors")


@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma3", "bitnet"])
def test_logits_are_those_of_the_loaded_models(tmp_path: Path, arch: str) -> None:
    """Matrices read in pieces give the bits that whole ones give, in one pass and in two."""
    source = make_checkpoint(tmp_path / "source", arch)
    lowbit.convert(source, tmp_path / "a.gguf", "Q4_0", verify=False, provenance=False)
    opened = open_checkpoint(source)
    ids = np.random.default_rng(0).integers(0, 200, 20).tolist()
    loaded = [lowbit.load(path, compute="f32").logits(ids) for path in (source, tmp_path / "a.gguf")]
    for eps in (None, np.float32(0.25)):  # another setting in the file: the two networks have no common pass
        if eps is not None:
            lowbit.gguf.edit(tmp_path / "a.gguf", {f"{arch_name(opened)}.attention.layer_norm_rms_epsilon": eps})
            loaded[1] = lowbit.load(tmp_path / "a.gguf", compute="f32").logits(ids)
        with lowbit.gguf.open(tmp_path / "a.gguf") as file:
            pairs = tensor_pairs({tensor.name: tensor for tensor in opened.tensors}, gguf_tensors(file), 2)
            networks = verification._Networks(file, dict(file.metadata), opened, pairs, 2, lambda done, total: None)
            found = networks.logits(ids)
        assert not isinstance(found, verification.Check), found.detail
        for a, b in zip(found, loaded, strict=True):
            assert a.tobytes() == b.tobytes()
        assert eps is None or not np.array_equal(*loaded)


def arch_name(opened: OpenedCheckpoint) -> str:
    return str(opened.metadata["general.architecture"])


def test_provenance(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", shards=2)
    write_imatrix(tmp_path / "i.gguf", source)
    (tmp_path / "types.txt").write_text("ffn_up=Q6_K")
    options: dict[str, Any] = {"imatrix": tmp_path / "i.gguf", "tensor_type_file": tmp_path / "types.txt"}
    options["progress"] = False
    dry = lowbit.convert(source, tmp_path / "a.gguf", "Q4_K_M", provenance=True, verify=True, dry_run=True, **options)
    report = lowbit.convert(source, tmp_path / "a.gguf", "Q4_K_M", provenance=True, verify=True, **options)
    assert report == dry
    assert (tmp_path / "a.gguf").stat().st_size == report.file_bytes
    found = metadata(tmp_path / "a.gguf", "lowbit.provenance.")
    hashes = dict(zip(found["lowbit.provenance.files"], found["lowbit.provenance.sha256"], strict=True))
    assert hashes.pop("imatrix/i.gguf") == sha256(tmp_path / "i.gguf")
    assert hashes == {path.name: sha256(path) for path in source.iterdir() if ".index." not in path.name}
    assert found["lowbit.provenance.recipe"] == ["Q4_K_M"]
    assert found["lowbit.provenance.version"] == [lowbit.__version__]
    assert found["lowbit.provenance.source"] == "source"
    assert [json.loads(step) for step in found["lowbit.provenance.options"]] == [{"tensor_types": [["ffn_up", "Q6_K"]]}]
    assert str(tmp_path) not in str(found)


def test_the_keys_are_additions_at_the_end(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    lowbit.convert(source, tmp_path / "bare.gguf", "Q4_K_M", verify=False, provenance=False)
    lowbit.convert(source, tmp_path / "a.gguf", "Q4_K_M", provenance=True, verify=True)
    with lowbit.gguf.open(tmp_path / "bare.gguf") as bare, lowbit.gguf.open(tmp_path / "a.gguf") as file:
        number = len(bare.metadata)
        assert list(file.metadata)[:number] == list(bare.metadata)
        for key, value in bare.metadata.items():
            np.testing.assert_array_equal(file.metadata[key], value)
        assert all(key.startswith("lowbit.") for key in list(file.metadata)[number:])
        assert list(file.metadata)[-1] == lowbit.gguf.PADDING_KEY
        assert len(file.metadata[lowbit.gguf.PADDING_KEY]) >= lowbit.gguf.RESERVED_BYTES
        for name in bare.infos:
            a, b = (getattr(f.tensors[name], "data", f.tensors[name]) for f in (bare, file))
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_quantizing_keeps_the_origin_and_drops_the_verdict(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", provenance=True, verify=True)
    lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_K_M")
    found = metadata(tmp_path / "b.gguf", "lowbit.")
    assert found["lowbit.provenance.recipe"] == ["BF16", "Q4_K_M"]
    assert not [key for key in found if key.startswith("lowbit.verify.")]
    assert list(metadata(tmp_path / "b.gguf"))[-1] == lowbit.gguf.PADDING_KEY
    assert lowbit.verify(tmp_path / "b.gguf", source).ok


def test_quantizing_adds_a_step(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    write_imatrix(tmp_path / "i.gguf", source)
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", provenance=True, verify=False)
    steps: list[tuple[str, dict[str, Any]]] = [
        ("Q8_0", {"imatrix": tmp_path / "i.gguf", "pure": True}),
        ("COPY", {}),  # changes nothing
        ("COPY", {"override_kv": {"general.name": "Mine"}}),
        ("Q4_0", {"allow_requantize": True}),
    ]
    for number, (format, options) in enumerate(steps):
        files = tmp_path / f"{'abcd'[number]}.gguf", tmp_path / f"{'bcde'[number]}.gguf"
        dry = lowbit.quantize_file(*files, format, dry_run=True, **options)
        assert dry == lowbit.quantize_file(*files, format, **options)
        assert files[1].stat().st_size == dry.file_bytes
    before, found = (metadata(tmp_path / f"{name}.gguf", "lowbit.provenance.") for name in "ae")
    assert found.pop("lowbit.provenance.recipe") == ["BF16", "Q8_0", "COPY", "Q4_0"]
    assert found.pop("lowbit.provenance.version") == [lowbit.__version__] * 4
    assert [json.loads(step) for step in found.pop("lowbit.provenance.options")] == [
        {}, {"pure": True}, {"override_kv": {"general.name": "Mine"}}, {"allow_requantize": True},
    ]  # fmt: skip
    assert found.pop("lowbit.provenance.files") == [*before["lowbit.provenance.files"], "imatrix/i.gguf"]
    assert found.pop("lowbit.provenance.sha256") == [*before["lowbit.provenance.sha256"], sha256(tmp_path / "i.gguf")]
    assert found == {"lowbit.provenance.source": "source"}


def test_a_file_without_an_origin_gets_none(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", verify=False, provenance=False)
    lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0", pure=True)
    assert metadata(tmp_path / "b.gguf", "lowbit.") == {}


@pytest.mark.parametrize("key", ["recipe", "options", "sha256"])
@pytest.mark.parametrize("value", ["text", np.uint8(1), np.arange(3, dtype=np.uint8)])
def test_an_origin_of_another_form(tmp_path: Path, key: str, value: Any) -> None:
    source = make_checkpoint(tmp_path / "source")
    lowbit.convert(source, tmp_path / "a.gguf", "BF16", provenance=True, verify=False)
    lowbit.gguf.edit(tmp_path / "a.gguf", unset=[f"lowbit.provenance.{key}"])
    lowbit.gguf.edit(tmp_path / "a.gguf", set={f"lowbit.provenance.{key}": value})
    write_imatrix(tmp_path / "i.gguf", source)
    with pytest.raises(lowbit.FormatError, match=rf"a.gguf: lowbit.provenance.{key}: expected an array of texts"):
        lowbit.quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0", imatrix=tmp_path / "i.gguf")
    assert not (tmp_path / "b.gguf").exists()


def test_files_of_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot's big files are links to blobs that are called by their SHA-256; small ones' by git's hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("a" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", "b" * 64), ("config.json", "c" * 40)):
        (blobs / blob).write_bytes(name.encode())
        (snapshot / name).symlink_to(blobs / blob)
    files = [provenance.SourceFile(path.name, path) for path in sorted(snapshot.iterdir())]
    with provenance.Hashing(files) as hashing:
        found = hashing.metadata()
    assert found["lowbit.provenance.sha256"] == [hashlib.sha256(b"config.json").hexdigest(), "b" * 64]
    (blobs / "file").write_bytes(b"")
    plain = provenance.SourceFile("x", blobs / ("b" * 64))  # no link: a name says nothing
    with provenance.Hashing([plain]) as hashing:
        assert hashing.metadata()["lowbit.provenance.sha256"] == [hashlib.sha256(b"model.safetensors").hexdigest()]


def test_a_source_that_vanishes(tmp_path: Path) -> None:
    with (
        provenance.Hashing([provenance.SourceFile("x", tmp_path / "x")]) as hashing,
        pytest.raises(lowbit.FileError, match="x: No such file"),
    ):
        hashing.metadata()


def test_the_commands(tmp_path: Path) -> None:
    source, path = make_checkpoint(tmp_path / "source"), tmp_path / "a.gguf"
    done = run("convert", source, path, "-f", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert f"{path} against {source}: ok" in done.stdout
    rows = [line for line in done.stdout.splitlines()[4:] if line[:1] == " " and line[1:2].strip()]  # cells fold
    assert [line.split()[:2] for line in rows] == [
        ["file", "ok"], ["tensors", "ok"], ["tokenizer", "ok"], ["logits", "ok"],
    ]  # fmt: skip
    assert "lowbit.provenance.recipe" in metadata(path)
    report = json.loads(run("convert", source, path, "-f", "Q8_0", "--json").stdout)
    assert report["verdict"]["ok"] is True
    assert report["verdict"]["checks"][1]["checked"] == 24
    assert run("convert", source, tmp_path / "b.gguf", "-f", "Q8_0", "--no-verify", "--no-provenance").returncode == 0
    lowbit.convert(source, tmp_path / "bare.gguf", "Q8_0", verify=False, provenance=False)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "bare.gguf").read_bytes()
    other = make_checkpoint(tmp_path / "other", seed=1)
    wrong = run("verify", path, other)
    assert (wrong.returncode, wrong.stderr) == (1, "")
    assert "FAILED" in wrong.stdout
    assert json.loads(run("verify", path, source, "--json").stdout)["ok"] is True
