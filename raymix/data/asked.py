"""Makes the prompts of the format leak; loads transformers, so `prepare` runs it as a process."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from raymix.core.errors import ConfigError, DataError
from raymix.core.job import Json
from raymix.data.build import answer, put, sweep, tokeniser
from raymix.data.carve import Rows
from raymix.data.chat import Rendered
from raymix.data.content import content_hash
from raymix.data.encode import Ids
from raymix.data.formats import parse
from raymix.data.keys import plans
from raymix.data.leak import (
    MOST_LABELS,
    Asked,
    Format,
    FormatLeak,
    Prompts,
    bare,
    load_prompts,
    prompt_of,
    prompts_folder,
    save_prompts,
)
from raymix.data.locate import Plan
from raymix.data.messages import Example, Message
from raymix.data.prepared import Part, Prepared, load, prepared_folder
from raymix.data.source import DataSpec
from raymix.data.store import open_table, write_table
from raymix.data.tokenise import Tokeniser

_SEED = 20505
"""The rows that are asked are the same in every study, whatever its seed."""


@dataclass(frozen=True)
class _Row:
    """One row that is asked: token ids of its prompt, of its bare form, and its true answer."""

    kept: Ids
    bare: Ids | None
    answer: str


@dataclass(frozen=True, eq=False)
class _Asking:
    """Cuts prompts out of the rows of prepared domains."""

    tokeniser: Tokeniser
    leak: FormatLeak

    def examples(self, plan: Plan, part: Part, split: str) -> list[Example]:
        """The examples whose rows are in the table of `split`, each once, in its order."""
        wanted = dict.fromkeys(open_table(part.paths[split]).hashes.tolist())
        own = plan.train if split == "train" else plan.eval
        # Rows that were taken out of train are still to be found there.
        source = plan.train if isinstance(own, int | float) else own
        found: dict[int, Example] = {}
        for placed in self.tokeniser.read(source):
            example = parse(placed.row, plan.layout)
            content = example.content_hash()
            if content in wanted:
                found.setdefault(content, example)
        return [found[content] for content in wanted if content in found]

    def rows(self, examples: Sequence[Example]) -> tuple[list[_Row], int]:
        """At most `leak.rows` of them that can be asked, and how many others were passed over."""
        order = np.random.default_rng(_SEED).permutation(len(examples))
        rows: list[_Row] = []
        passed = 0
        for example in (examples[place] for place in order):
            if len(rows) == self.leak.rows:
                break
            row = self.row(example)
            passed += row is None
            rows += [] if row is None else [row]
        return rows, passed

    def row(self, example: Example) -> _Row | None:
        """What is asked of one example; None: it has no prompt, or one too long for an answer."""
        cut = prompt_of(example)
        kept = None if cut is None else self.ids(cut[0], example.tools)
        if cut is None or kept is None:
            return None
        turns = bare(cut[0], self.leak.instruction)
        return _Row(kept, None if turns is None else self.ids(turns, example.tools), cut[1])

    def ids(self, turns: Sequence[Message], tools: Json) -> Ids | None:
        """Token ids of a prompt, the template's header of an answer included."""
        encoder = self.tokeniser.encoder
        text = Rendered(self.tokeniser.chat.prompt(turns, tools))
        ((ids, _, cut),) = encoder.encode([text])
        fits = not cut and 0 < len(ids) <= encoder.max_length - self.leak.max_new_tokens
        return ids if fits else None

    def stops(self, examples: Sequence[Example]) -> Iterator[int]:
        """What ends an answer: the end-of-text token and those that the template ends turns with.

        A template that ends turns with plain text has no such token.
        """
        tokenizer = self.tokeniser.encoder.tokenizer
        if tokenizer.eos_token_id is not None:
            yield int(tokenizer.eos_token_id)
        for example in examples:
            cut = prompt_of(example)
            if cut is None:
                continue
            turns = (*cut[0], Message("assistant", cut[1], loss=True))
            text = self.tokeniser.chat.render(Example(turns, tools=example.tools)).text
            ending = text[text.rfind(cut[1]) + len(cut[1]) :]
            ids = tokenizer(ending, add_special_tokens=False)["input_ids"]
            yield from [token for token in ids if token in self.special][:1]

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that are no text."""
        tokenizer = self.tokeniser.encoder.tokenizer
        added = tokenizer.added_tokens_decoder.items()
        return frozenset({*tokenizer.all_special_ids, *(i for i, t in added if t.special)})


def make(spec: DataSpec, leak: FormatLeak, prepared: Prepared, key: str) -> None:
    """Cut the prompts of `leak` and keep them in the cache under `key`.

    Raises:
        ConfigError: the format fits nothing of the target's, or is no set of labels.
        DataError: no domain has a prompt.
    """
    asking = _Asking(tokeniser(spec, lambda domain, split, rows: None), leak)
    found = dict(zip([part.domain for part in prepared.parts], plans(spec), strict=True))
    parts = {part.domain: part for part in prepared.parts}
    target = parts.pop(leak.target)
    shape = _format(asking, found[leak.target], target)
    truths = [asking.examples(found[leak.target], target, "eval")]
    own = _own(shape, truths[0], leak)
    folder = prompts_folder(spec.cache(), key)
    sweep(folder.parent)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        asked: list[Asked] = []
        for domain, part in parts.items():
            examples = asking.examples(found[domain], part, "eval")
            rows, passed = asking.rows(examples)
            if rows:
                truths.append(examples)
                asked.append(_written(domain, rows, passed, shape, scratch, folder))
        if not asked:
            raise DataError(
                f"format_leak: no eval row of another domain than '{leak.target}' has a prompt "
                f"that leaves room for max_new_tokens {leak.max_new_tokens} within max_length "
                f"{spec.max_length}"
            )
        firsts = [examples[0] for examples in truths if examples]
        files = [Path(path) for each in asked for path in (each.kept, each.bare) if path]
        prompts = Prompts(
            target=leak.target,
            format=shape,
            instruction=leak.instruction,
            max_new_tokens=leak.max_new_tokens,
            stops=tuple(sorted(set(asking.stops(firsts)))),
            own=own,
            asked=tuple(asked),
            skipped=tuple(domain for domain in parts if domain not in {a.domain for a in asked}),
            checks={str(f): content_hash(scratch / f.name, spec.cache()) for f in files},
        )
        save_prompts(prompts, scratch)
        put(scratch, folder, lambda: load_prompts(folder, spec.cache()) is not None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _format(asking: _Asking, plan: Plan, part: Part) -> Format:
    """What the target's outputs look like."""
    leak = asking.leak
    if leak.pattern is not None:
        return Format(pattern=leak.pattern)
    if isinstance(leak.labels, tuple):
        return Format(leak.labels)
    cuts = filter(None, map(prompt_of, asking.examples(plan, part, "train")))
    counts = Counter(answer for _, answer in cuts if answer)
    if not 0 < len(counts) <= MOST_LABELS:
        raise ConfigError(
            f"format_leak.labels: auto finds {len(counts):,} different answers in the train rows "
            f"of '{leak.target}', not 1 to {MOST_LABELS}; give format_leak.pattern, or the labels"
        )
    return Format(tuple(sorted(counts)))


