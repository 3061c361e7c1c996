"""Losses under weights that do not move: each row's are computed once."""

from dataclasses import replace

import pytest
from scripted import Scripted

from raymix.core.signals import Signal
from raymix.train.reference import TokenLosses
from raymix.train.worker import Worker


def test_losses_are_computed_once(setup_of, job_of, heard, reference, monkeypatch):
    """By the next job, by one that draws more, by another worker: only what is not known yet."""
    computed = []
    inner = TokenLosses._compute

    def spy(self, rows):
        before = [r.known.copy() for r in self._rows]
        inner(self, rows)
        new = [int((r.known & ~b).sum()) for r, b in zip(self._rows, before, strict=True)]
        computed.append(new)

    monkeypatch.setattr(TokenLosses, "_compute", spy)
    setup = setup_of()
    scripted = Scripted(frozenset({Signal.EXCESS_LOSS}))
    _, first = heard(Worker(setup), job_of(80, reference=reference), scripted)
    assert computed == [[40, 24, 16]]
    _, again = heard(Worker(setup), job_of(80, reference=reference, trial=2), scripted)
    assert again == first
    assert len(computed) == 1
    heard(Worker(setup), job_of(160, reference=reference, trial=3), scripted)
    assert computed[1:] == [[40, 24, 16]]
    heard(Worker(setup), job_of(80, reference=reference, seed=4, trial=4), scripted)
    assert 0 < sum(computed[2]) < 80


def test_rows_that_were_not_foreseen_are_computed_when_they_come_up(
    setup_of, job_of, heard, reference, monkeypatch
):
    """A sampler that moves draws other rows; what it hears is right and the training goes on."""
    computed = []
    inner = TokenLosses._compute
    monkeypatch.setattr(
        TokenLosses, "_compute", lambda self, rows: (computed.append(1), inner(self, rows))[1]
    )
    scripted = Scripted(frozenset({Signal.REFERENCE_LOSS}), Signal.REFERENCE_LOSS, "sampling", 0.5)
    worker = Worker(setup_of(warmup_steps=0))
    job = job_of(320, reference=reference)
    result, told = heard(worker, job, scripted)
    assert len(computed) > 1
    again, once_more = heard(Worker(setup_of(warmup_steps=0)), job, scripted)
    assert once_more == told
    assert replace(again, spent=result.spent) == result


def test_a_damaged_cache_is_made_again(setup_of, job_of, heard, reference, tmp_path):
    scripted = Scripted(frozenset({Signal.EXCESS_LOSS}))
    _, first = heard(Worker(setup_of()), job_of(80, reference=reference), scripted)
    files = sorted((tmp_path / "out" / "token-losses").glob("*/*.npz"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    _, again = heard(Worker(setup_of()), job_of(80, reference=reference), scripted)
    assert [t["excess_loss"] for t in again] == [
        pytest.approx(t["excess_loss"], abs=1e-6) for t in first
    ]
