"""The color shift against the formula of Krizhevsky et al. 2012, §4.1, worked by hand and by simulation."""

from __future__ import annotations

import numpy as np

from detres.data.colors import ColorComponents, color_shift, principal_components


def test_components_of_a_covariance_made_from_known_ones():
    angle = 0.3
    vectors = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    values = np.array([0.2, 0.05, 0.01])
    found = principal_components(vectors @ np.diag(values) @ vectors.T)
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-12)
    np.testing.assert_allclose(found.eigenvectors, vectors, atol=1e-12)  # each largest entry is positive


def test_shift_by_hand():
    class Drawn(np.random.Generator):
        def normal(self, loc=0.0, scale=1.0, size=None):  # type: ignore[override]  # one of numpy's overloads
            assert (loc, size) == (0.0, 3)
            return np.array([1.0, -2.0, 3.0]) * scale

    turned = ColorComponents(np.array([0.2, 0.1, 0.05]), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]))
    shift = color_shift(turned, 0.1, Drawn(np.random.PCG64(0)))
    # a l = (0.02, -0.02, 0.015); the first component points to green, the second to red; times 255
    np.testing.assert_allclose(shift.numpy(), [-5.1, 5.1, 3.825], rtol=1e-5)


def test_spread_of_many_shifts():
    generator = np.random.default_rng(0)
    values = np.array([0.2175, 0.0188, 0.0045])  # of ImageNet
    shifts = np.stack(
        [color_shift(ColorComponents(values, np.eye(3)), 0.1, generator).numpy() for _ in range(4000)]
    )
    np.testing.assert_allclose(shifts.std(axis=0), 25.5 * values, rtol=0.05)
    assert np.abs(shifts.mean(axis=0)).max() < 0.3