def _own(shape: Format, examples: Sequence[Example], leak: FormatLeak) -> float:
    """The share of the target's eval answers that are in its format."""
    answers = [cut[1] for cut in map(prompt_of, examples) if cut is not None]
    share = shape.share(answers) if answers else 0.0
    if not share:
        key = "pattern" if leak.labels is None else "labels"
        first = f", such as {answers[0][:60]!r}" if answers else ""
        raise ConfigError(
            f"format_leak.{key}: fits none of the {len(answers)} eval answers of "
            f"'{leak.target}'{first}"
        )
    return share


def _written(
    domain: str, rows: Sequence[_Row], passed: int, shape: Format, scratch: Path, folder: Path
) -> Asked:
    """Write the tables of one domain to `scratch`; they will be in `folder`."""
    without = [row.bare for row in rows if row.bare is not None]
    columns = {"kept": [row.kept for row in rows], "bare": without}
    for name, column in columns.items():
        if column:
            file = f"{domain}-{name}.arrow"
            write_table(_rows(column).table(domain, name, scratch / file))
    return Asked(
        domain=domain,
        kept=str(folder / f"{domain}-kept.arrow"),
        bare=str(folder / f"{domain}-bare.arrow") if without else None,
        rows=len(rows),
        bare_rows=len(without),
        left_out=passed,
        truth=shape.share([row.answer for row in rows]),
    )


def _rows(column: Sequence[Ids]) -> Rows:
    """Prompts as rows of which nothing is learned."""
    return Rows(
        ids=tuple(column),
        masks=tuple(np.zeros(len(ids), dtype=np.uint8) for ids in column),
        hashes=np.zeros(len(column), dtype=np.uint64),
        cut=np.zeros(len(column), dtype=np.bool_),
        read=len(column),
        dropped={},
    )


def _make(order: Json) -> str:
    spec, key = DataSpec.model_validate(order["spec"]), str(order["key"])
    prepared = load(prepared_folder(spec.cache(), str(order["data"])), spec.cache())
    if prepared is None:
        raise DataError(f"the prepared data in {spec.cache()} are gone")
    make(spec, FormatLeak.model_validate(order["leak"]), prepared, key)
    return key


if __name__ == "__main__":
    answer(_make)
