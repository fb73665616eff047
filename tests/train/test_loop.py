import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from jaxrecipes.errors import DataError, DivergedError, InterruptedRunError, PreemptedError
from jaxrecipes.train.loop import LoopSettings, run_steps
from jaxrecipes.train.metrics import MetricsFile, read_records
from jaxrecipes.train.signals import StopRequest, stop_requests
from tests.tiny import packed_batch, tiny_config, tiny_params, trainer


def stream(config, start=0):
    number = start
    while True:
        batch = packed_batch(config, seed=number)
        yield number, {**batch, "row_ids": np.arange(4) + number}
        number += 1


def run(settings, *, start_state=None, start=0, stop=None, breaks=(), on_save=None):
    config = tiny_config()
    step, state, frozen, _ = trainer(
        config, tiny_params(config), [("layers/2/.*", True), (".*", False)]
    )
    events = []

    def batches():
        for number, batch in stream(config, start):
            if number in breaks:
                batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
            yield number, batch

    def save(number, state):
        events.append(("save", number, jax.tree.map(np.asarray, state)))
        if on_save:
            on_save(number)

    final = run_steps(
        step,
        state if start_state is None else start_state,
        frozen,
        batches(),
        settings,
        record=lambda number, values: events.append(("record", number, values)),
        evaluate=lambda number, state: events.append(("evaluate", number, None)),
        save=save,
        should_stop=lambda done: (stop or StopRequest()).signal_number,
    )
    return final, events


def test_order_is_record_evaluate_save_and_every_step_is_recorded_once():
    _, events = run(LoopSettings(7, save_every=3, evaluate_at=frozenset({3, 7})))
    kinds = [(kind, number) for kind, number, _ in events]
    assert [number for kind, number in kinds if kind == "record"] == list(range(1, 8))
    assert [entry for entry in kinds if entry[0] != "record"] == [
        ("evaluate", 3),
        ("save", 3),
        ("save", 6),
        ("evaluate", 7),
        ("save", 7),
    ]
    for kind, number in kinds:
        if kind == "save":
            assert kinds.index(("record", number)) < kinds.index((kind, number))


def test_a_resumed_run_ends_bit_identical():
    whole, events = run(LoopSettings(7, save_every=3))
    halfway = next(state for kind, number, state in events if kind == "save" and number == 3)
    resumed, later = run(LoopSettings(7, save_every=3), start_state=halfway, start=3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [v["loss"] for k, n, v in events if k == "record" and n > 3] == [
        v["loss"] for k, _, v in later if k == "record"
    ]


def test_a_finished_run_does_nothing_more():
    final, _ = run(LoopSettings(3, save_every=3))
    again, events = run(LoopSettings(3, save_every=3), start_state=final, start=3)
    assert events == [] and int(again.step) == 3


def test_too_many_skipped_steps_end_the_run_and_name_the_rows():
    with pytest.raises(DivergedError, match="step 5: 3 steps were skipped"):
        run(LoopSettings(9, save_every=9, skip_limit=2), breaks={1, 3, 4})
    _, events = run(LoopSettings(4, save_every=9, skip_limit=2), breaks={1})
    rows = {number: values.get("rows") for kind, number, values in events if kind == "record"}
    assert rows == {1: None, 2: [1, 2, 3, 4], 3: None, 4: None}


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, InterruptedRunError, 130), (signal.SIGTERM, PreemptedError, 75)],
)
def test_a_signal_saves_and_says_how_to_go_on(number, error, code):
    saved = []
    with stop_requests() as stop:
        # Sent while a step runs; the loop answers when the step is done.
        timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(error, match="saved at step") as raised:
            run(LoopSettings(10_000, save_every=10_000), stop=stop, on_save=saved.append)
    assert raised.value.exit_code == code and len(saved) == 1
    assert f"step {saved[0]} of" in str(raised.value)


def test_handlers_are_put_back_and_a_second_signal_acts_as_usual():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.signal_number == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_batches_that_do_not_continue_the_state_are_an_error():
    with pytest.raises(ValueError, match="batches continue at 2, the state at 0"):
        run(LoopSettings(3, save_every=3), start=2)


def test_a_metrics_file_forgets_what_will_be_run_again_and_survives_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, last_step=0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 1.0})
    file.close()
    with path.open("a") as raw:
        raw.write('{"step": 4, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3]
    MetricsFile(path, last_step=2).close()
    assert path.read_text().splitlines() == [json.dumps({"step": s, "loss": 1.0}) for s in (1, 2)]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match="metrics.jsonl:2"):
        read_records(path)
