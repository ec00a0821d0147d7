"""_core.Model: observers, several threads, and descriptions, weights and batches that are wrong."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from random_network import as_given, forward, make_model, make_spec, packed, random_ids, random_tensors

import lowbit
from lowbit import _core
from lowbit.arch.model_spec import ModelSpec, Rope

# ---------------------------------------------------------------------------------------------------------------------
# The observer


def test_observer(small):
    """Every weight in order, with the input that it is multiplied with."""
    spec, tensors = small
    model = make_model(spec, tensors)
    seen: list[tuple[str, np.ndarray]] = []
    model.set_observer(lambda name, x: seen.append((name, x)))
    ids = random_ids(spec, 20)
    wants = np.arange(20) >= 17
    logits = forward(model, ids, wants=wants)
    layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    names = [f"blk.{i}.{part}.weight" for i in range(2) for part in layer] + ["token_embd.weight"]
    assert [name for name, _ in seen] == names
    for name, x in seen:
        assert x.dtype == np.float32
        assert x.shape == (3 if name == "token_embd.weight" else 20, tensors[name].shape[1])
    # What was handed out may be kept: it is what the product was made of.
    by_name = dict(seen)
    first = tensors["token_embd.weight"][ids].astype(np.float64)
    normed = first / np.sqrt((first**2).mean(axis=1, keepdims=True) + spec.norm_eps) * tensors["blk.0.attn_norm.weight"]
    np.testing.assert_allclose(by_name["blk.0.attn_q.weight"], normed, rtol=1e-5, atol=1e-6)
    last = lowbit.matmul(by_name["token_embd.weight"], tensors["token_embd.weight"], compute="f32")
    assert last.tobytes() == logits.tobytes()
    model.set_observer(None)
    forward(model, ids[:1], 20)
    assert len(seen) == len(names)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, lowbit.FormatError, SystemExit])
def test_observer_that_raises(small, error):
    """The exception arrives, and the sequences are as long as they were."""
    spec, tensors = small
    model = make_model(spec, tensors)
    ids = random_ids(spec, 80)
    whole = forward(model, ids)
    model.truncate(0, 30)

    def fail(name: str, x: np.ndarray) -> None:
        if name == "blk.1.ffn_up.weight":
            raise error("on purpose")

    model.set_observer(fail)
    with pytest.raises(error, match="on purpose"):
        forward(model, ids[30:], 30)
    with pytest.raises(error, match="on purpose"):
        forward(model, ids[:70], sequence=3)
    assert (model.length(0), model.length(3)) == (30, 0)
    model.set_observer(None)
    assert forward(model, ids[30:], 30).tobytes() == whole[30:].tobytes()


def test_observer_cannot_call_the_model(small):
    spec, tensors = small
    model = make_model(spec, tensors)
    calls = [
        lambda: forward(model, [1], 5),
        lambda: model.set_observer(None),
        lambda: model.length(0),
        lambda: model.truncate(0, 0),
    ]
    for call in calls:
        model.set_observer(lambda name, x, call=call: call())
        with pytest.raises(lowbit.InputError, match="the observer called its model"):
            forward(model, [1])
    model.set_observer(None)
    assert forward(model, [1]).shape == (1, spec.vocab_size)


def test_observer_of_one_model_may_call_another(small):
    spec, tensors = small
    model, other = make_model(spec, tensors), make_model(spec, tensors)
    model.set_observer(lambda name, x: other.length(0))
    assert forward(model, [1]).tobytes() == forward(other, [1]).tobytes()


def test_two_threads_take_turns(small):
    """Calls from several threads on one model, one with an observer, give what they give alone."""
    spec, tensors = small
    model = make_model(spec, tensors)
    ids = [random_ids(spec, 60, seed=i) for i in range(4)]
    alone = [forward(model, s, sequence=i) for i, s in enumerate(ids)]
    for i in range(4):
        model.truncate(i, 0)
    model.set_observer(lambda name, x: None)
    results: list[list[np.ndarray]] = [[] for _ in ids]

    def work(i: int) -> None:
        for at in range(60):
            results[i].append(forward(model, ids[i][at : at + 1], at, sequence=i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, expected in zip(results, alone, strict=True):
        assert np.concatenate(result).tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Descriptions and weights that are wrong


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        *(({name: 0}, f"{name} is 0, expected 1 to") for name in (
            "vocab_size", "context_length", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim",
        )),
        *(({name: 2**63}, f"{name} is 9223372036854775808, expected") for name in (
            "vocab_size", "context_length", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "rope_dim",
        )),
        ({"num_heads": 5}, "5 heads cannot share 2 key-value heads evenly"),
        ({"num_kv_heads": 8}, "num_kv_heads is 8, expected 1 to 4"),
        ({"rope_dim": 18}, "rope_dim is 18, expected 0 to 16"),
        ({"rope_dim": 7}, "rope_dim is 7, expected even"),
        *(({name: bad}, f"{name} is {bad:g}, expected a number of at least 0")
          for name in ("norm_eps", "attention_scale", "attention_softcap", "logit_softcap")
          for bad in (-1.0, np.nan, np.inf)),
        ({"embedding_scale": np.inf}, "embedding_scale is inf"),
        ({"windows": (0,)}, "windows has 1 values, expected 2"),
        ({"layer_ropes": (0, 0, 0)}, "layer_ropes has 3 values, expected 2"),
        ({"layer_ropes": (0, 1)}, "layer_ropes has 1 for 1 ropes"),
        ({"ropes": ()}, "layer_ropes has 0 for 0 ropes"),
        ({"ropes": (Rope((1.0,) * 7),)}, "frequencies has 7 values, expected 8"),
        ({"ropes": (Rope((np.nan,) * 8),)}, "frequencies is nan"),
        ({"ropes": (Rope((1.0,) * 8, np.inf),)}, "magnitude is inf"),
        ({"ropes": (Rope((1.0,) * 8, 1.0, (1.0,) * 9),)}, "long_frequencies has 9 values, expected 8"),
        ({"ropes": (Rope((1.0,) * 8, 1.0, (np.inf,) * 8),)}, "long_frequencies is inf"),
        ({"ropes": (Rope((1.0,) * 8, 1.0, (), np.nan),)}, "long_magnitude is nan"),
        ({"activation": "gelu"}, 'activation "gelu" is not one of silu, gelu_tanh, relu2'),
        ({"activation": 1}, 'activation is "1"'),
        ({"hidden_size": -1}, 'hidden_size is "-1"'),
        ({"windows": "ab"}, """windows is "'ab'\""""),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_spec(small, fields, match):
    spec, tensors = small
    with pytest.raises(lowbit.InputError, match=match):
        make_model(dataclasses.replace(spec, **fields), tensors, max_length=10)


