"""Hostile checkpoints, adapters and tokenizers: typed errors that name the place, in bounded time and memory.

Each case is one that a mutation fuzzer found. tests/gguf/test_malformed.py does the same for the bytes of GGUF files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import LLAMA3_ROPE, make_checkpoint, write_safetensors

import lowbit
from lowbit import _core
from lowbit.arch import spec
from lowbit.conversion.open import open_checkpoint

HUGE = 10**400  # JSON has integers of any length
SIZES = {"layers": 1, "hidden": 64, "ffn": 64, "head_dim": 16}


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the object in a JSON file."""
    value = json.loads((folder / name).read_text())
    edit(value)
    (folder / name).write_text(json.dumps(value))


def refused(folder: Path, target: Path, message: str, error: type[lowbit.Error] = lowbit.FormatError) -> None:
    """Neither converts nor runs, and says why."""
    with pytest.raises(error, match=message):
        lowbit.convert(folder, target, "F32", verify=False, provenance=False)
    assert not target.exists()
    with pytest.raises(error, match=message):
        lowbit.load(folder)


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
NUMBERS = [
    ({"rms_norm_eps": HUGE}, "'rms_norm_eps' is '1000"),
    ({"rms_norm_eps": 1e-300}, "'rms_norm_eps' is '1e-300'"),  # zero in a file
    ({"rope_parameters": {"rope_theta": 1e300}}, r"'rope_theta' is '1e\+300'"),
    ({"rope_parameters": {**YARN, "beta_fast": 1e308}}, "'beta_fast'"),  # the logarithm of zero
    ({"rope_parameters": {**YARN, "beta_slow": 5e-324}}, "'beta_slow'"),  # and of infinity
    ({"rope_parameters": {**YARN, "factor": HUGE}}, "'factor'"),
]


