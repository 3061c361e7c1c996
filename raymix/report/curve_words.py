"""What scaling curves say, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from raymix.report.curves import SIDES, Compared, Scaling, Steeper
from raymix.report.law import GROWS, SATURATED, UNKNOWN, WORSE
from raymix.search.curves import ALONE, TOGETHER

NO_FIT = "too few amounts"
_ORDER = (GROWS, SATURATED, WORSE, UNKNOWN, NO_FIT)


def part(fraction: float) -> str:
    """A fraction as people write it: 1, 1/4, 0.3."""
    for below in range(1, 4097):
        if math.isclose(fraction * below, 1.0, rel_tol=1e-9):
            return "1" if below == 1 else f"1/{below}"
    return f"{fraction:.3g}"


def sentences(found: Scaling) -> list[str]:
    """The findings, one sentence each."""
    said = [*_growth(found), *_mixing(found), *_pairs(found), *_sizes(found), *_doubts(found)]
    return [line for line in said if line]


def _growth(found: Scaling) -> Iterator[str]:
    for model in found.models:
        for kind, where in ((ALONE, "alone"), (TOGETHER, "with all others")):
            words: dict[str, list[str]] = {}
            for name in found.space.names:
                curve = found.alone(model, name) if kind == ALONE else found.together(model, name)
                words.setdefault(curve.fitted.word if curve.fitted else NO_FIT, []).append(name)
            told = (f"{word}: {', '.join(words[word])}" for word in _ORDER if word in words)
            yield f"{model}, {where}, at all of the data: {'; '.join(told)}."


def _mixing(found: Scaling) -> Iterator[str]:
    compared = [c for c in found.mixing() if c.domain in found.counted]
    for model in found.models:
        own = [c for c in compared if c.model == model]
        known = [f for c in own for f, d in c.by_fraction.items() if math.isfinite(d.p)]
        none = len(known) - sum(len(c.told(True)) + len(c.told(False)) for c in own)
        yield (
            f"{model}: mixing helps {_places(own, True)}; hurts {_places(own, False)}; no "
            f"difference is seen in {none} of {len(known)} comparisons at equal rows."
        )
    by = {f: (_count(compared, f, True), _count(compared, f, False)) for f in found.fractions}
    counts = ", ".join(f"{part(f)}: {h} / {w}" for f, (h, w) in by.items())
    yield f"By fraction, in how many cases mixing helps / hurts: {counts}. {_volume(by)}"


def _count(compared: Iterable[Compared], fraction: float, helps: bool) -> int:
    return sum(fraction in c.told(helps) for c in compared)


def _volume(by: dict[float, tuple[int, int]]) -> str:
    """Whether mixing helps where data are few and hurts where they are many."""
    ordered = sorted(by)
    few, many = ordered[: len(ordered) // 2], ordered[-(len(ordered) // 2) :]
    low, high = ([sum(by[f][i] for f in side) for i in (0, 1)] for side in (few, many))
    seen = "is" if low[0] > low[1] and high[1] > high[0] else "is not"
    return (
        "The source's finding, that mixing helps where data are few and hurts where they are many, "
        f"{seen} seen here: {low[0]} / {low[1]} at the smaller fractions, {high[0]} / {high[1]} at "
        "the larger ones."
    )


def _places(own: Iterable[Compared], helps: bool) -> str:
    told = ((c.domain, c.told(helps)) for c in own)
    words = [f"{name} (at {', '.join(part(f) for f in at)})" for name, at in told if at]
    return ", ".join(words) or "nowhere"


def _pairs(found: Scaling) -> Iterator[str]:
    for c in found.beside():
        fixed, varied = c.pair
        if c.side == SIDES[0]:
            what = f"{varied} added to all of {fixed}: for {fixed} it"
        else:
            what = f"all of {fixed} beside {varied}: for {varied} it"
        told = [(word, c.told(helps)) for word, helps in (("helps", True), ("hurts", False))]
        words = [
            f"{word} (at {', '.join(part(f) for f in at)} of {varied})" for word, at in told if at
        ]
        yield f"{c.model}, {what} {' and '.join(words) or 'makes no difference that is seen'}."


def _sizes(found: Scaling) -> Iterator[str]:
    for model in found.models[1:]:
        for kind, where in ((ALONE, "alone"), (TOGETHER, "together")):
            yield sized(found.steeper(model, kind), found.models[0], where)


def sized(each: Steeper, first: str, where: str) -> str:
    """Whether the other model's curves are steeper."""
    if not math.isfinite(each.mean.low):
        return f"Whether {each.model} has steeper curves {where} than {first} cannot be told."
    clear = {
        word: [n for n, d in each.each.items() if d.real and (d.value > 0) == more]
        for word, more in (("steeper", True), ("flatter", False))
    }
    single = "; ".join(f"{word}: {', '.join(names)}" for word, names in clear.items() if names)
    other = "from" if each.word.startswith("not") else "than"
    return (
        f"Curves {where} of {each.model} are {each.word} {other} "
        f"those of {first}: {each.mean.value:+.3f} nats for each doubling of the data (95% over "
        f"{len(each.each)} domains: {each.mean.low:+.3f} to {each.mean.high:+.3f}). "
        f"Domain by domain, over seeds: {single or 'no difference seen'}."
    )


def _doubts(found: Scaling) -> Iterator[str]:
    bent = [
        f"{name} {kind} ({model})"
        for model in found.models
        for kind, of in ((ALONE, found.alone), (TOGETHER, found.together))
        for name in found.space.names
        if (fitted := of(model, name).fitted) is not None and not fitted.fits
    ]
    words = {
        fitted.word
        for model in found.models
        for of in (found.alone, found.together)
        for name in found.counted
        if (fitted := of(model, name).fitted) is not None
    }
    if UNKNOWN in words:
        yield (
            f'"{UNKNOWN}": the last doubling lies between two of the fractions, and the curve may '
            "fall anywhere between them; fractions nearer to 1 (1/2) would tell, or more seeds."
        )
    if bent:
        yield (
            f"The law does not describe (lack of fit at the 1% level): {', '.join(bent)}; their "
            "intervals have that misfit in them, as if it were noise."
        )
    if found.left_out:
        yield f"Less than one row, so left out: {_list(found.left_out)}."
    if found.failed:
        yield f"{found.failed} trainings failed and are missing."


def _list(points: Sequence[tuple[str, float]]) -> str:
    by: dict[str, list[str]] = {}
    for name, fraction in points:
        by.setdefault(name, []).append(part(fraction))
    return ", ".join(f"{name} at {', '.join(at)}" for name, at in by.items())
