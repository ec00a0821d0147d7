"""_core.Model on tiny random networks against NumPy's float64 (reference_transformer.py), and its cache."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest
from random_network import SPECS, forward, make_model, make_spec, packed, random_ids, random_tensors, relative_error
from reference_transformer import reference_logits

import lowbit

COMPUTES = ("f32", "int8", "int16", "bf16", "auto")
VARIANTS = {"plain": {}, "extras": {"extras": True}, "fused": {"extras": True, "fused": True}}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("fields", SPECS.values(), ids=SPECS.keys())
def test_logits(simd, fields, variant):
    """150 tokens, which end in the third page of keys."""
    spec = make_spec(**fields)
    tensors = random_tensors(spec, **variant)
    ids = random_ids(spec, 150)
    logits = forward(make_model(spec, tensors), ids)
    assert logits.shape == (150, spec.vocab_size)
    assert logits.dtype == np.float32
    expected = reference_logits(spec, tensors, ids)
    if not spec.int8_activations:
        assert relative_error(logits, expected) < 1e-5
        return
    # A value halfway between two codes may become the other one, a step of 1 / 127 of its token's largest.
    errors = [relative_error(a, b) for a, b in zip(logits, expected, strict=True)]
    assert max(errors) < 3e-2
    assert np.quantile(errors, 0.25) < 1e-5


@pytest.mark.parametrize("scale", [30, 300, 3000, 1e30])
def test_large_gates(simd, scale):
    """silu is x for large x and 0 for large -x, at any size a float has."""
    spec = make_spec(num_layers=1)
    tensors = random_tensors(spec)
    tensors["blk.0.ffn_gate.weight"] *= np.float32(scale)
    tensors["blk.0.ffn_up.weight"] /= np.float32(scale)
    ids = random_ids(spec, 30)
    assert relative_error(forward(make_model(spec, tensors), ids), reference_logits(spec, tensors, ids)) < 1e-5


def test_peaked_attention(simd):
    """Scores in the thousands: softmax neither overflows nor loses the largest."""
    spec = make_spec(num_layers=1)
    tensors = random_tensors(spec)
    tensors["blk.0.attn_q.weight"] *= 1000
    ids = random_ids(spec, 600)
    # An error of 2**-24 of a score is one of the score's size times that in its weight.
    assert relative_error(forward(make_model(spec, tensors), ids), reference_logits(spec, tensors, ids)) < 1e-3


#: With float weights, int8 has the products of f32, and a cache of half precision.
@pytest.mark.parametrize(
    ("compute", "format"), [*((how, "F32") for how in COMPUTES), ("int8", "Q8_0"), ("int16", "Q5_0"), ("auto", "Q4_0")]
)
def test_pieces_and_company_change_no_bit(simd, compute, format):
    """Whole, in pieces, and among other sequences."""
    for fields in SPECS.values():
        spec = make_spec(**fields)
        columns = (spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
        if format != "F32" and any(size % 32 for size in columns):
            continue
        model = make_model(spec, packed(random_tensors(spec, extras=True), format), compute)
        ids = [random_ids(spec, num, seed=num) for num in (140, 64, 65, 3)]
        whole = [forward(model, s, sequence=i) for i, s in enumerate(ids)]
        for i in range(len(ids)):
            model.truncate(i, 0)
        cuts = [0, 1, 2, 63, 64, 65, 100, 140]
        for a, b in pairwise(cuts):
            assert forward(model, ids[0][a:b], a, 5).tobytes() == whole[0][a:b].tobytes()
        # All sequences in one batch, token by token in turn.
        order = sorted((position, i) for i, s in enumerate(ids) for position in range(len(s)))
        positions, sequences = (np.array(part, np.int32) for part in zip(*order, strict=True))
        tokens = np.array([ids[i][position] for position, i in order], np.int32)
        logits = model.forward(tokens, positions, sequences, np.ones(len(tokens), bool))
        for i, expected in enumerate(whole):
            assert logits[sequences == i].tobytes() == expected.tobytes()


ATTENTION = {
    "large-heads": {"num_heads": 4, "num_kv_heads": 1, "head_dim": 256},
    "own-keys": {"num_heads": 3, "num_kv_heads": 3, "head_dim": 128},
    "7-for-one": {"num_heads": 7, "num_kv_heads": 1, "head_dim": 20, "attention_softcap": 3.0},
    "49-for-one": {"num_heads": 49, "num_kv_heads": 1, "head_dim": 3, "rope_dim": 2},
    "window-300": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 72, "windows": (300,)},
}


@pytest.mark.parametrize("compute", ["f32", "int8"])
@pytest.mark.parametrize("fields", ATTENTION.values(), ids=ATTENTION.keys())
def test_cuts_and_threads_change_no_bit_of_attention(simd, fields, compute):
    """1 to 65 tokens at once, at the end of a context of several spans of keys, which threads share."""
    spec = make_spec(num_layers=1, **fields)
    tensors = random_tensors(spec)
    ids = random_ids(spec, 860)
    model = make_model(spec, tensors, compute, threads=1)
    whole = forward(model, ids)
    expected = reference_logits(spec, tensors, ids)
    assert relative_error(whole, expected) < (1e-5 if compute == "f32" else 2e-3)
    for threads in (1, 2, 3, 8):
        model = make_model(spec, tensors, compute, threads)
        forward(model, ids)
        for num in range(threads, 66, 1 if threads == 3 else 9):
            start = 860 - 11 * num
            model.truncate(0, start)
            logits = forward(model, ids[start : start + num], start)
            assert logits.tobytes() == whole[start : start + num].tobytes(), (threads, num)
    # Contexts of very different lengths together: some are cut into spans, others are not.
    for i, length in enumerate((3, 64, 300, 700), start=1):
        forward(model, ids[:length], sequence=i)
    last = np.array([3, 64, 300, 700], np.int32)
    together = model.forward(ids[last], last, np.arange(1, 5, dtype=np.int32), np.ones(4, bool))
    assert together.tobytes() == whole[last].tobytes()


def test_longer_than_a_chunk():
    """More tokens than go through the layers at once, and a context of many pages."""
    spec = make_spec(num_layers=1)
    tensors = random_tensors(spec)
    ids = random_ids(spec, 1200)
    model = make_model(spec, tensors)
    whole = forward(model, ids)
    assert relative_error(whole, reference_logits(spec, tensors, ids)) < 1e-5
    pieces = [forward(model, ids[a : a + 171], a, sequence=1) for a in range(0, 1200, 171)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    wants = np.zeros(1200, bool)
    wants[[0, 511, 512, 700, 1199]] = True
    assert forward(model, ids, sequence=2, wants=wants).tobytes() == whole[wants].tobytes()
    model.truncate(1, 0)
    assert forward(model, ids, sequence=1, wants=np.zeros(1200, bool)).shape == (0, spec.vocab_size)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0"])
def test_threads_change_no_bit(compute, format):
    spec = make_spec()
    tensors = packed(random_tensors(spec, extras=True), format)
    ids = random_ids(spec, 90)

    def run(threads: int) -> bytes:
        model = make_model(spec, tensors, compute, threads)
        return b"".join(forward(model, ids[a:b], a).tobytes() for a, b in ((0, 40), (40, 41), (41, 45), (45, 90)))

    alone = run(1)
    assert all(run(threads) == alone for threads in (2, 3, 8))


@pytest.mark.parametrize("compute", ["int8", "int16", "bf16", "auto"])
def test_other_computes_are_near(simd, compute):
    """Float weights, so what differs is the rounding of keys and values to half precision and of products to bf16."""
    spec = make_spec()
    tensors = random_tensors(spec, extras=True)
    ids = random_ids(spec, 100)
    expected = reference_logits(spec, tensors, ids)
    assert relative_error(forward(make_model(spec, tensors, compute), ids), expected) < 2e-3
    rounded = {name: a.astype(np.float16) if a.ndim == 2 else a for name, a in tensors.items()}
    assert relative_error(forward(make_model(spec, rounded, compute), ids), expected) < 3e-2


@pytest.mark.parametrize("format", ["Q4_0", "Q8_0", "MXFP4"])
def test_two_digits_are_near_exact(simd, format):
    """Against the same weights in float32: "int16" is hundreds of times nearer than "int8"."""
    for fields in (SPECS["base"], SPECS["int8-activations"]):
        spec = make_spec(**fields)
        tensors = packed(random_tensors(spec, extras=True), format)
        ids = random_ids(spec, 40)
        exact = forward(make_model(spec, tensors), ids)
        errors = {how: relative_error(forward(make_model(spec, tensors, how), ids), exact) for how in ("int8", "int16")}
        assert errors["int16"] < (3e-2 if spec.int8_activations else 1e-3)
        assert spec.int8_activations or errors["int16"] < errors["int8"] / 5


def test_weights_stay_alive(small):
    spec, tensors = small
    ids = random_ids(spec, 20)
    expected = forward(make_model(spec, tensors), ids)
    model = make_model(spec, {name: a.copy() for name, a in tensors.items()})
    gc.collect()
    clutter = [np.full(a.shape, np.nan, np.float32) for a in tensors.values() for _ in range(3)]
    assert forward(model, ids).tobytes() == expected.tobytes()
    del clutter


def test_tensors_of_unknown_names_are_ignored(small):
    spec, tensors = small
    ids = random_ids(spec, 5)
    more = {**tensors, "blk.2.attn_q.weight": np.ones((1, 1), np.float32), "": np.ones(3, np.float32)}
    assert forward(make_model(spec, more), ids).tobytes() == forward(make_model(spec, tensors), ids).tobytes()


def test_lengths_and_truncation(small):
    spec, tensors = small
    model = make_model(spec, tensors)
    ids = random_ids(spec, 130)
    whole = forward(model, ids)
    assert (model.length(0), model.length(1), model.length(-7)) == (130, 0, 0)
    for keep in (129, 128, 65, 64, 1, 0):
        model.truncate(0, keep)
        assert model.length(0) == keep
        # Other tokens first, so that what is forgotten must be overwritten.
        forward(model, ids[::-1][: 130 - keep], keep)
        model.truncate(0, keep)
        assert forward(model, ids[keep:], keep).tobytes() == whole[keep:].tobytes()
    with pytest.raises(lowbit.InputError, match="sequence 0 holds 130 tokens, not 131"):
        model.truncate(0, 131)
    with pytest.raises(lowbit.InputError, match="sequence 9 holds 0 tokens, not 1"):
        model.truncate(9, 1)
    model.truncate(9, 0)
    assert model.length(0) == 130


def test_context_full(small):
    """The call that does not fit changes nothing; what fits still does."""
    spec, tensors = small
    model = make_model(spec, tensors, max_length=100)
    ids = random_ids(spec, 101)
    whole = forward(make_model(spec, tensors), ids)
    forward(model, ids[:98])
    forward(model, ids[:30], sequence=1)
    with pytest.raises(lowbit.ContextFullError, match="sequence 0 holds 98 tokens and 3 more do not fit into 100"):
        forward(model, ids[98:101], 98)
    # The other sequence of the batch has room, but the batch is refused as one.
    positions = np.array([30, 98, 99, 100], np.int32)
    with pytest.raises(lowbit.ContextFullError):
        model.forward(ids[positions], positions, np.array([1, 0, 0, 0], np.int32), np.ones(4, bool))
    assert (model.length(0), model.length(1)) == (98, 30)
    assert forward(model, ids[98:100], 98).tobytes() == whole[98:100].tobytes()
    assert forward(model, ids[30:31], 30, sequence=1).tobytes() == whole[30:31].tobytes()
    with pytest.raises(lowbit.ContextFullError):
        forward(model, ids[100:], 100)
    model.truncate(0, 99)
    assert forward(model, ids[99:100], 99).tobytes() == whole[99:100].tobytes()


def test_sequences_full(small):
    spec, tensors = small
    model = make_model(spec, tensors, max_sequences=2)
    ids = random_ids(spec, 4)
    whole = forward(model, ids, sequence=-(2**31))
    forward(model, ids[:2], sequence=2**31 - 1)
    with pytest.raises(lowbit.ContextFullError, match="no room for sequence 7: all 2 sequences are in use"):
        forward(model, ids, sequence=7)
    assert model.length(7) == 0
    model.truncate(-(2**31), 0)
    assert forward(model, ids, sequence=7).tobytes() == whole.tobytes()


def test_batches_out_of_place(small):
    spec, tensors = small
    model = make_model(spec, tensors)
    ids = random_ids(spec, 10)
    whole = forward(model, ids)
    model.truncate(0, 4)
    forward(model, ids[:3], sequence=1)
    bad_tokens = [
        ([0, spec.vocab_size], "token 1 is 67, expected 0 to 66"),
        ([-1, 0], "token 0 is -1, expected 0 to 66"),
        ([0, 2**31 - 1], "token 1 is 2147483647"),
    ]
    for tokens, match in bad_tokens:
        with pytest.raises(lowbit.InputError, match=match):
            forward(model, tokens, 4)
    alone = [([position], [0]) for position in (5, 3, -1, 2**31 - 1)]
    for positions, sequences in (*alone, ([4, 4], [0, 0]), ([4, 4], [0, 1])):
        num = len(positions)
        with pytest.raises(lowbit.InputError, match=r"of sequence \d has position -?\d+, expected \d"):
            model.forward(ids[:num], np.array(positions, np.int32), np.array(sequences, np.int32), np.ones(num, bool))
    assert (model.length(0), model.length(1)) == (4, 3)
    assert forward(model, ids[4:], 4).tobytes() == whole[4:].tobytes()


def test_arrays_out_of_shape(small):
    spec, tensors = small
    model = make_model(spec, tensors)
    ints, wants = np.zeros(3, np.int32), np.ones(3, bool)
    for arrays in (
        (ints[:2], ints, ints, wants),
        (ints, ints[:2], ints, wants),
        (ints, ints, np.zeros(4, np.int32), wants),
        (ints, ints, ints, wants[:2]),
        (ints.reshape(3, 1), ints, ints, wants),
    ):
        with pytest.raises(lowbit.InputError, match="of one length"):
            model.forward(*arrays)
    with pytest.raises(TypeError):
        model.forward(ints.astype(np.float32), ints, ints, wants)
    # Every other element of longer arrays is an array, too.
    ids = random_ids(spec, 6)
    dense = (ids, np.arange(6, dtype=np.int32), np.zeros(6, np.int32), np.ones(6, bool))
    logits = model.forward(*(np.repeat(a, 2)[::2] for a in dense))
    model.truncate(0, 0)
    assert logits.tobytes() == forward(model, ids).tobytes()


def test_no_tokens(small):
    spec, tensors = small
    model = make_model(spec, tensors)
    assert forward(model, []).shape == (0, spec.vocab_size)
    assert model.length(0) == 0
