"""kronfluence as an independent implementation: same layers, rows and damping, empirical Fisher."""

import copy
import importlib.util
import warnings

import pytest
import torch
from small_networks import batched, chains, cosines, fit, language_model
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from raymix.data.batches import Item, collate
from raymix.influence.layers import choose
from raymix.influence.measure import Plan, measure

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("kronfluence") is None,
        reason="kronfluence is not installed (development extra)",
    ),
    # kronfluence 1.0.1 still imports torch.cuda.amp.GradScaler and asks torch for old settings.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

VOCABULARY = 24


class Rows(Dataset):
    """Every row of every table, padded to one width, as kronfluence wants them."""

    def __init__(self, tables):
        self.items = [
            (d, collate([Item(d, (row,), 0, 0)], tables, 16))
            for d, table in enumerate(tables)
            for row in range(table.rows)
        ]
        self.lengths = [int(table.tokens[row]) for table in tables for row in range(table.rows)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        _, batch = self.items[index]
        mask = torch.zeros(16, dtype=torch.long)
        mask[: self.lengths[index]] = 1
        return {
            "input_ids": torch.from_numpy(batch.input_ids[0]),
            "labels": torch.from_numpy(batch.labels[0]),
            "attention_mask": mask,
        }


def theirs(module, names, train, held, strategy, folder):
    """Their scores of each eval row with each training row [N', N]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Language(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            return cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return list(names)

        def get_attention_mask(self, batch):
            return batch["attention_mask"]

    task = Language()
    model = prepare_model(copy.deepcopy(module), task)
    analyzer = Analyzer(
        "test", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder), log_level=50
    )
    factors = FactorArguments(strategy=strategy, use_empirical_fisher=True)
    analyzer.fit_all_factors(strategy, train, per_device_batch_size=64, factor_args=factors)
    analyzer.compute_pairwise_scores(
        strategy,
        strategy,
        held,
        train,
        per_device_query_batch_size=64,
        per_device_train_batch_size=64,
        score_args=ScoreArguments(damping_factor=None),
    )
    return analyzer.load_pairwise_scores(strategy)["all_modules"].double()


def bundled(scores, train, held, domains):
    """Summed by domain of the rows [K', K]."""
    rows = torch.tensor([d for d, _ in held.items])
    columns = torch.tensor([d for d, _ in train.items])
    made = torch.zeros(domains, domains, dtype=torch.float64)
    for i in range(domains):
        for j in range(domains):
            made[i, j] = scores[rows == i][:, columns == j].sum()
    return made


def test_the_matrices_are_kronfluences(tmp_path):
    """Of a model with biases, grouped queries and gated MLPs."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = language_model(config, 3)
    train, held = (chains(seed, 4, 14, VOCABULARY) for seed in (1, 2))
    fit(model, batched(model, train), 40)
    layers = choose(model, "all")
    names = [layer.name for layer in layers]
    assert len(names) == 14
    plan = Plan(domains=4, damping=0.1, fisher="empirical")
    found = measure(model, layers, batched(model, train), batched(model, held), model.world, plan)
    model.module.zero_grad()
    module = copy.deepcopy(model.module)
    for part in module.modules():  # the worker's hook on the head keeps chosen places only
        part._forward_pre_hooks.clear()
    rows, queries = Rows(train), Rows(held)
    tokens, asked = (
        torch.tensor([float(t.loss_tokens.sum()) for t in tables]) for tables in (train, held)
    )
    for strategy in ("ekfac", "kfac", "identity"):
        scores = theirs(module, names, rows, queries, strategy, tmp_path)
        expected = -bundled(scores, rows, queries, 4) / torch.outer(asked, tokens)
        ours = found.scores.matrices[strategy].sum(0)
        cosine = float(cosines(ours.flatten(), expected.flatten()))
        assert cosine > 0.999
        # Even the scale: their curvature is per row, ours per judged token.
        if strategy == "ekfac":
            expected *= float(tokens.sum()) / len(rows)
            assert ours.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-2)
