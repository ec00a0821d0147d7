"""lowbit.quantize_file and its options: data/quantized.json.xz has SHA-256 of what llama-quantize writes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantize_cases import CASES, make_sources
from stored import differences, stored
from tiny_checkpoint import make_checkpoint, write_imatrix

import lowbit
from lowbit.conversion import pipeline
from lowbit.conversion.plan import Plan

REFERENCE = stored("quantized")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    make_sources(folder)
    return folder


@pytest.fixture
def here(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources' folder as the current one: a file quantized with an importance matrix holds its path."""
    monkeypatch.chdir(sources)
    return sources


def test_every_case_has_a_reference() -> None:
    assert REFERENCE.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_llama_quantize(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_WEIGHTS", 10000)
    case = CASES[name]
    (tmp_path / "out").mkdir()
    options = {**case.options}
    planned = lowbit.quantize_file(case.source, tmp_path / "out" / "out.gguf", case.format, dry_run=True, **options)
    assert list((tmp_path / "out").iterdir()) == []
    report = lowbit.quantize_file(case.source, tmp_path / "out" / "out.gguf", case.format, **options)
    assert planned == report
    assert differences(tmp_path / "out", REFERENCE[name]) == {}
    written = sorted((tmp_path / "out").iterdir())
    assert [Path(path) for path in report.paths] == written
    assert report.file_bytes == sum(path.stat().st_size for path in written)
    with lowbit.gguf.open(written[0]) as file:
        found = [(name, info.format, file.num_bytes(name)) for name, info in file.infos.items()]
    assert sorted(found) == sorted((t.name, t.format, t.num_bytes) for t in report.tensors)


def test_any_file_of_a_split_model_will_do(here: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        lowbit.quantize_file(f"split-0000{number}-of-00003.gguf", tmp_path / f"{number}.gguf", "Q4_K_M")
    assert differences(tmp_path, REFERENCE["split, made whole"] * 3) == {}


def test_threads_change_nothing(here: Path, tmp_path: Path) -> None:
    for threads in (1, 2, 5):
        lowbit.quantize_file("llama.gguf", tmp_path / f"{threads}.gguf", "15", threads=threads)
    assert differences(tmp_path, REFERENCE["by number"] * 3) == {}


REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "rows that do not fit": (
        "narrow.gguf", "Q4_0", {"tensor_types": [("attn_q", "Q4_K")]},
        r"attn_q\.weight: Q4_K was requested: expected a row length that is a multiple of the block size 256, got 96; "
        "choose another format",
    ),
    "output that does not fit": (
        "narrow.gguf", "Q4_0", {"output_tensor_type": "Q6_K"}, r"output\.weight: Q6_K was requested",
    ),
    "no such tensor": (
        "llama.gguf", "Q4_0", {"tensor_types": [("ffn", "Q8_0"), ("ffn_dwn", "Q4_K")]},
        r"tensor_types: ffn_dwn=Q4_K matches no tensor that can be quantized",
    ),
    "norms only": ("llama.gguf", "Q4_0", {"tensor_types": [("norm", "Q8_0")]}, r"norm=Q8_0 matches no tensor"),
    "not a format": ("llama.gguf", "Q4_0", {"tensor_types": [("ffn", "Q9")]}, "Q9"),
    "activations": (
        "llama.gguf", "Q4_0", {"output_tensor_type": "q8_k"}, "format Q8_K: for activations only, not for tensors",
    ),
    "not an expression": ("llama.gguf", "Q4_0", {"tensor_types": [("(", "Q8_0")]}, "not a regular expression"),
    "left and changed": (
        "llama.gguf", "Q4_0", {"leave_output_tensor": True, "output_tensor_type": "Q8_0"}, "exclude each other",
    ),
    "nothing to leave": (
        "qwen3.gguf", "Q4_0", {"leave_output_tensor": True},
        r"the model has no output\.weight; token_embd\.weight is also the output matrix, and token_embedding_type sets",
    ),
    "included and excluded": (
        "llama.gguf", "Q4_0", {"imatrix": "imatrix.gguf", "include_weights": ["a"], "exclude_weights": ["b"]},
        "include_weights and exclude_weights exclude each other",
    ),
    "nothing included": (
        "llama.gguf", "Q4_0", {"imatrix": "imatrix.gguf", "include_weights": ["attn", "nothing"]},
        "include_weights: no name in the importance matrix contains 'nothing'",
    ),
    "nothing to include from": (
        "llama.gguf", "Q4_0", {"include_weights": ["attn"]}, "include_weights: expected an importance matrix",
    ),
    "copy with a format": ("llama.gguf", "COPY", {"pure": True}, "pure: not possible with COPY"),
    "copy with an imatrix": ("llama.gguf", "COPY", {"imatrix": "imatrix.gguf"}, "imatrix: not possible with COPY"),
    "quantized already": (
        "q8.gguf", "Q4_0", {}, r"output.weight is already quantized \(Q8_0\): use .* or allow_requantize",
    ),
    "strict": (
        "narrow.gguf", "Q4_K_M", {"strict": True},
        r"strict: output\.weight: row length 96 is not a multiple of the block size 256: Q6_K -> Q8_0, \+1.9375 bits "
        r"per weight \(and 8 more\)",
    ),
    "no importances": (
        "llama.gguf", "Q2_K_S", {}, r"blk\.0\.attn_k\.weight \(Q2_K\) and 27 more: unusable without importances, "
        "but there are none; collect them with lowbit imatrix",
    ),
    "importances for some": (
        "llama.gguf", "Q2_K_S", {"imatrix": "imatrix.gguf", "exclude_weights": ["blk.2.ffn_up"]},
        r"blk\.2\.ffn_up\.weight \(Q2_K\): unusable without importances, but the importance matrix has none for it",
    ),
    "no such layer": ("llama.gguf", "Q4_0", {"prune_layers": [1, 4]}, "layers 0 to 3, got 4"),
    "no layer left": ("llama.gguf", "Q4_0", {"prune_layers": range(4)}, "some but not all"),
    "not a layer": ("llama.gguf", "Q4_0", {"prune_layers": [-1]}, "prune_layers: expected 0 to 2147483647, got -1"),
    "two numbers of layers": (
        "llama.gguf", "Q4_0", {"prune_layers": [1], "override_kv": {"llama.block_count": 4}}, "llama.block_count",
    ),
    "another kind of value": (
        "llama.gguf", "Q4_0", {"override_kv": {"llama.context_length": "long"}},
        r"override_kv: llama\.context_length: expected an int, as in the file, got a str",
    ),
    "an array": (
        "llama.gguf", "Q4_0", {"override_kv": {"tokenizer.ggml.tokens": "a"}}, "expected an array, as in the file",
    ),
    "no value": ("llama.gguf", "Q4_0", {"override_kv": {"new": None}}, "expected bool, int, float or str"),
    "key of a split": ("llama.gguf", "Q4_0", {"override_kv": {"split.count": 2}}, "how the file is split"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(here: Path, tmp_path: Path, name: str) -> None:
    source, format, options, message = REFUSED[name]
    with pytest.raises(lowbit.InputError, match=message) as caught:
        lowbit.quantize_file(source, tmp_path / "out.gguf", format, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [False, True])
def test_files_appear_all_or_none(sources: Path, tmp_path: Path, keep: bool) -> None:
    for i in (1, 2, 3):
        (tmp_path / f"in-0000{i}-of-00003.gguf").write_bytes((sources / f"split-0000{i}-of-00003.gguf").read_bytes())
    before = sorted(tmp_path.iterdir())
    with lowbit.gguf.open(before[0]) as file:
        last = max(file.infos, key=lambda name: (file.place(name).path, file.place(name).offset))
        place = file.place(last)
    with open(file.paths[place.path], "r+b") as spoiled:
        spoiled.seek(place.offset + place.num_bytes - 2)
        spoiled.write(b"\xc0\x7f")  # NaN, the very last weight
    with pytest.raises(lowbit.InputError, match=rf"tensor {last}: row 127, column 255 is nan"):
        lowbit.quantize_file(before[1], tmp_path / "out.gguf", "Q8_0", keep_split=keep)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_cut_short_meanwhile(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes((sources / "llama.gguf").read_bytes())
    run = Plan.run

    def cut(*args: Any) -> Any:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        return run(*args)

    monkeypatch.setattr(Plan, "run", cut)
    with pytest.raises(lowbit.FileError, match=r"in\.gguf: the file became shorter while it was read, at offset \d+"):
        lowbit.quantize_file(path, tmp_path / "out.gguf", "Q8_0")
    assert list(tmp_path.iterdir()) == [path]


def test_a_dry_run_says_what_importances_are_missing(here: Path, tmp_path: Path) -> None:
    report = lowbit.quantize_file("llama.gguf", tmp_path / "out.gguf", "IQ2_XXS", dry_run=True)
    assert report.notes == [
        "blk.0.attn_k.weight (IQ2_XXS) and 23 more: unusable without importances, but there are none"
    ]


def test_what_llama_quantize_leaves_out_is_obeyed(here: Path, tmp_path: Path) -> None:
    """Formats that it drops without a word: of tensors in a file of floats, of a tied output with --pure."""
    options: dict[str, Any] = {"tensor_types": [("ffn_up", "Q8_0")]}
    report = lowbit.quantize_file("llama.gguf", tmp_path / "a.gguf", "BF16", **options)
    assert {t.format for t in report.tensors if "ffn_up" in t.name} == {"Q8_0"}
    options = {"pure": True, "output_tensor_type": "Q8_0"}
    report = lowbit.quantize_file("qwen3.gguf", tmp_path / "b.gguf", "Q4_0", **options)
    assert {t.name for t in report.tensors if t.format == "Q8_0"} == {"token_embd.weight"}


def test_options_of_convert_are_those_of_the_two_steps(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", "llama", layers=3)
    write_imatrix(tmp_path / "i.gguf", folder)
    options: dict[str, Any] = {
        "tensor_types": [("attn_k", "Q5_0")],
        "token_embedding_type": "Q3_K",
        "output_tensor_type": "Q4_1",
        "imatrix": tmp_path / "i.gguf",
        "exclude_weights": ["ffn_up"],
        "prune_layers": [1],
        "override_kv": {"general.name": "x"},
    }
    lowbit.convert(folder, tmp_path / "bf16.gguf", "BF16", verify=False, provenance=False)
    lowbit.convert(folder, tmp_path / "x.gguf", "Q4_K_M", verify=False, provenance=False, **options)
    lowbit.quantize_file(tmp_path / "bf16.gguf", tmp_path / "y.gguf", "Q4_K_M", **options)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    for option in ("allow_requantize", "keep_split"):
        with pytest.raises(TypeError, match=option):
            lowbit.convert(folder, tmp_path / "z.gguf", "Q4_K_M", **{option: True})
    with pytest.raises(lowbit.InputError, match="COPY works only for GGUF files"):
        lowbit.convert(folder, tmp_path / "z.gguf", "COPY", verify=False, provenance=False)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"attn", lowbit.FormatError, "'attn': expected REGEX=FORMAT"),
        (b"=Q8_0", lowbit.FormatError, "expected REGEX=FORMAT"),
        (b"a=Q8_0\nb=\xff", lowbit.FormatError, "not UTF-8 at offset 9"),
        (None, lowbit.FileError, "No such file"),
    ],
)
def test_bad_files_of_tensor_types(
    here: Path, tmp_path: Path, content: bytes | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        (tmp_path / "types.txt").write_bytes(content)
    options: dict[str, Any] = {"tensor_type_file": tmp_path / "types.txt"}
    with pytest.raises(error, match=message):
        lowbit.quantize_file("llama.gguf", tmp_path / "out.gguf", "Q4_0", **options)


def test_stacked_experts_have_importances_of_their_own(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    weights = random.standard_normal((3, 5, 256)).astype(np.float32)
    importances = random.uniform(0.1, 9, (3, 256)).astype(np.float32)
    metadata = {"general.architecture": "qwen3moe", "qwen3moe.block_count": 1, "qwen3moe.expert_count": 3}
    name = "blk.0.ffn_up_exps.weight"
    lowbit.gguf.write(tmp_path / "in.gguf", metadata, {name: weights})
    options = {"imatrix": {name: importances.reshape(-1)}}
    for chunk in (256, 512, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "CHUNK_WEIGHTS", chunk)
            lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_S", **options)
        with lowbit.gguf.open(tmp_path / "out.gguf") as file:
            found = file.tensors[name].data
        for i in range(3):
            expected = lowbit.quantize(weights[i], "Q4_K", imatrix=importances[i]).data
            np.testing.assert_array_equal(found[i], expected)


def test_tensors_of_integers_are_copied(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    tensors = {"blk.0.ids": np.arange(6, dtype=np.int32), "blk.0.ffn_up.weight": np.ones((2, 32), np.float64)}
    lowbit.gguf.write(tmp_path / "in.gguf", metadata, tensors)
    report = lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "COPY")
    assert report.bits_per_weight == (6 * 32 + 64 * 64) / 70
    with lowbit.gguf.open(tmp_path / "out.gguf") as file:
        np.testing.assert_array_equal(file.tensors["blk.0.ids"], tensors["blk.0.ids"])
    with pytest.raises(lowbit.UnsupportedError, match=r"blk\.0\.ffn_up\.weight: F64 cannot be quantized"):
        lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")


def test_infinity_that_is_copied_is_no_loss(tmp_path: Path) -> None:
    weights = np.full((2, 32), np.inf, np.float16)
    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    lowbit.gguf.write(tmp_path / "in.gguf", metadata, {"blk.0.ffn_up.weight": weights})
    for format in ("F16", "COPY"):
        assert lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", format).notes == []


def test_numbers_of_layers_are_checked(tmp_path: Path) -> None:
    tensors = {"blk.5.ffn_up.weight": np.ones((2, 32), np.float32)}
    for count, layer, message in (
        (5, 1, r"blk\.5\.ffn_up\.weight: expected a layer from 0 to 4"),
        ("x", 1, "expected an integer in the file"),
    ):
        metadata = {"general.architecture": "llama", "llama.block_count": count}
        lowbit.gguf.write(tmp_path / "in.gguf", metadata, tensors)
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "COPY", prune_layers=[layer])
    metadata = {"general.architecture": "llama", "llama.block_count": (1 << 32) - 1}
    lowbit.gguf.write(tmp_path / "in.gguf", metadata, tensors)  # no memory for each layer that a file says it has
    options = {"prune_layers": [1, 3, 7]}
    report = lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "COPY", **options)
    assert [tensor.name for tensor in report.tensors] == ["blk.3.ffn_up.weight"]
    metadata["llama.rope.dimension_sections"] = np.zeros(4, np.int32)
    metadata["llama.block_count"] = 4
    lowbit.gguf.write(tmp_path / "in.gguf", metadata, tensors)
    with pytest.raises(lowbit.UnsupportedError, match=r"llama\.rope\.dimension_sections has one value per layer"):
        lowbit.quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "COPY", prune_layers=[1])
