"""The algebra of a layer's curvature, against Kronecker products written out in float64."""

import pytest
import torch

from raymix.core.errors import InfluenceError
from raymix.influence.curvature import Covariances, Factors, damped, eigenvectors
from raymix.influence.layers import Layer
from raymix.influence.memory import Shape
from raymix.train.shard import World


def orthogonal(size: int, seed: int) -> torch.Tensor:
    """A random rotation: not symmetric, so that a transposed product shows."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    made = torch.linalg.qr(square).Q
    assert (made - made.T).abs().max() > 0.1
    return made


def factors(out: int = 5, columns: int = 7) -> Factors:
    generator = torch.Generator().manual_seed(1)
    shape = (out, columns)
    eigenvalues, kronecker = (
        torch.rand(shape, generator=generator, dtype=torch.float64).pow(3) for _ in range(2)
    )
    return Factors(orthogonal(columns, 2), orthogonal(out, 3), eigenvalues, kronecker)


@pytest.mark.parametrize("kronecker", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1, 1.0])
def test_solved_is_the_dense_solution(damping, kronecker):
    """(Qs (x) Qa) diag(Lambda) (Qs (x) Qa)' acts on the rows of G, one after the other."""
    made = factors()
    values = made.kronecker if kronecker else made.eigenvalues
    basis = torch.kron(made.outputs, made.inputs)
    dense = basis @ torch.diag(values.flatten()) @ basis.T
    dense += damping * values.mean() * torch.eye(len(dense), dtype=torch.float64)
    g = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = torch.linalg.solve(dense, g.flatten(1).T).T.view_as(g)
    found = made.solved(g, damping, kronecker)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_rotated_is_the_transposed_basis_times_the_gradient():
    made = factors()
    g = torch.randn(5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = torch.kron(made.outputs, made.inputs).T @ g.flatten()
    assert torch.allclose(made.rotated(g).flatten(), expected, atol=1e-12, rtol=0)
    wrong = (made.outputs @ g @ made.inputs.T).flatten()
    assert not torch.allclose(wrong, expected, atol=0.1)


def test_a_curvature_of_zeros_solves_zeros_to_zeros():
    nothing = torch.zeros(5, 7)
    made = Factors(orthogonal(7, 2).float(), orthogonal(5, 3).float(), nothing, nothing)
    assert made.solved(torch.zeros(2, 5, 7), 0.1).abs().max() == 0
    assert damped(nothing, 0.1).isfinite().all()


def layer(out: int, columns: int) -> Layer:
    linear = torch.nn.Linear(columns, out, bias=False)
    return Layer(Shape("one", "one", out, columns), linear, linear.weight, None)


def covariance(size: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """Symmetric, with eigenvalues over six orders of magnitude (or of low rank)."""
    values = torch.logspace(0, -6, size, dtype=torch.float64)
    values[rank:] = 0 if rank is not None else values[rank:]
    basis = orthogonal(size, seed)
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("rank", [None, 3])
def test_eigenvectors_make_the_covariances_diagonal_in_float64(rank):
    """Q' A Q to 1e-10; Q A Q' is far from it."""
    a, s = covariance(9, 5, rank), covariance(6, 6)
    found = Covariances({"one": a.clone()}, {"one": s.clone()}, 10.0, 5.0)
    rotations = eigenvectors(found, [layer(6, 9)], World())
    qa, qs = rotations.basis(layer(6, 9))
    for q, matrix, kind in ((qa, a, "inputs"), (qs, s, "outputs")):
        turned = q.T @ matrix @ q
        values = rotations.values[kind, "one"]
        assert (turned - torch.diag(values.to(torch.float64))).abs().max() < 1e-7
        off = turned - torch.diag(turned.diagonal())
        assert off.abs().max() < 1e-10
        wrong = q @ matrix @ q.T
        assert (wrong - torch.diag(wrong.diagonal())).abs().max() > 1e-2
        assert torch.allclose(q.T @ q, torch.eye(len(q), dtype=torch.float64), atol=1e-12)
    product = rotations.kronecker(layer(6, 9))
    expected = torch.outer((qs.T @ s @ qs).diagonal(), (qa.T @ a @ qa).diagonal()) / 50.0
    assert torch.allclose(product.double(), expected, atol=1e-7)


def test_single_precision_loses_no_more_than_single_precision():
    a = covariance(64, 5).float()
    found = Covariances({"one": a.clone()}, {"one": torch.eye(3)}, 1.0, 1.0)
    q = eigenvectors(found, [layer(3, 64)], World()).basis(layer(3, 64))[0].double()
    turned = q.T @ a.double() @ q
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-6


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_covariance_without_a_decomposition_names_its_layer(broken):
    a = torch.eye(4)
    a[1, 2] = a[2, 1] = broken
    found = Covariances({"one": torch.eye(3)}, {"one": a}, 1.0, 1.0)
    with pytest.raises(InfluenceError, match=r"outputs one .*fp64 on the CPU; finite: False"):
        eigenvectors(found, [layer(4, 3)], World())


def test_a_decomposition_that_fails_on_the_device_is_done_on_the_cpu(monkeypatch):
    """What LAPACK or cuSOLVER raise now and then: the first call fails."""
    real, calls = torch.linalg.eigh, []

    def fails_once(matrix):
        calls.append(matrix.dtype)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_once)
    a = covariance(5, 5).float()
    found = Covariances({"one": a.clone()}, {"one": torch.eye(3)}, 1.0, 1.0)
    q = eigenvectors(found, [layer(3, 5)], World()).basis(layer(3, 5))[0]
    turned = q.T @ a @ q
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-6
    assert calls == [torch.float64] * 3
