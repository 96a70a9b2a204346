"""Promise: power(x, exponent) is x^exponent to 1e-12, grows with x, and has the same bits on every machine."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from helpers import generator

from fastprio._kernels import kernel
from fastprio.policies import power

LARGEST, SMALLEST_NORMAL, SMALLEST = 1.7976931348623157e308, 2.0**-1022, 5e-324


@kernel
def powers(x, exponent):
    out = np.empty(x.size)
    for j in range(x.size):
        out[j] = power(x[j], exponent[j])
    return out


def relative_error(x, exponent, got):
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 30, 10**6, -(10**6)
        exact = Decimal(x) ** Decimal(exponent)
        return float(abs((Decimal(got) - exact) / exact))


def worst_error(x, exponent):
    """Over the pairs whose power is a normal number."""
    log = np.array([e * math.log2(v) for v, e in zip(x.tolist(), exponent.tolist(), strict=True)])
    kept = (log > -1021.9) & (log < 1022.9)
    assert kept.mean() > 0.2
    x, exponent = x[kept], exponent[kept]
    got = powers(x, exponent)
    return max(map(relative_error, x.tolist(), exponent.tolist(), got.tolist()))


def positive(n, rng):
    """Every bit pattern of finite numbers above zero is equally likely; an eighth are subnormal."""
    bits = rng.integers(1, 0x7FF0000000000000, n, dtype=np.int64)
    bits[: n // 8] = rng.integers(1, 1 << 52, n // 8)
    return bits.view(np.float64)


@pytest.mark.parametrize("most", [1, 4, 50])
def test_error_is_below_1e_12_for_bases_of_every_size(most):
    rng, n = generator(most), 600
    assert worst_error(positive(n, rng), rng.uniform(-most, most, n) / rng.choice([1, 100], n)) < 1e-12


@pytest.mark.parametrize("most", [4, 20])
def test_error_is_below_1e_12_for_bases_near_one(most):
    rng, n = generator(100 + most), 3000
    x = 1 + rng.uniform(-1, 1, n) * 2.0 ** -rng.integers(1, 52, n)
    assert worst_error(x, rng.uniform(-most, most, n)) < 1e-12


def test_error_is_below_1e_12_for_losses_and_the_exponents_in_use():
    rng, n = generator(7), 4000
    x = 10.0 ** rng.uniform(-12, 6, n)
    exponent = rng.choice([0.4, 0.5, 0.6, 0.7, 1.0, -0.4, -0.6, -1.0, 2.0], n)
    assert worst_error(x, exponent) < 2e-13


def test_error_is_below_1e_10_where_the_exponent_is_hundreds():
    rng, n = generator(8), 3000
    assert worst_error(2.0 ** rng.uniform(-1.2, 1.2, n), rng.uniform(-900, 900, n)) < 1e-10


def test_error_is_below_1e_12_up_to_the_largest_float():
    # Powers in [2^1023, 2^1024) are floats like others.
    for x, exponent in [(1.2e308, 1.0), (2.0**512, 1.9995), (1.7e308, 0.9999), (1.1, 7447.0)]:
        assert relative_error(x, exponent, min(power(x, exponent), LARGEST)) < 1e-11, (x, exponent)


def test_to_the_power_of_one_gives_the_base_and_of_minus_one_its_inverse():
    x = positive(20000, generator(9))
    x = x[(x >= SMALLEST_NORMAL) & (x < 2.0**1022)]
    one = np.ones(x.size)
    np.testing.assert_allclose(powers(x, one), x, rtol=1e-12, atol=0)
    normal = x > 2.0**-1021
    np.testing.assert_allclose(powers(x, -one)[normal], 1 / x[normal], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("x", "exponent", "expected"), [
    (0.0, 0.6, 0.0), (0.0, 1e-300, 0.0), (0.0, 1e300, 0.0), (0.0, -0.5, math.inf), (0.0, 0.0, 1.0), (-0.0, 0.6, 0.0),
    (-0.0, 0.0, 1.0), (1.0, 0.6, 1.0), (1.0, -1e300, 1.0), (1.0, 1e300, 1.0), (SMALLEST, 0.0, 1.0),
    (LARGEST, 0.0, 1.0), (LARGEST, -0.0, 1.0), (2.0, 1e300, math.inf), (2.0, -1e300, 0.0), (0.5, 1e300, 0.0),
    (LARGEST, 2.0, math.inf), (SMALLEST, 2.0, 0.0), (SMALLEST, -2.0, math.inf), (2.0, 10.0, 1024.0),
    (4.0, 0.5, 2.0), (4.0, -0.5, 0.5), (2.0, -1022.0, SMALLEST_NORMAL), (2.0, 1022.0, 2.0**1022),
    (2.0, 1023.0, 2.0**1023),
])  # fmt: skip
def test_zero_one_and_the_ends_of_the_range(x, exponent, expected):
    assert power(x, exponent) == expected


@pytest.mark.parametrize("exponent", [0.6, 1.0, 0.1, 3.0, 40.0, -0.4, -1.0, -40.0])
def test_is_monotone_over_the_whole_range(exponent):
    # Bases further apart than the error, so that one wrong step is a fault and no rounding.
    x = np.sort(positive(200_000, generator(11)))
    steps = np.diff(np.minimum(powers(x, np.full(x.size, exponent)), LARGEST))
    assert (steps >= 0).all() if exponent > 0 else (steps <= 0).all()


@pytest.mark.parametrize("exponent", [0.6, 1.0, -0.4, 2.5])
def test_is_monotone_between_neighbouring_float32_losses(exponent):
    # What priorities are made of: 40,000 runs of neighbours, also across powers of two and of their roots.
    rng = generator(12)
    edges = [0x3F800000, 0x3FB504F3, 0x3F3504F3, 0x40000000, 0x00800000, 0x7F000000]
    starts = np.concatenate([rng.integers(1, 0x7F700000, 10_000), np.array(edges) - 8])
    x = (starts[:, None] + np.arange(16)).astype(np.uint32).view(np.float32).astype(np.float64)
    result = powers(x.ravel(), np.full(x.size, exponent)).reshape(x.shape)
    steps = np.diff(result, axis=1)
    assert (steps >= 0).all() if exponent > 0 else (steps <= 0).all()


GOLDEN = [
    # x, exponent, the bits of the result as float.hex
    (2.0, 0.5, "0x1.6a09e667f3bccp+0"),
    (0.1, 0.6, "0x1.0137987dd704dp-2"),
    (1e-06, 0.6, "0x1.0763f01e8e5aep-12"),
    (3.7, 0.6, "0x1.18a0c4bbe2b81p+1"),
    (12.5, 0.4, "0x1.5f8a1467b83eep+1"),
    (0.001, -0.4, "0x1.fb2a734897867p+3"),
    (50000.0, -1.0, "0x1.4f8b588e368eep-16"),
    (0.75, -0.7, "0x1.391c2fb46fbecp+0"),
    (1.4142135623730951, 0.6, "0x1.3b2c47bff8302p+0"),
    (1.4142135623730954, 0.6, "0x1.3b2c47bff8350p+0"),
    (0.7071067811865475, 0.6, "0x1.9fdf8bcce530ap-1"),
    (5e-324, 0.6, "0x1.8406003b2aec8p-645"),
    (2.2250738585072014e-308, 0.1, "0x1.bdb8cdadbe111p-103"),
    (1.7976931348623157e308, 0.5, "0x1.0000000000000p+512"),
    (1e-310, 0.9, "0x1.226ed86db3282p-927"),
    (1.0000000000000002, 0.6, "0x1.0000000000001p+0"),
    (0.9999999999999999, 10000000000.0, "0x1.ffffdabf431afp-1"),
    (3.0, 100.0, "0x1.69194f299cf03p+158"),
    (2.302585, 1.0, "0x1.26bb1af3a14cfp+1"),
    (1000000.0, -2.5, "0x1.203af9ee7561dp-50"),
]


@pytest.mark.parametrize(("x", "exponent", "bits"), GOLDEN)
def test_bits_are_those_of_any_other_machine(x, exponent, bits):
    assert power(x, exponent).hex() == bits
    assert power.py_func(x, exponent).hex() == bits  # without the compiler


def test_compiled_and_plain_python_agree_to_the_bit():
    rng, n = generator(13), 5000
    x, exponent = positive(n, rng), rng.uniform(-3, 3, n)
    expected = [float(power.py_func(a, b)) for a, b in zip(x.tolist(), exponent.tolist(), strict=True)]
    np.testing.assert_array_equal(powers(x, exponent).view(np.int64), np.array(expected).view(np.int64))


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, -0.4, 30.0])
def test_bits_do_not_depend_on_where_in_an_array_a_number_stands(exponent):
    # A compiled loop takes several numbers at once, and what is left over at its end one by one.
    x = positive(400, generator(14))
    alone = np.array([powers(x[j : j + 1], np.full(1, exponent))[0] for j in range(x.size)])
    for n in (*range(1, 40), x.size):
        together = powers(x[:n], np.full(n, exponent))
        np.testing.assert_array_equal(together.view(np.int64), alone[:n].view(np.int64))
