"""A mixture as it is given on the command line: shares in words, or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from raymix.core.codec import from_spec
from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import Strategy
from raymix.core.mixture import Mixture
from raymix.report.best import read_best


def given(weights: str, file: str, names: Sequence[str]) -> Mixture | None:
    """The mixture of `--weights` or of the file of `--mixture`; None where neither is given.

    Raises:
        ConfigError: both are given, or one cannot be read; says which.
    """
    if weights and file:
        raise ConfigError("give --mixture or --weights, not both")
    if not file:
        return written(weights, names)
    with _under(file):
        return read_best(file).mixture.ordered(names)


def written(weights: str, names: Sequence[str]) -> Mixture | None:
    """The mixture that `math=.5,code=.5` says; None where nothing is said."""
    if not weights:
        return None
    shares = []
    for part in weights.split(","):
        name, _, share = part.partition("=")
        try:
            shares.append((name.strip(), float(share)))
        except ValueError:
            raise ConfigError(f"--weights: '{part}' is not domain=share") from None
    with _under("--weights"):
        asked = Mixture(tuple(name for name, _ in shares), tuple(share for _, share in shares))
        return asked.ordered(names)


def order_of(file: str) -> tuple[Strategy | None, Mapping[str, float]]:
    """The strategy that the mixture in a file was found with, and its parameters.

    None: there is no file, or it names none.

    Raises:
        ConfigError: there is no such strategy here, or its fields do not fit.
    """
    if not file:
        return None, {}
    best = read_best(file)
    if best.strategy is None:
        if best.params:
            raise ConfigError(f"{file}: 'params' are of a strategy, but there is no 'strategy'")
        return None, {}
    try:
        found: Strategy = from_spec(best.strategy)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"{file}: strategy: {error}") from None
    return found, best.params


@contextlib.contextmanager
def _under(source: str) -> Iterator[None]:
    """Say where a mixture that is wrong was given."""
    try:
        yield
    except MixtureError as error:
        raise ConfigError(f"{source}: {error}") from None
