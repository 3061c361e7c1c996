"""What README shows must work."""

import re
from pathlib import Path

import numpy as np
import yaml
from typer.testing import CliRunner

from raymix import search
from raymix.cli import app
from raymix.core.mixture import Domain
from raymix.core.trial import History, Proposal
from raymix.data.leak import FormatLeak
from raymix.experiment.build import plan, space
from raymix.experiment.config import Experiment
from raymix.strategy import DMT, Sequential
from raymix.testing.toy import Toy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language, words):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if words in text)


def test_the_example_experiment_is_one():
    experiment = Experiment.model_validate(yaml.safe_load(block("yaml", "sft_mix.yaml")))
    assert experiment.names == ("math", "code", "chat")
    assert experiment.mixture.budget == 10_000_000


def test_the_example_of_methods_is_one():
    plain = yaml.safe_load(block("yaml", "sft_mix.yaml"))
    search = yaml.safe_load(block("yaml", "of: methods"))["search"]
    experiment = Experiment.model_validate({**plain, "search": search})
    domains = tuple(Domain(name, 10**4, 10**7, 10**6) for name in experiment.names)
    found = plan(experiment, space(experiment, domains))
    assert {m.group for m in found.methods} == {"tpe", "ideal", "doremi", "mos", "doubled"}
    assert len(found.methods) == 15
    assert found.confirm.equal


def test_the_example_of_strategies_is_one():
    plain = yaml.safe_load(block("yaml", "sft_mix.yaml"))
    given = yaml.safe_load(block("yaml", "type: DMT"))
    experiment = Experiment.model_validate({**plain, **given})
    domains = tuple(Domain(name, 10**4, 10**7, 10**6) for name in experiment.names)
    found = plan(experiment, space(experiment, domains))
    assert isinstance(found.strategy, DMT)
    assert [len(method.params) for method in found.methods] == [1, 1, 0]
    assert isinstance(found.methods[2].strategy, Sequential)
    assert found.objective.keep == {"chat": 0.02}


def test_the_example_of_a_format_is_one():
    given = yaml.safe_load(block("yaml", "format_leak:"))
    leak = FormatLeak.model_validate(given["format_leak"])
    assert leak.target == "classify"
    assert leak.pattern is not None
    assert re.fullmatch(leak.pattern, "freeze account")


def test_the_example_searcher_searches():
    scope = {}
    header = "from dataclasses import dataclass\nimport numpy as np\n"
    header += "from raymix.core.trial import Proposal\n"
    exec(header + block("python", "class Greedy"), scope)
    proposal = scope["Greedy"]().propose(Toy().space(), History(), np.random.default_rng(0))
    assert isinstance(proposal, Proposal)


def test_every_command_and_every_file_is_there():
    for verb in re.findall(r"^raymix (\w+) +(?:sft_mix|runs)", README, re.MULTILINE):
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`((?:search|reweight|strategy)/\w+\.py)`", README):
        assert (ROOT / "raymix" / path).is_file(), path
    for name in search.__all__:
        assert name.lower() in README.lower(), name


def test_the_tree_has_a_line_for_each_room():
    rooms = {p.name for p in (ROOT / "raymix").iterdir() if (p / "__init__.py").is_file()}
    told = set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    assert rooms == told
