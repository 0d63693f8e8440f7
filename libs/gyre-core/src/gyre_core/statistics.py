"""The few statistics that guardrails and experiments rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference (second minus first): its z or t statistic, two-sided p-value, and interval from low to high."""

    difference: float
    statistic: float
    p_value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as `welch` needs it: its size, mean and unbiased variance (divisor n - 1), given by the caller."""

    n: int
    mean: float
    variance: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), which holds for few observations and extreme rates.

    (0, 1) without observations. Raises ValueError where successes are not within 0 and n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n}: must be within 0 and n")
    if n == 0:
        return 0.0, 1.0
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the extremes the bound is the rate itself, which rounding must not move past.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == n else min(centre + half, 1.0)
    return low, high


def binomial_tail(successes: int, n: int, rate: float) -> float:
    """The probability of at least so many successes among n at a true rate (DLMF 8.17.5), exact for small counts.

    Raises ValueError where successes are not within 0 and n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n}: must be within 0 and n")
    return 1.0 if successes == 0 else _incomplete_beta(rate, successes, n - successes + 1)


def two_proportions(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> Comparison:
    """The pooled two-sided z-test of two proportions, each given as (successes, n), with the unpooled interval.

    Where either side has no observations: difference 0, p-value 1, interval -1 to 1. Counts are not checked.
    """
    (a, n), (b, m) = first, second
    if min(n, m) == 0:
        return Comparison(0.0, 0.0, 1.0, -1.0, 1.0)
    p, q, pooled = a / n, b / m, (a + b) / (n + m)
    difference = q - p
    error = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = difference / error if error > 0 else 0.0
    half = _NORMAL.inv_cdf(0.5 + confidence / 2) * sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return Comparison(difference, z, 2 * _NORMAL.cdf(-abs(z)), difference - half, difference + half)


def welch(first: Sample, second: Sample, confidence: float = 0.95) -> Comparison:
    """Welch's t-test of two means with unequal variances (Welch 1947).

    Where either side has fewer than 2 observations: p-value 1 and an infinite interval. Where neither varies, the
    p-value is 1 for equal means and else 0.
    """
    difference = second.mean - first.mean
    if min(first.n, second.n) < 2:
        return Comparison(difference, 0.0, 1.0, -inf, inf)
    u, v = first.variance / first.n, second.variance / second.n
    error = sqrt(u + v)
    if error == 0:
        return Comparison(difference, 0.0 if difference == 0 else inf, float(difference == 0), difference, difference)
    degrees = (u + v) ** 2 / (u * u / (first.n - 1) + v * v / (second.n - 1))
    t = difference / error
    half = _t_quantile(0.5 + confidence / 2, degrees) * error
    return Comparison(difference, t, t_tail(t, degrees), difference - half, difference + half)


def t_tail(t: float, degrees: float) -> float:
    """The two-sided tail probability P(|T| >= |t|) of Student's t (Abramowitz and Stegun 26.7.1)."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def percentile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float:
    """The q-quantile (0 to 1) of a histogram, linear within its bucket.

    `bounds` are the buckets' upper bounds, increasing; `counts` are by bucket and one longer, the last bucket being
    open: a quantile that falls there is reported as infinite, because nothing is known about it. The first bucket
    begins at 0. NaN where all counts are 0. Raises ValueError where the lengths do not fit.
    """
    if len(counts) != len(bounds) + 1:
        raise ValueError(f"{len(counts)} counts for {len(bounds)} bounds: must be one more")
    wanted, below, lower = q * sum(counts), 0, 0.0
    if sum(counts) == 0:
        return float("nan")
    for upper, count in zip([*bounds, inf], counts, strict=True):
        if count and below + count >= wanted:
            return lower + (upper - lower) * max(wanted - below, 0.0) / count if isfinite(upper) else inf
        below, lower = below + count, upper
    return inf


def _t_quantile(probability: float, degrees: float) -> float:
    """The upper quantile of Student's t, by bisection on its monotone tail."""
    low, high = 0.0, 1.0
    while t_tail(high, degrees) / 2 > 1 - probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) / 2 > 1 - probability else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction (DLMF 8.17.22, evaluated by Lentz)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_zero(1.0 + step * d)
            c = _away_from_zero(1.0 + step / c)
            fraction *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    return front * fraction


def _away_from_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