def test_core_reads_every_field(small):
    """The structs of src/engine/spec.h have the fields of the Python classes, but for the name of the architecture."""
    read = set()

    class Recorder:
        def __init__(self, wrapped):
            self._wrapped = wrapped

        def __getattr__(self, name):
            read.add((type(self._wrapped), name))
            value = getattr(self._wrapped, name)
            return tuple(map(Recorder, value)) if name == "ropes" else value

    spec, tensors = small
    make_model(Recorder(spec), tensors)
    fields = {(c, field.name) for c in (ModelSpec, Rope) for field in dataclasses.fields(c)}
    assert read == fields - {(ModelSpec, "architecture")}


def test_wrong_arguments(small):
    spec, tensors = small
    for options, match in (
        ({"compute": "fp4"}, "compute: expected auto, int8, int16, bf16 or f32"),
        ({"threads": 0}, "threads"),
        ({"threads": -1}, "threads"),
        ({"threads": 2**40}, "threads"),
        ({"max_length": 0}, "max_length: expected 1 to 2147483647, got 0"),
        ({"max_length": 2**31}, "max_length: expected 1 to 2147483647, got 2147483648"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            make_model(spec, tensors, **options)


def test_missing_and_misshapen_tensors(small):
    spec, tensors = small
    for name, array in tensors.items():
        with pytest.raises(lowbit.FormatError, match=f"tensor {name} is missing"):
            make_model(spec, {key: a for key, a in tensors.items() if key != name})
        for wrong in (array[:-1], array[None, 0] if array.ndim == 2 else array[None], array.T.copy().ravel()):
            if wrong.shape == array.shape:
                continue
            with pytest.raises(lowbit.FormatError, match=f"tensor {name}: expected shape"):
                make_model(spec, {**tensors, name: wrong})
    optional = ["output.weight", "blk.1.attn_q.bias", "blk.0.attn_k_norm.weight", "blk.1.attn_q.scale"]
    optional += ["blk.0.post_ffw_norm.weight", "blk.0.attn_qkv.weight", "blk.1.ffn_sub_norm.weight"]
    for name in optional:
        with pytest.raises(lowbit.FormatError, match=rf"tensor {name}: expected shape .*, found \(3\)"):
            make_model(spec, {**tensors, name: np.ones(3, np.float32)})


def test_wrong_bytes(small):
    spec, tensors = small
    given = as_given(tensors)
    q8 = lowbit.quantize(tensors["token_embd.weight"], "Q8_0")
    name = "token_embd.weight"
    unaligned = np.empty(67 * 64 * 4 + 1, np.uint8)[1:]
    for wrong, match in (
        (("Q8_0", [67, 64], q8.data[:-1]), "expected 4556 contiguous bytes of Q8_0, got 4488"),
        (("Q8_0", [67, 64], q8.data[:, ::-1]), "contiguous"),
        (("Q8_0", [67, 65], q8.data), "67 rows of 65 do not fit blocks of 32"),
        (("F32", [67, 64], q8.data), "expected 17152 contiguous bytes of F32, got 4556"),
        (("F32", [67, 64], unaligned), 'tensor "token_embd.weight" is not aligned to 4 bytes'),
        (("F32", [2**40, 2**40], q8.data), "do not fit"),
        (("F32", [2**63, 4], q8.data), "do not fit"),
        (("F32", [], q8.data), "has 0 dimensions"),
        (("F32", [1, 67, 64], given[name][2]), "has 3 dimensions"),
        (("F33", [67, 64], q8.data), 'unknown format "F33"'),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            _core.Model(spec, {**given, name: wrong}, "f32", 1, 100, 1)
    for wrong in (None, ("F32", [67, 64]), ("F32", [-67, 64], given[name][2]), (1, [67, 64], given[name][2])):
        with pytest.raises((TypeError, RuntimeError)):
            _core.Model(spec, {**given, name: wrong}, "f32", 1, 100, 1)


@pytest.mark.parametrize("compute", ["f32", "int8", "int16", "bf16", "auto"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(compute, bad):
    """Neither hidden nor fatal: logits that depend on them are not finite."""
    spec = make_spec(num_layers=1)
    ids = random_ids(spec, 12)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors = random_tensors(spec)
        tensors[f"blk.0.{name}.weight"][3] = bad
        for format in ("F32", "BF16"):
            given = packed(tensors, format, allow_nonfinite=True)
            logits = forward(make_model(spec, given, compute), ids)
            # An infinity need not show: a gate of minus infinity is 0, and a score of it, too.
            assert np.isnan(logits).all() or not np.isnan(bad), (name, format)
    tensors = random_tensors(spec, extras=True)
    for name in ("blk.0.ffn_up.scale", "output_norm.weight", "blk.0.attn_k_norm.weight"):
        forward(make_model(spec, {**tensors, name: np.full_like(tensors[name], bad)}, compute), ids)
        forward(make_model(spec, {**tensors, name: np.zeros_like(tensors[name])}, compute), ids)


def test_nan_of_one_sequence_stays_there(small):
    """A NaN in the cache must not leak into another sequence, nor into what later takes its place."""
    spec, tensors = small
    tensors = {name: a.copy() for name, a in tensors.items()}
    tensors["token_embd.weight"][5] = np.nan
    for compute in ("f32", "auto"):
        model = make_model(spec, tensors, compute)
        good = np.array([1, 2, 3, 4, 6, 7, 8, 9, 10, 11], np.int32)
        expected = forward(model, good)[:, 6:]
        bad = good.copy()
        bad[7:] = 5
        forward(model, bad[:7], sequence=1)
        assert np.isnan(forward(model, bad[7:], 7, sequence=1)).all()
        model.truncate(1, 7)
        both = model.forward(
            np.concatenate([good, good[7:]]),
            np.concatenate([np.arange(10), np.arange(7, 10)]).astype(np.int32),
            np.array([2] * 10 + [1] * 3, np.int32),
            np.ones(13, bool),
        )[:, 6:]
        assert both[:10].tobytes() == expected.tobytes()
        assert both[10:].tobytes() == expected[7:].tobytes()
        model.truncate(1, 0)
        assert forward(model, good, sequence=1)[:, 6:].tobytes() == expected.tobytes()
