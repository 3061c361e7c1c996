"""A study that was never told anything stands in nobody's way; one that was is kept."""

from __future__ import annotations

import pytest

from raymix.core.errors import StudyError
from raymix.core.job import Status, TrainResult
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import equal_histories, read
from raymix.study.serial import run_serial
from raymix.study.store import read_events
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)


def plan(name: str = "random", seed: int = 5) -> Plan:
    methods = (Method(name, Dirichlet(), 2),)
    return Plan(TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(0, 0), seed=seed)


def opened(folder, the_plan=None, data="d1", resume=False, **settings):
    return Study(folder, the_plan or plan(), {"data": data}, resume=resume, **settings)


def through(study):
    try:
        run_serial(study, TOY)
        return study.history
    finally:
        study.close()


def refused(folder, asked):
    """A study that ended before anything was told: no cluster held it, or the base is broken."""
    study = opened(folder, clock=lambda: 1.0)
    if asked:
        trial = study.ask()
        study.started(trial.number)
        with pytest.raises(StudyError, match="the base model could not be evaluated"):
            study.tell(trial.number, TrainResult(Status.FAILED, {}, error="no such model"))
    study.close()
    return study.id


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_what_was_refused_is_begun_anew_whatever_has_changed(tmp_path, asked, resume):
    before = refused(tmp_path / "study", asked)
    other = plan("other", seed=6)
    study = opened(tmp_path / "study", other, "d2", resume)
    assert study.id != before
    history = through(study)
    assert equal_histories(history, through(opened(tmp_path / "straight", other, "d2")))
    again = read(tmp_path / "study")
    assert equal_histories(again.history, history)
    assert set(again.header["methods"]) == {"other"}
    events = [event["event"] for event in read_events(tmp_path / "study")]
    assert events.count("study") == 2
    assert "resumed" not in events


@pytest.mark.parametrize("asked", [False, True])
def test_the_same_study_is_taken_up_by_resume_and_begun_anew_without(tmp_path, asked):
    before = refused(tmp_path, asked)
    study = opened(tmp_path, resume=True)
    assert study.id == before
    study.close()
    through(opened(tmp_path))
    assert read(tmp_path).attempts == dict.fromkeys(range(5), 0)


def test_what_was_told_is_kept(tmp_path):
    study = opened(tmp_path)
    study.tell(study.ask().number, TOY.run([study.job(study.history.trials[0])], None)[0])
    study.close()
    with pytest.raises(StudyError, match="already holds a study of 1 trials"):
        opened(tmp_path)
    with pytest.raises(StudyError, match=r"the experiment has changed: data was d1, is d2"):
        opened(tmp_path, data="d2", resume=True)
    # Nor can a file say so.
    line = (tmp_path / "history.jsonl").read_text().splitlines()[0]
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StudyError, match=r"line 4: a study begins where another one is under way"):
        read(tmp_path)
