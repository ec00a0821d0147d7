"""Threads of the core: how many there are, memory that one changes while another computes, and cycles of objects."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from program import BARD, check
from random_network import forward, make_model, make_spec, random_tensors

import lowbit
from lowbit import _core

if sys.platform == "linux":
    COUNT = """
import os, sys, threading
import numpy as np, lowbit

thread = threading.Thread(target=int)  # ThreadSanitizer adds one of its own with the first
thread.start()
thread.join()

def count():
    return len(os.listdir("/proc/self/task"))

w = np.random.default_rng(0).standard_normal((4096, 256)).astype(np.float32)
lowbit.quantize(w, "Q8_0", threads=1)
before = count()
"""

    def test_loops_of_all_sizes_share_one_pool() -> None:
        ends = COUNT + "for n in range(2, 33): lowbit.quantize(w, 'Q8_0', threads=n)\nprint(count() - before)"
        assert int(check(ends)) == 31

    def test_threads_that_no_loop_asks_for_end() -> None:
        ends = COUNT + "for n in [32] + 600 * [3]: lowbit.quantize(w[:64], 'Q8_0', threads=n)\nprint(count() - before)"
        assert int(check(ends)) == 2


def test_loops_of_changing_sizes_from_several_threads() -> None:
    w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    expected = lowbit.quantize(w, "Q8_0", threads=1).data.tobytes()
    broken = np.full((64, 1024), np.nan, np.float32)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for threads in np.random.default_rng(seed).integers(1, 9, 150).tolist():
            if lowbit.quantize(w, "Q8_0", threads=threads).data.tobytes() != expected:
                wrong.append(f"{threads} threads")
            try:
                lowbit.quantize(broken, "Q8_0", threads=threads)
                wrong.append("no error")
            except lowbit.InputError:
                pass

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.fixture
def unswitched() -> Iterator[None]:
    """A thread keeps Python's lock until it gives it up by itself, so it gets into a call before another goes on."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(100)
    yield
    sys.setswitchinterval(before)


def inside(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that has begun a call, and waits or computes there without Python's lock; and its result."""
    entered, results = threading.Event(), []

    def work() -> None:
        entered.set()
        results.append(call())

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    return thread, results


@pytest.mark.parametrize("changed", ["tokens", "positions", "sequences", "wants_logits"])
def test_a_batch_changed_while_it_waits_for_its_turn(unswitched: None, changed: str) -> None:
    spec = make_spec()
    model = make_model(spec, random_tensors(spec))
    expected = forward(make_model(spec, random_tensors(spec)), [1, 2, 3, 4])[:1]
    go = threading.Event()
    model.set_observer(lambda name, x: go.wait())
    first, _ = inside(lambda: forward(model, [1], sequence=1))
    batch = {
        "tokens": np.array([1, 2, 3, 4], np.int32),
        "positions": np.arange(4, dtype=np.int32),
        "sequences": np.zeros(4, np.int32),
        "wants_logits": np.array([True, False, False, False]),
    }
    # The first one has the turn until `go`.
    second, results = inside(lambda: model.forward(*batch.values()))
    others = {"tokens": 5, "positions": 99, "sequences": 1, "wants_logits": [False, False, False, True]}
    batch[changed][:] = others[changed]
    go.set()
    first.join()
    second.join()
    np.testing.assert_array_equal(results[0], expected)


def test_targets_changed_while_they_are_looked_up(unswitched: None) -> None:
    long, _ = inside(lambda: lowbit.quantize(np.ones((512, 1024), np.float32), "IQ2_S", threads=2))
    logits = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)
    targets = np.zeros(8, np.int64)
    expected = logits[:, 0] - np.log(np.exp(logits.astype(np.float64)).sum(1))
    second, results = inside(lambda: _core.log_probabilities(logits, targets, 2))  # waits for the first one's loop
    targets[:] = 1 << 40
    long.join()
    second.join()
    np.testing.assert_allclose(results[0], expected, rtol=1e-6)


def test_importances_changed_while_they_are_used(unswitched: None) -> None:
    rng = np.random.default_rng(0)
    weights, importance = rng.standard_normal((64, 1024)).astype(np.float32), rng.random(1024).astype(np.float32)
    expected = lowbit.quantize(weights, "Q4_K", imatrix=importance.copy(), threads=1)
    out = np.empty_like(expected.data)
    long, _ = inside(lambda: lowbit.quantize(np.ones((512, 1024), np.float32), "IQ2_S", threads=2))
    second, _ = inside(lambda: _core.quantize_rows(weights, "Q4_K", importance, out, False, 2))
    importance[:] = np.nan
    long.join()
    second.join()
    np.testing.assert_array_equal(out, expected.data)


def test_a_mask_of_bytes_that_are_neither_0_nor_1(small) -> None:
    spec, tensors = small
    model = make_model(spec, tensors)
    mask = np.array([2, 0, 255], np.uint8).view(bool)
    batch = np.array([1, 2, 3], np.int32), np.arange(3, dtype=np.int32), np.zeros(3, np.int32)
    found = model.forward(*batch, mask)
    np.testing.assert_array_equal(found, forward(make_model(spec, tensors), [1, 2, 3])[[0, 2]])


def test_an_observer_that_refers_to_its_model_is_collected() -> None:
    model = lowbit.load(BARD, threads=1)
    seen: list[str] = []

    def observe(name: str, x: np.ndarray, model: lowbit.Model = model) -> None:
        seen.append(name)

    model.observe(observe)
    model.logits([1])
    assert seen
    alive = weakref.ref(model), weakref.ref(observe)
    del model, observe
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_a_replaced_observer_is_freed_at_once(small) -> None:
    spec, tensors = small
    model = make_model(spec, tensors)

    def observe(name: str, x: np.ndarray) -> None:
        raise AssertionError

    alive = weakref.ref(observe)
    model.set_observer(observe)
    del observe
    gc.collect()
    assert alive() is not None
    model.set_observer(None)
    assert alive() is None
    assert forward(model, [1]).size