@pytest.mark.parametrize(("config", "message"), NUMBERS, ids=range(len(NUMBERS)))
def test_numbers_of_a_configuration_that_float32_does_not_hold(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = make_checkpoint(tmp_path / "m", config=config, **SIZES)
    refused(folder, tmp_path / "o.gguf", message)


def test_a_scaling_whose_factors_are_no_numbers(tmp_path: Path) -> None:
    rope = {**LLAMA3_ROPE, "factor": 1e-44, "rope_theta": 100.0}
    folder = make_checkpoint(tmp_path / "m", "llama", config={"rope_parameters": rope}, **SIZES)
    refused(folder, tmp_path / "o.gguf", "rope_parameters: the settings give factors")


METADATA = [
    ("qwen3.rope.freq_base", np.float64(1e300), lowbit.load, r"qwen3.rope.freq_base is '1e\+300'"),
    ("qwen3.attention.scale", np.float64(1e-300), lowbit.load, "qwen3.attention.scale is '1e-300'"),
    ("tokenizer.ggml.tokens", 7, lowbit.load, "metadata has no qwen3.vocab_size"),
    ("tokenizer.ggml.bos_token_id", "one", None, "tokenizer.ggml.bos_token_id: expected an integer"),
    ("qwen3.rope.scaling.type", np.zeros(3, np.float32), None, "qwen3.rope.scaling.type is"),
]


@pytest.mark.parametrize(("key", "value", "use", "message"), METADATA, ids=range(len(METADATA)))
def test_metadata_of_the_wrong_kind(
    tmp_path: Path, key: str, value: Any, use: Callable[[Path], Any] | None, message: str
) -> None:
    lowbit.convert(make_checkpoint(tmp_path / "m", **SIZES), tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {name: file.typed(name) for name in file.metadata} | {key: value}
        lowbit.gguf.write(tmp_path / "b.gguf", metadata, file.tensors)
    with pytest.raises(lowbit.FormatError, match=message):
        use(tmp_path / "b.gguf") if use else lowbit.export_hf(tmp_path / "b.gguf", tmp_path / "hf")


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [A, A], "pair": [A, B], "special_tokens": {}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
ANYWHERE = {"type": "Replace", "pattern": {"Regex": "(?=e)"}, "content": "e"}
#: Each makes of a text of 50 letters one of gigabytes, or far more.
BOMBS = [
    {"normalizer": sequence("normalizers", *[replace("e", "ee")] * 40)},
    {"normalizer": sequence("normalizers", *[replace("e", "e" * 1000)] * 4)},
    {"normalizer": sequence("normalizers", *[ANYWHERE] * 40)},
    {"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 40)},
    {"normalizer": sequence("normalizers", sequence("normalizers", *[replace("", "aaaa")] * 20))},
    {"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 40)},
    {"post_processor": sequence("processors", *[TWICE] * 40)},
    {"decoder": sequence("decoders", *[replace("e", "ee")] * 40)},
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_tokenizers_that_make_long_texts_of_short_ones(tmp_path: Path, bomb: dict[str, Any]) -> None:
    folder = make_checkpoint(tmp_path / "m", **SIZES)
    lowbit.convert(folder, tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    definition = {"model": {"type": "BPE"}, "decoder": BYTES, **bomb}
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {**file.metadata, "lowbit.tokenizer.definition": json.dumps(definition)}
    change(folder, "tokenizer.json", lambda tokenizer: tokenizer.update(bomb))
    for source in (lambda: lowbit.load_tokenizer(folder), lambda: lowbit.tokenizer.load.from_metadata(metadata)):
        with pytest.raises(lowbit.FormatError, match=r"its steps can make .* times as long"):
            source()


def test_a_definition_that_adds_its_tokens_again_and_again(tmp_path: Path) -> None:
    lowbit.convert(make_checkpoint(tmp_path / "m", **SIZES), tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = dict(file.metadata)
    rows = [[0, len(metadata["tokenizer.ggml.tokens"]), []]] * 10**5
    metadata["lowbit.tokenizer.definition"] = json.dumps({"model": {"type": "BPE"}, "added_tokens": rows})
    with pytest.raises(lowbit.FormatError, match=r"added_tokens: too many, expected at most 288"):
        lowbit.tokenizer.load.from_metadata(metadata)


def test_a_tokenizer_without_tokens(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", **SIZES)
    change(folder, "tokenizer.json", lambda tokenizer: tokenizer.update(added_tokens=[]))
    change(folder, "tokenizer.json", lambda tokenizer: tokenizer["model"].update(vocab={}, merges=[]))
    change(folder, "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder", None))
    with pytest.raises(lowbit.FormatError, match=r"tokenizer.json: model: expected a BPE vocabulary"):
        lowbit.convert(folder, tmp_path / "o.gguf", "F32", verify=False, provenance=False)


def test_a_file_name_in_the_index_that_no_system_has(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", shards=2, **SIZES)
    name = "x" * 5000 + ".safetensors"
    change(folder, "model.safetensors.index.json", lambda index: index["weight_map"].update({"a": name}))
    refused(folder, tmp_path / "o.gguf", "tensor 'a' is in file 'xxx")


def test_a_scale_of_an_adapter_that_is_no_float(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", **SIZES)
    adapter = tmp_path / "a"
    adapter.mkdir()
    write_safetensors(adapter / "adapter_model.safetensors", {"x.lora_A.weight": np.zeros((1, 1), np.float32)})
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    with pytest.raises(lowbit.InputError, match=r"lora_scale: expected .* got 1000"):
        lowbit.load(folder, lora=adapter, lora_scale=HUGE)


@pytest.mark.parametrize("value", ["a text", np.float64(1e300), np.zeros(2, np.float32)])
def test_a_verified_file_with_another_value_for_a_float(tmp_path: Path, value: Any) -> None:
    folder = make_checkpoint(tmp_path / "m", **SIZES)
    lowbit.convert(folder, tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {name: file.typed(name) for name in file.metadata} | {"qwen3.rope.freq_base": value}
        lowbit.gguf.write(tmp_path / "b.gguf", metadata, file.tensors)
    verdict = lowbit.verify(tmp_path / "b.gguf", folder)
    assert not verdict.ok
    assert "qwen3.rope.freq_base" in verdict.checks[0].detail


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_sums_of_an_importance_matrix_beyond_float32(tmp_path: Path, value: float) -> None:
    tensors = {"t.in_sum2": np.full(4, value, np.float32), "t.counts": np.float32([1])}
    lowbit.gguf.write(tmp_path / "i.gguf", {"imatrix.chunk_count": 1, "imatrix.chunk_size": 8}, tensors)
    sums = lowbit.imatrix.read(tmp_path / "i.gguf")
    with pytest.raises(lowbit.FormatError, match="imatrix: t: expected finite, non-negative numbers"):
        lowbit.imatrix.merge([sums, sums]).imatrix()


def test_an_export_of_a_file_whose_definition_is_a_unigram_model(tmp_path: Path) -> None:
    lowbit.convert(
        make_checkpoint(tmp_path / "m", "mistral", **SIZES), tmp_path / "a.gguf", "F32", verify=False, provenance=False
    )
    definition = {"model": {"type": "Unigram", "unk_id": 0}, "decoder": BYTES}
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {**file.metadata, "lowbit.tokenizer.definition": json.dumps(definition)}
        lowbit.gguf.write(tmp_path / "b.gguf", metadata, file.tensors)
    lowbit.export_hf(tmp_path / "b.gguf", tmp_path / "hf")
    tokenizers = [lowbit.load_tokenizer(tmp_path / name) for name in ("b.gguf", "hf")]
    assert tokenizers[0].encode("an other", add_special_tokens=False) == tokenizers[1].encode(
        "an other", add_special_tokens=False
    )


@pytest.mark.parametrize("tokens", ["text", 7, np.float32(0), np.zeros(2, np.uint16)])
def test_an_edit_of_a_file_whose_tokens_are_no_list(tmp_path: Path, tokens: Any) -> None:
    lowbit.gguf.write(tmp_path / "a.gguf", {"tokenizer.ggml.tokens": tokens}, {})
    assert lowbit.gguf.edit(tmp_path / "a.gguf", {"tokenizer.ggml.eos_token_id": 3}, dry_run=True).warnings == []


@pytest.mark.parametrize("value", ["one", np.zeros(2, np.uint16), np.float32(0), True])
def test_an_edit_of_a_file_whose_number_in_a_split_model_is_none(tmp_path: Path, value: Any) -> None:
    lowbit.gguf.write(tmp_path / "a.gguf", {"general.architecture": "llama", "split.no": value}, {})
    with pytest.raises(lowbit.FormatError, match=r"key split.no: expected an integer, found (a|an) "):
        lowbit.gguf.edit(tmp_path / "a.gguf", {"general.name": "a"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.sampling.temp", np.float64(1e300), r"expected a finite number, found 1e\+300"),
        ("general.sampling.temp", np.float32(np.nan), "expected a finite number, found nan"),
        ("general.sampling.top_k", np.zeros(2, np.int32), "general.sampling.top_k: expected one value"),
        ("tokenizer.ggml.add_sep_token", np.zeros(2, np.bool_), "add_sep_token: expected a boolean, found an array"),
        (
            "tokenizer.ggml.add_space_prefix",
            np.zeros(2, np.bool_),
            "add_prefix_space: expected a boolean, found an array",
        ),
        ("qwen3.rope.scaling.attn_factor", np.float64(1e300), None),  # noted as not kept
        ("qwen3.attention.key_length", np.float64(1e300), "attention.key_length"),
    ],
)
def test_an_export_of_numbers_that_json_has_not(tmp_path: Path, key: str, value: Any, message: str | None) -> None:
    lowbit.convert(make_checkpoint(tmp_path / "m", **SIZES), tmp_path / "a.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        metadata = {name: file.typed(name) for name in file.metadata} | {key: value}
        lowbit.gguf.write(tmp_path / "b.gguf", metadata, file.tensors)
    if message is None:
        assert key in lowbit.export_hf(tmp_path / "b.gguf", tmp_path / "hf").notes[0]
        return
    with pytest.raises(lowbit.FormatError, match=message):
        lowbit.export_hf(tmp_path / "b.gguf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


#: Values of every type of GGUF, at the ends of their ranges.
VALUES: list[Any] = [
    0, -1, 2**32 - 1, 2**63, math.nan, math.inf, 1e300, 5e-324, True, "", "text", "a\0\x1b\n", [], ["a"], ["a b"] * 300,
    np.zeros(0, np.int32), np.zeros(3, np.float32), np.full(300, np.nan), np.array([2**64 - 1], np.uint64), None,
]  # fmt: skip
FURTHER_KEYS = (
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.scale",
    "rope.dimension_count", "rope.freq_base_swa", "attention.sliding_window", "attention.sliding_window_pattern",
    "vocab_size", "attn_logit_softcapping", "final_logit_softcapping", "attention.value_length",
)  # fmt: skip
TOKENIZER_KEYS = (
    "scores", "add_bos_token", "add_eos_token", "add_space_prefix", "precompiled_charsmap", "eot_token_id",
    "remove_extra_whitespaces", "normalizer.lowercase",
)  # fmt: skip


@pytest.mark.parametrize("arch", ["bitnet", "gemma3", "llama", "phi3", "qwen2", "qwen3"])
def test_metadata_of_any_type_and_size(tmp_path: Path, arch: str) -> None:
    """Each key that describes a network or its tokenizer, with each value: used, or a typed error of one line."""
    opened = open_checkpoint(make_checkpoint(tmp_path / "m", arch, layers=1))
    vectors = {t.name: t.rows(0, t.shape[0]) for t in opened.tensors if len(t.shape) == 1}
    keys = [*opened.metadata, *(f"{arch}.{key}" for key in FURTHER_KEYS)]
    keys += [f"tokenizer.ggml.{key}" for key in TOKENIZER_KEYS]
    keys += ["tokenizer.chat_template", "tokenizer.chat_template.x", "lowbit.tokenizer.definition"]
    wrong = []
    for key in keys:
        of_tokenizer = key.startswith(("tokenizer.", "lowbit."))
        for value in VALUES:
            metadata = {k: v for k, v in (opened.metadata | {key: value}).items() if v is not None}
            try:
                if of_tokenizer:
                    lowbit.load_tokenizer(SimpleNamespace(metadata=metadata))
                else:
                    _core.Model(spec(metadata, vectors), {}, "f32", 1, 1, 1)
            except lowbit.Error as error:
                if not str(error).isprintable():
                    wrong.append(f"{key} = {value!r}: {error}")
            except Exception as error:
                wrong.append(f"{key} = {value!r}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
