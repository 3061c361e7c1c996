"""A toy in which training on two specialities spoils a third domain; its guarded optimum is known.

With s the share of the specialities math and code together, chat's loss is c + k exp(a s - d (1 -
s)): at s = 0 below the base model's c + k, at s = 1 above it. Math and code help only themselves.
"""

from __future__ import annotations

import math

from raymix.core.mixture import Mixture
from raymix.testing.toy import Toy

KEPT = "chat"

_SPOILS, _MENDS = 1.0, 2.0
"""a and d above."""


def forgetful(noise: float = 0.0) -> Toy:
    """The problem, for `Objective(keep={"chat": margin})`."""
    return Toy(
        names=("math", "code", KEPT),
        c=(0.4, 0.5, 0.6),
        k=(2.0, 1.5, 0.5),
        t=((6.0, 0.0, 0.0), (0.0, 4.0, 0.0), (-_SPOILS, -_SPOILS, _MENDS)),
        noise=noise,
    )


def guarded_optimum(toy: Toy, margin: float = math.inf) -> Mixture:
    """The mixture of least mean loss of math and code that keeps chat within `margin` of the base.

    k (exp(a s - d (1 - s)) - 1) = margin gives s = (ln(1 + margin / k) + d) / (a + d), at most 1;
    equal marginal gains k_i t_i exp(-t_i p_i) share s out.
    """
    (k1, k2, k3), t1, t2 = toy.k, toy.t[0][0], toy.t[1][1]
    whole = min(1.0, (math.log1p(margin / k3) + _MENDS) / (_SPOILS + _MENDS))
    first = (t2 * whole + math.log(k1 * t1 / (k2 * t2))) / (t1 + t2)
    return Mixture(toy.names, (first, whole - first, 1.0 - whole))


def price(toy: Toy, margin: float) -> float:
    """What a nat of margin is worth at the guarded optimum, in nats of the mean loss.

    A penalty is exact where it is larger.
    """
    best = guarded_optimum(toy, margin).array()
    gain = 0.5 * toy.k[0] * toy.t[0][0] * math.exp(-toy.t[0][0] * float(best[0]))
    return gain / ((margin + toy.k[2]) * (_SPOILS + _MENDS))
