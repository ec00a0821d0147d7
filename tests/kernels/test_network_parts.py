"""_core.Model: activations, rounding of activations, windows, fused matrices and long rotary tables, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from random_network import forward, frequencies, make_model, make_spec, packed, random_ids, random_tensors
from reference_transformer import ACTIVATIONS

import lowbit
from lowbit.arch.model_spec import Rope


def inputs(model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What each weight is multiplied with."""
    seen: dict[str, np.ndarray] = {}
    model.set_observer(lambda name, x: seen.update({name: x}))
    forward(model, ids)
    model.set_observer(None)
    return seen


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(simd, activation):
    """Gates from biases alone, so that what ffn_down gets is act(gate) for known gates, of any size a float has."""
    sizes = np.geomspace(1e-30, 1e18, 300)
    gates = np.concatenate([np.linspace(-12, 12, 4801), sizes, -sizes, [0.0, -0.0]]).astype(np.float32)
    spec = make_spec(num_layers=1, intermediate_size=len(gates), activation=activation)
    tensors = random_tensors(spec)
    for name, bias in (("ffn_gate", gates), ("ffn_up", np.ones_like(gates))):
        tensors[f"blk.0.{name}.weight"][:] = 0
        tensors[f"blk.0.{name}.bias"] = bias
    (got,) = inputs(make_model(spec, tensors), np.array([3]))["blk.0.ffn_down.weight"].astype(np.float64)
    x = gates.astype(np.float64)
    want = ACTIVATIONS[activation](x)
    # An exponential's error grows with its argument's, which is rounded like any other number.
    argument = {"silu": np.abs(x), "gelu_tanh": np.abs(1.6 * x + 0.0714 * x**3), "relu2": 0 * x}[activation]
    bound = 2.0**-24 * (6 + 4 * np.minimum(argument, 104)) * np.abs(want) + 1e-37
    assert (np.abs(got - want) <= bound).all()
    tensors["blk.0.ffn_gate.bias"][7] = np.nan
    (got,) = inputs(make_model(spec, tensors), np.array([3]))["blk.0.ffn_down.weight"]
    assert np.isnan(got[7])


