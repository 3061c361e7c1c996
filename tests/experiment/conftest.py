import json

import pytest
import yaml

from raymix.testing.suite import write_suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite") / "suite", 3)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def describe(suite, cache):
    """An experiment as a user would write it; `labels` are the suite's domains' other names."""

    def describe(folder, labels=suite.names):
        splits = ("eval", "test")
        return {
            "study": {"name": "t", "output_dir": str(folder / "study")},
            "model_name_or_path": str(suite.model),
            "datasets": [
                {"domain": label, "path": str(suite.data(name, "train"))}
                | {f"{split}_path": str(suite.data(name, split)) for split in splits}
                for label, name in zip(labels, suite.names, strict=True)
            ],
            "mixture": {"budget": 320},
            "training": {
                "learning_rate": 2e-3,
                "per_device_train_batch_size": 32,
                "max_length": 32,
                "eval_rows": 32,
            },
            "search": {
                "searchers": ["dirichlet"],
                "num_trials": 2,
                "confirm": {"top_k": 1, "seeds": 2},
            },
            "cluster": {"runner": "local"},
            "tracking": {"report_to": "none"},
            "cache_dir": str(cache),
        }

    return describe


@pytest.fixture
def plain(describe, tmp_path):
    """An experiment on the domains copy, cipher and mirror (the suite's under other names)."""
    return describe(tmp_path, ("copy", "cipher", "mirror"))


@pytest.fixture
def written(plain, tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(plain)), sort_keys=False))
    return path
