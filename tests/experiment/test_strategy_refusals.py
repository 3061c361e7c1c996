"""What does not go together with stages is refused before anything trains; what does, passes."""

import pytest

from raymix.core.errors import RaymixError
from raymix.core.mixture import Domain
from raymix.experiment.build import plan, space
from raymix.experiment.config import Experiment

DUAL = {"type": "DMT", "special": "cipher", "k": 0.5}
PROMPTED = {"type": "ProMoT", "target": "cipher"}
ADAPTED = {**PROMPTED, "carrier": "lora"}


def planned(described, **blocks):
    for name, values in blocks.items():
        described[name] = {**described.get(name, {}), **values}
    experiment = Experiment.model_validate(described)
    sizes = tuple(Domain(name, 400, 4000, 1600) for name in experiment.names)
    return plan(experiment, space(experiment, sizes))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (
            {
                "strategy": DUAL,
                "search": {"early_stopping": {"scheduler": "asha"}},
                "training": {"eval_steps": 2},
            },
            r"search\.early_stopping\.scheduler: asha .*DMT of 'dirichlet'.*stages",
        ),
        (
            {
                "strategy": PROMPTED,
                "search": {"searchers": [{"type": "Online", "reweighter": "MoS"}]},
            },
            r"search\.searchers\.0: reweighter MoS needs signal .*ProMoT",
        ),
        ({"strategy": ADAPTED, "training": {"use_peft": True}}, r"strategy: ProMoT .*use_peft"),
        ({"strategy": ADAPTED, "training": {"merge_lora": True}}, "strategy: training.merge_lora"),
        (
            {
                "mixture": {"max_epochs": 1.0, "budget": 1100},
                "strategy": {**DUAL, "k": 0.0},
                "search": {"params": {"k": {"values": [0.0, 1.0]}}, "searchers": ["swept"]},
            },
            r"search\.searchers\.0\.strategy: .*with search\.params\.k 1\)",
        ),
        (
            {
                "mixture": {"bounds": {"cipher": (0.0, 0.5)}},
                "search": {"searchers": [{"type": "fixed", "mixtures": [{"cipher": 1.0}]}]},
            },
            r"method 'fixed' gives 'cipher' 1 of the budget",
        ),
        ({"search": {"searchers": ["swept"]}}, r"'swept' has no parameter to sweep"),
        ({"search": {"objective": {"keep": {"cipher": True}}}}, r"search\.objective\.keep"),
    ],
)
def test_refused(describe, tmp_path, blocks, words):
    with pytest.raises(RaymixError, match=words):
        planned(describe(tmp_path), **blocks)


def test_a_fixed_mixtures_own_strategy_is_held_against_that_mixture_alone(describe, tmp_path):
    # Uniform would need 1.3 epochs of cipher in both stages; nobody trains it in this order.
    searcher = {
        "type": "fixed",
        "mixtures": [{"cipher": 0.1, "edges": 0.45, "noise": 0.45}],
        "strategy": {**DUAL, "k": 1.0},
    }
    found = planned(
        describe(tmp_path),
        mixture={
            "max_epochs": 1.0,
            "budget": 800,
            "prior": {"cipher": 0.1, "edges": 0.45, "noise": 0.45},
        },
        search={"searchers": [searcher]},
    )
    assert found.methods[0].strategy is not None