@pytest.mark.parametrize("compute", ["f32", "bf16", "int8", "auto"])
@pytest.mark.parametrize("format", ["F32", "BF16", "TQ1_0", "TQ2_0"])
def test_int8_activations(simd, format, compute):
    """Every way to multiply gives the product of ternary weights with one and the same 8-bit codes."""
    spec = make_spec(num_layers=1, hidden_size=256, intermediate_size=256, int8_activations=True, activation="relu2")
    tensors = random_tensors(spec)
    rng = np.random.default_rng(5)
    for name in ("ffn_gate", "ffn_up"):
        tensors[f"blk.0.{name}.weight"] = rng.integers(-1, 2, (256, 256)).astype(np.float32)
        tensors[f"blk.0.{name}.scale"] = rng.uniform(0.01, 0.1, 1).astype(np.float32)
    ternary = {name: tensors[name] for name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")}
    for num in (3, 20):
        seen = inputs(make_model(spec, {**tensors, **packed(ternary, format)}, compute), random_ids(spec, num))
        x = seen["blk.0.ffn_gate.weight"]
        scale = np.float32(127) / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-5))
        rounded = np.rint(x * scale).astype(np.float64) / scale
        gate, up = (
            rounded @ tensors[f"blk.0.{n}.weight"].T * tensors[f"blk.0.{n}.scale"] for n in ("ffn_gate", "ffn_up")
        )
        want = np.maximum(gate, 0) ** 2 * up
        assert np.abs(seen["blk.0.ffn_down.weight"] - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("compute", ["f32", "auto"])
def test_keys_before_the_window_are_not_read(simd, compute):
    """A token that is not a number, and pages behind it nothing of it is left, whole or token by token."""
    spec = make_spec(num_layers=1, windows=(40,))
    tensors = random_tensors(spec)
    tensors["token_embd.weight"][5] = np.nan
    ids = random_ids(spec, 300)
    ids[ids == 5] = 6
    expected = forward(make_model(spec, tensors, compute), ids)
    ids[3] = 5
    model = make_model(spec, tensors, compute)
    with_nan = forward(model, ids)
    finite = np.isfinite(with_nan[:, 6:]).all(axis=1)
    assert not finite[3:43].any() or compute == "auto"  # half precision of the oldest targets has no NaN
    assert finite[64 + 40 + 8 :].all()
    assert with_nan[120:, 6:].tobytes() == expected[120:, 6:].tobytes()
    if compute == "f32":
        model.truncate(0, 200)
        alone = np.concatenate([forward(model, ids[i : i + 1], i) for i in range(200, 300)])
        assert alone[:, 6:].tobytes() == expected[200:, 6:].tobytes()


def test_window_longer_than_a_chunk():
    """A prompt of several chunks with a window that reaches over their seams."""
    spec = make_spec(num_layers=2, windows=(100, 600))
    tensors = random_tensors(spec)
    ids = random_ids(spec, 1200)
    model = make_model(spec, tensors)
    whole = forward(model, ids)
    pieces = [forward(model, ids[a : a + 171], a, sequence=1) for a in range(0, 1200, 171)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_fused_matrices_are_their_parts(simd):
    """Rows of one tensor give the bits of three, and are observed once."""
    spec = make_spec()
    fused = random_tensors(spec, extras=True, fused=True)
    split = dict(fused)
    for i in range(spec.num_layers):
        for kind in ("weight", "bias"):
            q, k, v = np.split(split.pop(f"blk.{i}.attn_qkv.{kind}"), [64, 96])
            gate, up = np.split(split.pop(f"blk.{i}.ffn_up.{kind}"), 2)
            split.update({f"blk.{i}.attn_{n}.{kind}": a for n, a in zip("qkv", (q, k, v), strict=True)})
            split.update({f"blk.{i}.ffn_gate.{kind}": gate, f"blk.{i}.ffn_up.{kind}": up})
        for name in ("attn_q", "attn_k", "attn_v"):
            split[f"blk.{i}.{name}.scale"] = fused[f"blk.{i}.attn_qkv.scale"]
        split[f"blk.{i}.ffn_gate.scale"] = fused[f"blk.{i}.ffn_up.scale"]
    ids = random_ids(spec, 30)
    model = make_model(spec, fused)
    assert forward(model, ids).tobytes() == forward(make_model(spec, split), ids).tobytes()
    names: list[str] = []
    model.set_observer(lambda name, x: names.append(name))
    forward(model, ids[:1], 30)
    layer = ["attn_qkv", "attn_output", "ffn_up", "ffn_down"]
    assert names == [f"blk.{i}.{part}.weight" for i in range(2) for part in layer] + ["output.weight"]


def test_a_sequence_keeps_its_rotary_table():
    """Short sequences may not outgrow their table; what will be long begins with the long one."""
    rope = Rope(frequencies(16), 1.1, frequencies(16, 300.0), 1.4)
    spec = make_spec(original_context=64, ropes=(rope,))
    tensors = random_tensors(spec)
    model = make_model(spec, tensors)
    ids = random_ids(spec, 80)
    short, long = (forward(make_model(make_spec(ropes=(Rope(f, m),)), tensors), ids) for f, m in (
        (rope.frequencies, rope.magnitude), (rope.long_frequencies, rope.long_magnitude),
    ))  # fmt: skip
    assert forward(model, ids[:64]).tobytes() == short[:64].tobytes()
    assert not model.is_long(0)
    for start in (64, 60):
        model.truncate(0, start)
        with pytest.raises(lowbit.InputError, match=rf"sequence 0 holds {start} tokens .* truncate it to 0 and start"):
            forward(model, ids[start:], start)
        assert model.length(0) == start
    model.truncate(0, 0)
    assert forward(model, ids[:65]).tobytes() == long[:65].tobytes()
    assert model.is_long(0)
    assert forward(model, ids[65:], 65).tobytes() == long[65:].tobytes()
    pieces = [forward(model, ids[a : a + 10], a, sequence=1, expected_length=80) for a in range(0, 80, 10)]
    assert np.concatenate(pieces).tobytes() == long.tobytes()
    model.truncate(1, 0)
    assert not model.is_long(1)
    # A batch of both kinds.
    sequences = np.repeat(np.array([3, 4], np.int32), (80, 40))
    positions = np.concatenate([np.arange(80), np.arange(40)]).astype(np.int32)
    both = model.forward(ids[positions], positions, sequences, np.ones(120, bool))
    assert both[:80].tobytes() == long.tobytes()
    assert both[80:].tobytes() == short[:40].tobytes()
