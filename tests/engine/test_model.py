"""lowbit.load and Model with the embedded checkpoint: logits, text, streams, sequences, errors.

data/bard_reference.npz holds what transformers computes (make_model_reference.py).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from importlib.resources import files
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from reference_transformer import silu
from tiny_checkpoint import make_checkpoint

import lowbit

BARD = Path(str(files("lowbit") / "data" / "bard"))
PROMPTS = ["ROMEO:\nWhat light", "KING HENRY:\nThe day is", "First Citizen:\nBefore we proceed any further"]
MIXES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}


@pytest.fixture(scope="module")
def reference() -> list[dict[str, np.ndarray]]:
    with np.load(Path(__file__).parents[1] / "data" / "bard_reference.npz") as file:
        arrays = dict(file)
    num = len({key.partition(".")[0] for key in arrays})
    return [{k.partition(".")[2]: v for k, v in arrays.items() if k.startswith(f"{i}.")} for i in range(num)]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Callable[[str], Path]:
    """The embedded model as a GGUF file of a format, made once."""
    folder = tmp_path_factory.mktemp("gguf")

    def path(format: str) -> Path:
        file = folder / f"bard-{format}.gguf"
        if not file.exists():
            lowbit.convert(BARD, file, format=format, verify=False, provenance=False)
        return file

    return path


@pytest.fixture(scope="module")
def bard() -> lowbit.Model:
    return lowbit.load(BARD, compute="f32", threads=2)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """What fresh models write after each prompt."""
    return [lowbit.load(BARD, compute="f32").generate(p, max_tokens=40, ignore_eos=True) for p in PROMPTS]


@pytest.fixture(params=["folder", "bf16", "f32"])
def source(request, gguf_file) -> Path:
    return BARD if request.param == "folder" else gguf_file(request.param)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def test_logits_are_those_of_transformers(source, reference):
    model = lowbit.load(source, compute="f32")
    for expected in reference:
        logits = model.logits(expected["ids"])
        assert logits.shape == (len(expected["ids"]), model.spec.vocab_size)
        top = np.take_along_axis(logits, expected["top"], axis=1)
        tolerance = 1e-4 * expected["range"][:, None]
        assert (np.abs(top - expected["top_logits"]) <= tolerance).all()
        assert (np.abs(logits[:, ::61] - expected["some_logits"]) <= tolerance).all()
        np.testing.assert_allclose(np.ptp(logits, axis=1), expected["range"], rtol=1e-4)


def test_greedy_tokens_are_those_of_transformers(source, reference):
    model = lowbit.load(source, compute="f32")
    for expected in reference:
        tokens = list(model.tokens(expected["ids"], max_tokens=64, ignore_eos=True))
        assert tokens == expected["greedy"].tolist()


@pytest.mark.parametrize(("compute", "format"), [("f32", None), ("int8", "Q4_K_M"), ("auto", "Q8_0"), ("int8", "Q2_K")])
def test_pieces_and_company_change_no_bit(gguf_file, reference, compute, format):
    ids = [expected["ids"] for expected in reference]
    path = BARD if format is None else gguf_file(format)
    alone = lowbit.load(path, compute=compute)
    whole = [alone.logits(i) for i in ids]
    at = 100  # sequences of our own, away from those that the model hands out
    model = lowbit.load(path, compute=compute, max_sequences=3)
    for i, s in enumerate(ids):
        for a, b in pairwise([0, *range(1, len(s), 50), len(s)]):
            piece = model.forward(s[a:b], np.arange(a, b), np.full(b - a, at + i))
            assert piece.tobytes() == whole[i][a:b].tobytes()
        model.truncate(at + i)
    positions = np.concatenate([np.arange(len(s)) for s in ids])
    sequences = np.repeat(np.arange(at, at + 3), [len(s) for s in ids])
    logits = model.forward(np.concatenate(ids), positions, sequences)
    assert logits.tobytes() == np.concatenate(whole).tobytes()


@pytest.mark.parametrize("compute", ["auto", "int8", "bf16", "f32"])
@pytest.mark.parametrize("format", ["Q4_K_M", "Q8_0", "bf16"])
def test_threads_change_no_bit(gguf_file, reference, compute, format):
    ids = reference[1]["ids"]

    def run(threads: int) -> tuple[bytes, list[int]]:
        model = lowbit.load(gguf_file(format), compute=compute, threads=threads)
        return model.logits(ids).tobytes(), list(model.tokens(ids[:5], max_tokens=10, ignore_eos=True))

    assert run(1) == run(2) == run(3)


@pytest.mark.parametrize("format", MIXES)
@pytest.mark.parametrize("compute", ["int8", "auto"])
def test_quantized_layers(gguf_file, reference, format, compute):
    """Product by product, a quantized model is within the bound of its activations' rounding.

    The inputs of all products are observed. For each, the product that the model makes of it is compared with that of
    the decoded weights in float64; that the model makes this product and no other shows in what comes of it: the input
    of ffn_down, and the logits.
    """
    model = lowbit.load(gguf_file(format), compute=compute)
    seen: dict[str, np.ndarray] = {}
    model.observe(seen.__setitem__)
    logits = model.logits(reference[2]["ids"][: (num := 30)])
    model.observe(None)
    products = {}
    for name, x in seen.items():
        weight = model.weights[name]
        products[name] = lowbit.matmul(x, weight, compute=compute)
        x, w = x.astype(np.float64), weight.dequantize().astype(np.float64)
        scale = np.abs(x).reshape(num, -1, 32).max(axis=2).repeat(32, axis=1) / 127
        # Half a step of the activations, and 1/256 of that for the float sums.
        bound = scale / 2 * (1 + 1 / 256) @ np.abs(w).T
        assert (np.abs(products[name] - x @ w.T) <= bound).all(), name
    for i in range(model.spec.num_layers):
        gated = silu(products[f"blk.{i}.ffn_gate.weight"]) * products[f"blk.{i}.ffn_up.weight"]
        np.testing.assert_allclose(seen[f"blk.{i}.ffn_down.weight"], gated, rtol=1e-5, atol=1e-6)
    assert logits.tobytes() == products["token_embd.weight"].tobytes()
    assert len(seen) == 7 * model.spec.num_layers + 1


@pytest.mark.parametrize("compute", ["int8", "bf16", "auto"])
def test_computes_agree(gguf_file, reference, compute):
    """8-bit activations change the model far less than weights of 4 bits do."""
    ids = reference[2]["ids"]
    exact = lowbit.load(gguf_file("Q4_K_M"), compute="f32").logits(ids)
    original = lowbit.load(BARD, compute="f32").logits(ids)
    logits = lowbit.load(gguf_file("Q4_K_M"), compute=compute).logits(ids)
    assert np.sqrt(np.mean((logits - exact) ** 2)) < np.sqrt(np.mean((exact - original) ** 2)) / 3


# ---------------------------------------------------------------------------------------------------------------------
# Text


def test_text_goes_on_from_the_prompt(bard, texts):
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = bard.tokenizer.encode(prompt)
        new = list(bard.tokens(ids, max_tokens=40, ignore_eos=True))
        assert len(new) == 40
        assert bard.tokenizer.decode(ids + new) == bard.tokenizer.decode(ids) + text
        assert bard.generate(ids, max_tokens=40, ignore_eos=True) == text


def test_stream_is_generate(bard, texts):
    for prompt, text in zip(PROMPTS, texts, strict=True):
        pieces = list(bard.stream(prompt, max_tokens=40, ignore_eos=True))
        assert len(pieces) > 10
        assert all(pieces)
        assert "".join(pieces) == text


def test_prefixes_are_reused(texts):
    """Later calls read only what they do not hold yet, and write what a fresh model writes."""
    model = lowbit.load(BARD, compute="f32")
    read: list[int] = []
    model.observe(lambda name, x: read.append(len(x)) if name == "blk.0.attn_q.weight" else None)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert model.generate(prompt, max_tokens=40, ignore_eos=True) == text
    for prompt, text in zip(PROMPTS, texts, strict=True):
        read.clear()
        assert model.generate(prompt, max_tokens=40, ignore_eos=True) == text
        assert sum(read) == 40  # the prompt's last token and 39 new ones
    ids = model.tokenizer.encode(PROMPTS[0])
    longer = ids + list(model.tokens(ids, max_tokens=40, ignore_eos=True))
    read.clear()
    more = list(model.tokens(longer, max_tokens=10, ignore_eos=True))
    assert sum(read) == 10  # the prompt's last token and nine new ones
    read.clear()
    # A prompt that leaves the held one in its middle.
    other = [*longer[:20], longer[20] + 1, *ids[:4]]
    branch = list(model.tokens(other, max_tokens=10, ignore_eos=True))
    assert sum(read) == 5 + 9
    fresh = lowbit.load(BARD, compute="f32")
    assert list(fresh.tokens(longer, max_tokens=10, ignore_eos=True)) == more
    assert list(lowbit.load(BARD, compute="f32").tokens(other, max_tokens=10, ignore_eos=True)) == branch


@pytest.mark.parametrize("compute", ["f32", "auto"])
def test_seeds(gguf_file, compute):
    """The same seed, the same text: from a fresh model, again, and after other texts."""
    path = gguf_file("Q4_K_M")
    model = lowbit.load(path, compute=compute)
    options = {"max_tokens": 40, "ignore_eos": True, **SAMPLING}
    first = model.generate(PROMPTS[2], seed=7, **options)
    assert model.generate(PROMPTS[2], seed=8, **options) != first
    assert model.generate(PROMPTS[0], seed=7, **options) != first
    assert model.generate(PROMPTS[2], seed=7, **options) == first
    assert lowbit.load(path, compute=compute).generate(PROMPTS[2], seed=7, **options) == first
    assert model.generate(PROMPTS[2], **options) != model.generate(PROMPTS[2], **options)
    assert model.generate(PROMPTS[2], seed=2**64 - 1, **options)


def test_top_k_of_one_is_greedy(bard, texts):
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, temperature=1.5, top_k=1) == texts[0]
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, temperature=1.5, top_p=1e-9) == texts[0]
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, temperature=1.5, min_p=1.0) == texts[0]


def test_repetition_penalty_sees_prompt_and_text(bard):
    ids = bard.tokenizer.encode(PROMPTS[0])
    new = list(bard.tokens(ids, max_tokens=60, ignore_eos=True, repetition_penalty=1e4))
    assert len({*ids, *new}) == len({*ids}) + 60


def test_stop_strings(bard, texts):
    text = texts[0]
    stops = [text[5:9], text[17:20], text[21:22], text[:3], text[-4:]]
    for stop in stops:
        assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, stop=stop) == text[: text.find(stop)]
    first = min(text.find(stop) + len(stop) for stop in stops[:3])
    assert len(bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, stop=stops[:3])) < first
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, stop=["\u2603", text + "!"]) == text
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True, stop=[]) == text
    with pytest.raises(lowbit.InputError, match="stop: expected strings that are not empty"):
        bard.generate(PROMPTS[0], stop="")


def test_a_text_ends_at_eos(bard):
    """The token that ends a text is not a part of it."""
    ids = bard.tokenizer.encode(PROMPTS[0])
    all_tokens = list(bard.tokens(ids, max_tokens=40, ignore_eos=True))
    end = max(set(all_tokens), key=all_tokens.index)  # the one that comes up last
    model = lowbit.load(BARD, compute="f32")
    model.tokenizer.eos_ids = frozenset((end, 0))
    assert list(model.tokens(ids, max_tokens=40)) == all_tokens[: all_tokens.index(end)]
    assert list(model.tokens(ids, max_tokens=40, ignore_eos=True)) == all_tokens
    assert model.generate(ids, max_tokens=40) == bard.tokenizer.decode(all_tokens[: all_tokens.index(end)])


def test_max_tokens(bard):
    ids = bard.tokenizer.encode(PROMPTS[0])
    for num in (0, 1, 7):
        assert len(list(bard.tokens(ids, max_tokens=num, ignore_eos=True))) == num
    model = lowbit.load(BARD, compute="f32", context=50)
    assert len(list(model.tokens(ids, max_tokens=None, ignore_eos=True))) == 50 - len(ids)


# ---------------------------------------------------------------------------------------------------------------------
# Contexts, sequences, interruptions


def test_context_full(texts):
    model = lowbit.load(BARD, compute="f32", context=60)
    ids = model.tokenizer.encode(PROMPTS[2])
    with pytest.raises(lowbit.ContextFullError, match=rf"{len(ids)} tokens and 60 more do not fit into 60"):
        model.generate(ids, max_tokens=60)
    with pytest.raises(lowbit.ContextFullError, match="61 more do not fit into 60"):
        model.logits([1] * 61)
    assert model.generate(ids, max_tokens=40, ignore_eos=True) == texts[2]
    assert model.logits([1] * 60).shape == (60, model.spec.vocab_size)
    with pytest.raises(lowbit.ContextFullError, match="a prompt of 60 tokens and 1 more"):
        model.generate([1] * 60, max_tokens=None)


def test_streams_at_the_same_time(bard, texts):
    """Unfinished streams of one model do not disturb each other, whatever their order, nor do those given up."""
    streams = [bard.stream(p, max_tokens=40, ignore_eos=True) for p in PROMPTS]
    pieces: list[list[str]] = [[] for _ in streams]
    given_up = bard.stream(PROMPTS[0], max_tokens=40)
    next(given_up)
    turn = 0
    while len(list(filter(None, map("".join, pieces)))) < 3 or turn < 200:
        i = turn * turn % 3 if turn % 5 else turn % 3
        pieces[i].extend(islice(streams[i], 1))
        turn += 1
        if turn == 9:
            given_up.close()
    for i, text in enumerate(texts):
        assert "".join([*pieces[i], *streams[i]]) == text


def test_threads_at_the_same_time(texts):
    model = lowbit.load(BARD, compute="f32", threads=2)
    results: dict[int, list[str]] = {i: [] for i in range(len(PROMPTS))}

    def work(i: int) -> None:
        for _ in range(2):
            results[i].append(model.generate(PROMPTS[i], max_tokens=40, ignore_eos=True))

    workers = [threading.Thread(target=work, args=(i,)) for i in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == {i: [text, text] for i, text in enumerate(texts)}


def test_more_streams_than_sequences():
    model = lowbit.load(BARD, compute="f32", max_sequences=2)
    streams = [model.tokens(PROMPTS[i], max_tokens=9, ignore_eos=True) for i in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(lowbit.ContextFullError, match="max_sequences"):
        model.generate(PROMPTS[2], max_tokens=9)
    assert [len(list(stream)) for stream in streams] == [8, 8]
    assert model.generate(PROMPTS[2], max_tokens=9, ignore_eos=True)


@pytest.mark.parametrize("at", [1, 2, 9])
def test_ctrl_c(texts, at):
    """A signal that arrives while the model computes ends the stream; the model is as good as new."""
    model = lowbit.load(BARD, compute="f32")
    assert model.generate(PROMPTS[0], max_tokens=40, ignore_eos=True) == texts[0]
    calls = 0

    def interrupt(name: str, x: np.ndarray) -> None:
        nonlocal calls
        calls += name == "blk.2.ffn_up.weight"
        if calls == at:
            signal.raise_signal(signal.SIGINT)

    model.observe(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS[1], max_tokens=40, ignore_eos=True)
    model.observe(None)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert model.generate(prompt, max_tokens=40, ignore_eos=True) == text


def test_observer_that_raises(bard, texts):
    def fail(name: str, x: np.ndarray) -> None:
        raise ZeroDivisionError(name)

    bard.observe(fail)
    try:
        with pytest.raises(ZeroDivisionError, match=r"blk\.0\.attn_q\.weight"):
            bard.generate(PROMPTS[0], max_tokens=40)
        with pytest.raises(ZeroDivisionError):
            bard.logits([1, 2, 3])
    finally:
        bard.observe(None)
    assert bard.generate(PROMPTS[0], max_tokens=40, ignore_eos=True) == texts[0]


# ---------------------------------------------------------------------------------------------------------------------
# Other models


def test_sentencepiece_text_goes_on_from_the_prompt(tmp_path):
    """The space in front of the first new word stays: prompt and text together are one text."""
    folder = make_checkpoint(tmp_path, "llama", tokenizer="llama-spm", scale=0.2)
    model = lowbit.load(folder, compute="f32")
    for seed in range(12):
        ids = model.tokenizer.encode("the and")
        new = list(model.tokens(ids, max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True))
        text = model.generate(ids, max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True)
        assert model.tokenizer.decode(ids) + text == model.tokenizer.decode(ids + new)


def test_chat(tmp_path):
    folder = make_checkpoint(tmp_path, "qwen3")
    model = lowbit.load(folder, compute="f32")
    messages = [{"role": "user", "content": "the and"}]
    ids = model.tokenizer.encode_chat(messages)
    text = model.chat(messages, max_tokens=20, temperature=0, ignore_eos=True)
    assert text == model.generate(ids, max_tokens=20, ignore_eos=True)
    assert text == "".join(model.stream_chat(messages, max_tokens=20, temperature=0, ignore_eos=True))
    # By default as much as the context holds.
    rest = len(list(model.tokens(ids, max_tokens=None, ignore_eos=True)))
    assert rest == model.context - len(ids)


def test_no_chat_template(bard):
    with pytest.raises(lowbit.UnsupportedError, match="template"):
        bard.chat([{"role": "user", "content": "hello"}])


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def test_wrong_prompts_and_options(bard):
    vocab = bard.spec.vocab_size
    for prompt, match in (
        ("", "the prompt has no tokens"),
        ([], "the prompt has no tokens"),
        ([0.5], "expected integers in one dimension"),
        ([[1, 2]], "expected integers in one dimension"),
        ([True], "expected integers"),
        ([2**31], "expected -2147483648 to 2147483647"),
        ([2**70], "expected integers"),
        ([vocab], f"token 0 is {vocab}, expected 0 to {vocab - 1}"),
        ([1, -1], "is -1, expected 0"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.generate(prompt, max_tokens=3)
    for options, match in (
        ({"temperature": -1}, "temperature: expected >= 0, got -1"),
        ({"temperature": np.nan}, "temperature: expected a finite number, got nan"),
        ({"temperature": "hot"}, "temperature: expected a finite number, got 'hot'"),
        ({"temperature": 1e300}, "temperature: expected >= 0, got inf"),
        ({"top_k": -1}, "top_k: .*, got -1"),
        ({"top_k": 2**63}, "top_k: .*, got 9223372036854775808"),
        ({"top_k": 1.5}, "top_k: .*, got 1.5"),
        ({"top_p": 0}, "top_p: expected above 0 and at most 1, got 0"),
        ({"top_p": None}, "top_p: expected a finite number, got None"),
        ({"min_p": 2}, "min_p: expected 0 to 1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected above 0, got 0"),
        ({"seed": -1}, "seed: .*, got -1"),
        ({"seed": 2**64}, "seed: .*, got 18446744073709551616"),
        ({"seed": True}, "seed: .*, got True"),
        ({"max_tokens": -1}, "max_tokens: .*, got -1"),
        ({"max_tokens": 1.5}, "max_tokens: .*, got 1.5"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.generate("Now", **options)
    with pytest.raises(lowbit.InputError, match="expected integers"):
        bard.logits("Now")
    assert bard.logits([]).shape == (0, vocab)


def test_wrong_batches(bard):
    vocab = bard.spec.vocab_size
    for arrays, match in (
        (([1.5], [0], [50]), "tokens: expected integers"),
        ((np.array([2**32 + 1]), [0], [50]), "tokens: expected -2147483648 to 2147483647, got 4294967297"),
        (([1], [2**32], [50]), "positions: expected -2147483648 to 2147483647"),
        (([1], [0], [2**40]), "sequences: expected -2147483648 to 2147483647"),
        (([1, 2], [0], [50]), "of one length"),
        (([vocab], [0], [50]), f"token 0 is {vocab}"),
        (([[1], [2, 3]], [0], [50]), "tokens: expected an array"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.forward(*arrays)
    for options, match in (
        ({"wants_logits": [[True], [True, False]]}, "wants_logits: expected an array"),
        *(({"expected_length": n}, f"expected_length: .*, got {n}") for n in (-1, 2**64, 1.5)),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.forward([1], [0], [50], **options)
    for arguments, match in (
        *(((50, n), f"length: .*, got {n}") for n in (-1, 2**64, 1.5)),
        ((50, 1), "sequence 50 holds 0 tokens, not 1"),
        ((2**31,), "sequence: .*, got 2147483648"),
        ((None,), "sequence: .*, got None"),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            bard.truncate(*arguments)
    with pytest.raises(lowbit.InputError, match=r"start: .*, got -1"):
        bard.logits([1], start=-1)
    with pytest.raises(lowbit.InputError, match=r"callback: expected a function or None, got 5"):
        bard.observe(5)


def test_wrong_arguments_of_load(tmp_path):
    for options, match in (
        ({"compute": "int3"}, 'compute: expected auto, int8, int16, bf16 or f32, got "int3"'),
        ({"compute": None}, "compute: expected a str, got None"),
        *(({"threads": n}, "threads: expected ") for n in (0, -1, 1025, 10**9, 2**63)),
        *(({"threads": n}, "threads: expected ") for n in (True, 1.5, np.nan, "2")),
        *(({"context": n}, "context: expected ") for n in (0, -1, 2**31, 2**64, 1.5, True)),
        *(({"max_sequences": n}, "max_sequences: expected ") for n in (0, 65537, 10**9)),
        *(({"max_sequences": n}, "max_sequences: expected ") for n in (2**64, None, 1.5)),
    ):
        with pytest.raises(lowbit.InputError, match=match):
            lowbit.load(BARD, **options)
    with pytest.raises(lowbit.FileError, match=r"nowhere\.gguf"):
        lowbit.load(tmp_path / "nowhere.gguf")
    with pytest.raises(lowbit.Error):
        lowbit.load(tmp_path)
    (tmp_path / "text.gguf").write_text("Not a model at all, only a text of some length.")
    with pytest.raises(lowbit.FormatError, match=r"text\.gguf"):
        lowbit.load(tmp_path / "text.gguf")


def test_what_a_model_says_of_itself(gguf_file):
    model = lowbit.load(gguf_file("Q8_0"), threads=3, context=77)
    assert (model.spec.architecture, model.threads, model.context, model.compute) == ("qwen3", 3, 77, "auto")
    assert model.nbytes == sum(w.nbytes for w in model.weights.values())
    assert repr(model).endswith(f"bard-Q8_0.gguf', qwen3, {model.nbytes / 1e6:.1f} MB of weights)")
    assert model.metadata["general.architecture"] == "qwen3"
