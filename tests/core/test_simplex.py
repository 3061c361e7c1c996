"""Rounding, projection, lattices and the cube map: examples by hand, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from raymix.core.simplex import (
    cube_to_simplex,
    largest_remainder,
    lattice,
    project,
    simplex_to_cube,
)

simplex = st.lists(st.floats(1e-3, 1), min_size=1, max_size=8).map(lambda w: np.array(w) / sum(w))


def test_largest_remainder_by_hand():
    # 10 * (.47, .33, .2) = 4.7, 3.3, 2.0: floors 4, 3, 2, the one left goes to the largest rest.
    assert largest_remainder([0.47, 0.33, 0.2], 10).tolist() == [5, 3, 2]
    # Equal rests: the larger weight, then the earlier domain.
    assert largest_remainder([0.25, 0.75], 2).tolist() == [0, 2]
    assert largest_remainder([1 / 3, 1 / 3, 1 / 3], 100).tolist() == [34, 33, 33]
    assert largest_remainder([1.0], 7).tolist() == [7]
    assert largest_remainder([0.5, 0.5], 0).tolist() == [0, 0]


def test_largest_remainder_ignores_float_dust():
    # .1 + .2 and .7 are not exact; 1000 of them are.
    assert largest_remainder([0.1, 0.2, 0.7], 1000).tolist() == [100, 200, 700]


@given(simplex, st.integers(0, 10_000))
def test_largest_remainder_is_whole_and_near(weights, total):
    counts = largest_remainder(weights, total)
    assert counts.sum() == total
    assert np.all(np.abs(counts - weights * total) < 1 + 1e-6)


def test_projection_by_hand():
    # Onto the plain simplex: (.8, .6) is .2 too long on each side.
    np.testing.assert_allclose(project(np.array([0.8, 0.6]), [0, 0], [1, 1]), [0.6, 0.4])
    # The first is held at its cap, the rest share what is left of the shift.
    found = project(np.array([0.9, 0.3, 0.1]), [0, 0, 0], [0.5, 1, 1])
    np.testing.assert_allclose(found, [0.5, 0.35, 0.15])


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(0, 0.3), min_size=3, max_size=3),
    st.lists(st.floats(0.4, 1), min_size=3, max_size=3),
)
def test_projection_is_nearest(point, low, high):
    target = np.array(point)
    found = project(target, low, high)
    assert found.sum() == pytest.approx(1.0)
    assert np.all((found >= np.array(low) - 1e-12) & (found <= np.array(high) + 1e-12))
    # Ground truth: no allowed point is nearer, so (target - found) . (other - found) <= 0.
    for direction in np.vstack([np.eye(3), -np.eye(3), [target - found]]):
        vertex = optimize.linprog(
            -direction, A_eq=np.ones((1, 3)), b_eq=[1], bounds=list(zip(low, high, strict=True))
        ).x
        assert (target - found) @ (vertex - found) <= 1e-6


@pytest.mark.parametrize(("size", "parts"), [(1, 4), (2, 5), (3, 4), (5, 3)])
def test_lattice_is_complete(size, parts):
    points = lattice(size, parts)
    assert points.shape == (math.comb(parts + size - 1, size - 1), size)
    np.testing.assert_allclose(points.sum(axis=1), 1)
    np.testing.assert_allclose(points * parts, (points * parts).round(), atol=1e-12)
    assert len(np.unique(points.round(9), axis=0)) == len(points)


def test_lattice_by_hand():
    assert lattice(2, 2).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_uniform_cube_is_uniform_simplex(size):
    cube = np.random.default_rng(0).random((4000, size - 1))
    points = np.array([cube_to_simplex(u) for u in cube])
    # Each share of a uniform simplex is Beta(1, K - 1); plain stick-breaking would give the first
    # domain Beta(1, 1) and a mean of 1/2.
    for i in range(size):
        assert stats.kstest(points[:, i], stats.beta(1, size - 1).cdf).pvalue > 1e-4
    error = points.std(axis=0) / math.sqrt(len(points))
    assert np.all(np.abs(points.mean(axis=0) - 1 / size) < 4 * error)


@given(st.lists(st.floats(0, 0.999), min_size=0, max_size=6))
def test_cube_map_inverts(cube):
    weights = cube_to_simplex(cube)
    assert weights.sum() == pytest.approx(1.0)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(cube_to_simplex(simplex_to_cube(weights)), weights, atol=1e-7)


@given(simplex)
def test_simplex_map_inverts(weights):
    cube = simplex_to_cube(weights)
    assert np.all((cube >= 0) & (cube <= 1))
    np.testing.assert_allclose(cube_to_simplex(cube), weights, atol=1e-7)


def test_corners_survive_the_cube_map():
    for corner in np.eye(4):
        np.testing.assert_allclose(cube_to_simplex(simplex_to_cube(corner)), corner, atol=1e-12)
