"""`lowbit.export_onnx`: what is in the folder, what is refused, and what happens to a folder that is not finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, write_imatrix, write_safetensors

import lowbit
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embeddings."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "qwen3", arch="qwen3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output matrix of its own."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "llama", arch="llama")


def gguf(source: Path, path: Path, format: str) -> Path:
    lowbit.convert(source, path, format, verify=False, provenance=False)
    return path


def exported(source: Path, target: Path, **options: Any) -> lowbit.onnx.Model:
    lowbit.export_onnx(source, target, **options)
    return lowbit.onnx.open(target / "model.onnx")


def values(model: lowbit.onnx.Model) -> dict[str, tuple[str, tuple[int | str | None, ...] | None]]:
    return {each.name: (str(each.dtype), each.shape) for each in (*model.inputs, *model.outputs)}


def operators(model: lowbit.onnx.Model) -> set[str]:
    return {node.operator for node in model.nodes}


@pytest.mark.parametrize(("layout", "activations"), [("genai", "float32"), ("standard", "float16")])
def test_inputs_and_outputs(tmp_path: Path, qwen3: Path, layout: str, activations: str) -> None:
    model = exported(qwen3, tmp_path / "out", layout=layout, activations=activations)
    past, present = (("batch_size", 2, f"{length}_sequence_length", 64) for length in ("past", "total"))
    expected = {
        "input_ids": ("int64", ("batch_size", "sequence_length")),
        "attention_mask": ("int64", ("batch_size", "total_sequence_length")),
        "logits": ("float32", ("batch_size", "sequence_length", 288)),
    }
    for layer in range(2):
        for part in ("key", "value"):
            expected[f"past_key_values.{layer}.{part}"] = (activations, past)
            expected[f"present.{layer}.{part}"] = (activations, present)
    assert values(model) == expected


def test_layout_standard_has_operators_of_ai_onnx_only(tmp_path: Path, qwen3: Path) -> None:
    for opset in (17, 23):
        model = exported(qwen3, tmp_path / str(opset), layout="standard", opset=opset, format="f32")
        assert dict(model.opsets) == {"": opset}
        assert {node.domain for node in model.nodes} == {""}
        assert ("Attention" in operators(model)) == (opset == 23)


def test_layout_genai_has_fused_operators(tmp_path: Path, qwen3: Path) -> None:
    model = exported(qwen3, tmp_path / "out")
    fused = ("GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized", "SkipSimplifiedLayerNormalization")
    assert {f"com.microsoft.{name}" for name in fused} <= operators(model)
    (attention, *_) = (node for node in model.nodes if node.op_type == "GroupQueryAttention")
    assert [attention.get(name) for name in ("num_heads", "kv_num_heads", "do_rotary")] == [4, 2, 1]
    levels = {node.get("accuracy_level") for node in model.nodes if node.op_type == "MatMulNBits"}
    assert levels == {4}


def test_tied_embeddings_are_stored_once(tmp_path: Path, qwen3: Path) -> None:
    blocks = exported(qwen3, tmp_path / "int4").graph.tensors
    places = [tensor.external for name, tensor in blocks.items() if name.startswith("token_embd.weight_codes")]
    assert len(places) == 2
    assert places[0] == places[1] is not None
    for layout in ("genai", "standard"):
        floats = exported(qwen3, tmp_path / layout, format="bf16", layout=layout).graph.tensors
        assert [name for name in floats if name.startswith(("token_embd", "output."))] == ["token_embd.weight"]


def test_floats_are_the_sources(tmp_path: Path, llama: Path) -> None:
    """Products have their weights transposed; embeddings and the output matrix do not."""
    tensors = exported(llama, tmp_path / "out", format="f32").graph.tensors
    source = Checkpoint(llama).tensors
    for name, hf in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        expected = read(source[hf]).astype(np.float32)
        np.testing.assert_array_equal(tensors[name].array, expected.T if "ffn" in name else expected)


@pytest.mark.parametrize("options", [{}, {"format": "f32"}, {"format": "Q4_K_M", "layout": "standard"}], ids=str)
def test_a_dry_run_knows_the_sizes(tmp_path: Path, qwen3: Path, options: dict[str, Any]) -> None:
    planned = lowbit.export_onnx(qwen3, tmp_path / "out", dry_run=True, **options)
    assert not (tmp_path / "out").exists()
    report = lowbit.export_onnx(qwen3, tmp_path / "out", **options)
    weights = [path for path in (tmp_path / "out").iterdir() if path.name.startswith("model.onnx")]
    assert planned.num_bytes == report.num_bytes == sum(path.stat().st_size for path in weights)
    assert [matrix._replace(error=None) for matrix in report.matrices] == planned.matrices


def test_the_report(tmp_path: Path, qwen3: Path) -> None:
    report = lowbit.export_onnx(qwen3, tmp_path / "out", format="int8", block_size=64)
    assert (report.format, report.layout, report.path) == ("int8", "genai", str(tmp_path / "out"))
    embedding = next(matrix for matrix in report.matrices if matrix.name == "token_embd.weight")
    sizes = (288 * 256 * 2, 288 * 256 * 68 // 64)
    assert embedding[:7] == ("token_embd.weight", (288, 256), "BF16", "INT8", *sizes, "lossy")
    assert embedding.error is not None
    assert 0 < embedding.error < 0.01
    assert len(report.matrices) == 1 + 2 * 7


def test_a_gguf_file_is_taken_as_it_is(tmp_path: Path, qwen3: Path) -> None:
    file = gguf(qwen3, tmp_path / "m.gguf", "Q4_K_M")
    report = lowbit.export_onnx(file, tmp_path / "out")
    assert {matrix.format for matrix in report.matrices} == {"Q4_K", "Q6_K"}
    assert all(matrix.before == matrix.format for matrix in report.matrices)
    floats = lowbit.export_onnx(file, tmp_path / "floats", format="f16")
    assert floats.format == "f16"


@pytest.mark.parametrize("format", ["int4", "Q4_0"])
def test_quantizing_twice_must_be_wanted(tmp_path: Path, qwen3: Path, format: str) -> None:
    file = gguf(qwen3, tmp_path / "m.gguf", "Q8_0")
    with pytest.raises(lowbit.InputError, match=r"already quantized \(Q8_0\).*allow_requantize"):
        lowbit.export_onnx(file, tmp_path / "out", format=format)
    lowbit.export_onnx(file, tmp_path / "out", format=format, allow_requantize=True)


def test_importances(tmp_path: Path, qwen3: Path) -> None:
    """They change codes; formats that need them are refused without."""
    write_imatrix(tmp_path / "imatrix.gguf", qwen3)
    plain = exported(qwen3, tmp_path / "plain").graph.tensors
    weighted = exported(qwen3, tmp_path / "weighted", imatrix=tmp_path / "imatrix.gguf").graph.tensors
    name = "blk.0.ffn_up.weight_codes"
    assert not np.array_equal(plain[name].array, weighted[name].array)
    with pytest.raises(lowbit.InputError, match="unusable without importances"):
        lowbit.export_onnx(qwen3, tmp_path / "out", format="IQ2_XXS")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int5"}, "unknown format 'int5', did you mean"),
        ({"format": "copy"}, "unknown format 'copy'"),
        ({"layout": "torch"}, "layout: expected one of genai, standard, got 'torch'"),
        ({"opset": 16}, "opset: expected one of 17"),
        ({"opset": 17}, "opset: layout genai: expected 23 or more"),
        ({"activations": "bfloat16"}, "activations: expected one of float32, float16"),
        ({"block_size": 48}, "block_size: expected one of 16"),
        ({"method": "hqq"}, "symmetric=False"),
        ({"format": "f16", "block_size": 64}, "block_size is an option of the formats int4 and int8, not of f16"),
        ({"format": "q4_0", "symmetric": False}, "symmetric is an option of the formats int4 and int8"),
        ({"format": "int4", "intermediate": "F16"}, "intermediate is an option of mixes"),
        ({"layout": "standard", "accuracy_level": 0}, "accuracy_level is an attribute of MatMulNBits"),
        ({"dry_run": "yes"}, "dry_run: expected a bool"),
    ],
    ids=str,
)
def test_options_that_are_wrong(tmp_path: Path, qwen3: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.export_onnx(qwen3, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_options_of_checkpoints(tmp_path: Path, qwen3: Path) -> None:
    file = gguf(qwen3, tmp_path / "m.gguf", "F16")
    for options in ({"lora": "adapter"}, {"like": "LlamaForCausalLM"}, {"format": "Q4_0", "intermediate": "F16"}):
        with pytest.raises(lowbit.InputError, match=r"works? only for checkpoints"):
            lowbit.export_onnx(file, tmp_path / "out", **options)


def test_importances_without_effect(tmp_path: Path, qwen3: Path) -> None:
    write_imatrix(tmp_path / "imatrix.gguf", qwen3)
    for options in ({"format": "f16"}, {"format": "int4", "method": "round"}):
        with pytest.raises(lowbit.InputError, match="does not use importances"):
            lowbit.export_onnx(qwen3, tmp_path / "out", imatrix=tmp_path / "imatrix.gguf", **options)


@pytest.mark.parametrize(
    ("arch", "arguments", "options", "message"),
    [
        (
            "llama",
            {"head_dim": 20, "hidden": 80},
            {},
            "GroupQueryAttention with 20 values per head: expected a multiple",
        ),
        ("bitnet", {}, {"activations": "float16"}, "activations float16: products of bitnet"),
        ("qwen3", {}, {"format": "q4_0", "activations": "float16"}, "has scales in float32"),
        ("qwen3", {}, {"layout": "standard", "opset": 20}, "blocks of 4 bits in DequantizeLinear: expected opset 21"),
        ("bitnet", {}, {"format": "tq2_0", "layout": "standard"}, "expected opset 25 or more"),
    ],
    ids=str,
)
def test_what_a_layout_cannot_hold(
    tmp_path: Path, arch: str, arguments: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    source = make_checkpoint(tmp_path / "m", arch=arch, **arguments)
    with pytest.raises(lowbit.UnsupportedError, match=message):
        lowbit.export_onnx(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_embeddings_that_fill_no_blocks_are_floats(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m", arch="qwen3", hidden=96, ffn=128, head_dim=32)
    report = lowbit.export_onnx(source, tmp_path / "out", block_size=64)
    assert ["token_embd.weight: rows of 96 weights" in note for note in report.notes].count(True) == 1
    model = lowbit.onnx.open(tmp_path / "out" / "model.onnx")
    assert (
        model.graph.tensors["token_embd.weight"].dtype == Checkpoint(source).tensors["model.embed_tokens.weight"].dtype
    )
    assert "com.microsoft.GatherBlockQuantized" not in operators(model)


def test_long_contexts_are_noted(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m", arch="phi3")
    notes = lowbit.export_onnx(source, tmp_path / "out").notes
    assert any(note.startswith("sequences of more than 64 tokens have another rotary embedding") for note in notes)


def test_weights_that_exceed_float16(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m", arch="qwen3", dtype="F32")
    tensors = {name: read(tensor) for name, tensor in Checkpoint(source).tensors.items()}
    tensors["model.layers.0.mlp.up_proj.weight"][3, :2] = 1e6
    write_safetensors(source / "model.safetensors", tensors)
    report = lowbit.export_onnx(source, tmp_path / "out", format="f16")
    assert "blk.0.ffn_up.weight: 2 weights exceed float16 and became infinite" in report.notes


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "m", arch="qwen3", dtype="F32")
    tensors = {name: read(tensor) for name, tensor in Checkpoint(source).tensors.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(lowbit.InputError, match=r"blk\.1\.ffn_up\.weight.*output 3 and input 5 is NaN"):
        lowbit.export_onnx(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_file_without_a_tensor(tmp_path: Path, qwen3: Path) -> None:
    with lowbit.gguf.open(gguf(qwen3, tmp_path / "m.gguf", "F16")) as file:
        tensors = {name: tensor for name, tensor in file.tensors.items() if name != "blk.1.attn_k.weight"}
        lowbit.gguf.write(tmp_path / "less.gguf", dict(file.metadata), tensors)
    with pytest.raises(lowbit.FormatError, match=r"tensor blk\.1\.attn_k\.weight is missing"):
        lowbit.export_onnx(tmp_path / "less.gguf", tmp_path / "out")


def test_a_folder_with_files_stays(tmp_path: Path, qwen3: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(lowbit.FileError, match="new or an empty folder"):
        lowbit.export_onnx(qwen3, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.usefixtures("every_step")
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, qwen3: Path) -> None:
    seen = []

    def stop(progress: lowbit.Progress) -> None:
        seen.append(progress.done)
        if progress.unit == "B" and 0 < progress.done < (progress.total or 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lowbit.export_onnx(qwen3, tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_other_package(tmp_path: Path, qwen3: Path) -> None:
    code = (
        "import sys, lowbit\n"
        f"lowbit.export_onnx({str(qwen3)!r}, {str(tmp_path / 'out')!r})\n"
        "print({'torch', 'onnx', 'onnxruntime', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, llama: Path) -> None:
    for name, threads in (("a", 1), ("b", 2)):
        lowbit.export_onnx(llama, tmp_path / name, format="int4", threads=threads)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("stored", "format", "is_exact"),
    [
        ("BF16", "f32", True),
        ("BF16", "bf16", True),
        ("BF16", "f16", False),
        ("BF16", "int8", False),
        ("BF16", "Q8_0", False),
        ("Q8_0", None, True),
        ("Q8_0", "f32", True),
        ("Q8_0", "f16", False),
    ],
)
def test_labels_say_what_was_lost(tmp_path: Path, qwen3: Path, stored: str, format: str | None, is_exact: bool) -> None:
    """The error of a matrix is that of its decoded values, and `exact` refuses what is not 0."""
    source = qwen3 if stored == "BF16" else gguf(qwen3, tmp_path / "m.gguf", stored)
    report = lowbit.export_onnx(source, tmp_path / "out", format=format)
    assert {matrix.label for matrix in report.matrices} == {"exact" if is_exact else "lossy"}
    for matrix in report.matrices:
        assert (matrix.error is None) == is_exact
        assert matrix.bytes_before == matrix.shape[0] * matrix.shape[1] * (16 if stored == "BF16" else 8.5) // 8
    if is_exact:
        lowbit.export_onnx(source, tmp_path / "exact", format=format, exact=True)
        return
    with pytest.raises(lowbit.UnsupportedError, match=f"{stored} as .* is not exact"):
        lowbit.export_onnx(source, tmp_path / "exact", format=format, exact=True)
    assert not (tmp_path / "exact").exists()
    if stored == "BF16":
        values = {tensor.name: read(tensor) for tensor in Checkpoint(source).tensors.values()}
        found = next(matrix for matrix in report.matrices if matrix.name == "blk.0.ffn_up.weight")
        weights = values["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
        if format == "f16":
            lost = weights - weights.astype(np.float16).astype(np.float32)
            assert found.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(weights))
        if format == "Q8_0":
            lost = weights - np.asarray(lowbit.quantize(weights, "Q8_0"))
            assert found.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(weights), rel=1e-5)


def test_costs_are_reported(tmp_path: Path, llama: Path) -> None:
    report = lowbit.export_onnx(llama, tmp_path / "out", format="Q4_1")
    costs = {matrix.name: matrix.costs for matrix in report.matrices}
    assert costs["blk.0.ffn_up.weight"] == ("a second product with 1/32 of the weights, in float32",)
    assert not any(matrix.costs for matrix in lowbit.export_onnx(llama, tmp_path / "b", format="Q8_0").matrices)
