"""Computes each answer in data/reference.csv independently, following the problem's wording. About 7 s.

Where the literal computation is too large, the intermediate step is checked at a small size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise, product
from math import gcd
from pathlib import Path

import mpmath
import numpy as np
import pytest

from aimo_solver.cli.problem_file import read_problems
from aimo_solver.problems import Problem

CSV = Path(__file__).parents[1] / "data" / "reference.csv"
PROBLEMS = {problem.id: problem for problem in read_problems(CSV)}


def answer(problem_id: str) -> int:
    truth = PROBLEMS[problem_id].truth
    assert isinstance(truth, int)
    return truth


def test_ten_problems_have_five_digit_answers() -> None:
    assert len(PROBLEMS) == 10
    for problem in PROBLEMS.values():
        assert isinstance(problem, Problem)
        assert isinstance(problem.truth, int)
        assert 10_000 <= problem.truth <= 99_999
        assert len(problem.id) == 6
        assert int(problem.id, 16) >= 0


def test_power_of_two_in_a_product_of_differences() -> None:
    powers = [3**i for i in range(1, 251)]
    twos = sum(((b - a) & (a - b)).bit_length() - 1 for a, b in combinations(powers, 2))
    assert twos == answer("7020f2")


def test_rows_of_pascals_triangle() -> None:
    row = np.ones(1, dtype=np.uint8)
    balanced = 0
    for n in range(3**9):
        if np.count_nonzero(row) == 108:
            balanced += n
        following = np.ones(n + 2, dtype=np.uint8)
        following[1:-1] = row[1:] + row[:-1]
        row = following % 3
    assert balanced % 10**5 == answer("2dd663")


@pytest.mark.slow
def test_triples_with_two_divisible_sums() -> None:
    n = 15_435
    b = np.arange(n, dtype=np.uint32)
    squares = b * b
    found = 0
    for a in range(n):
        c = np.where(b + a == 0, 0, np.where(b + a <= n, n - a - b, 2 * n - a - b)).astype(np.uint32)
        found += int(np.count_nonzero((a * a + squares + c * c) % n == 0))
    assert found == answer("f7f7ed")


def test_paintings_of_a_board() -> None:
    def below(row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yields the rows that can follow `row`."""
        for first in range(4):
            new = [first]
            for left, right in pairwise(row):
                fits = {0, 1, 2, 3} - {left, right, new[-1]}
                if len({left, right, new[-1]}) < 3:
                    break
                new.append(fits.pop())
            else:
                yield tuple(new)

    ways = Counter({row: 1 for row in product(range(4), repeat=8) if all(a != b for a, b in pairwise(row))})
    for _ in range(12):
        after: Counter[tuple[int, ...]] = Counter()
        for row, count in ways.items():
            for new in below(row):
                after[new] += count
        ways = after
    assert ways.total() == answer("cf6d68")


def test_game_of_thirds() -> None:
    limit = 100_000
    lost = [0] * (limit + 1)  # 1 where the player to move loses
    before = [0] * (limit + 2)  # how many such numbers are smaller
    for n in range(1, limit + 1):
        low, high = -(-n // 3), 2 * n // 3
        lost[n] = int(low > high or before[high + 1] == before[low])
        before[n + 1] = before[n] + lost[n]
    assert sum(lost) == answer("31de75")


def test_spread_set() -> None:
    # Factors of 3 and 5 relate only the numbers m * 3^a * 5^b of one m coprime to 15: a Young diagram with a row for each b.
    @cache
    def masks(width: int) -> tuple[int, ...]:
        return tuple(mask for mask in range(1 << width) if not mask & (mask << 1))

    @cache
    def largest(rows: tuple[int, ...]) -> int:
        best = {0: 0}
        for width in rows:
            best = {
                mask: mask.bit_count() + max(size for above, size in best.items() if not above & mask) for mask in masks(width)
            }
        return max(best.values())

    def rows_of(limit: int) -> tuple[int, ...]:
        rows = []
        while limit:
            width, power = 0, 1
            while power <= limit:
                width, power = width + 1, power * 3
            rows.append(width)
            limit //= 5
        return tuple(rows)

    total = sum(largest(rows_of(30_000 // m)) for m in range(1, 30_001) if gcd(m, 15) == 1)
    assert total == answer("128f0b")


def test_increasing_function() -> None:
    # f(1) = 1 contradicts f(f(1)) = 3, and f(1) > 2 implies f(f(1)) > 3. The rest follows from f(f(n)) = 3n, and from gaps
    # between values that are as wide as the gap between their arguments.
    top = 3**8
    f = {1: 2}
    known = -1
    while len(f) != known:
        known = len(f)
        for n, value in list(f.items()):
            if value <= top:
                assert f.setdefault(value, 3 * n) == 3 * n
        for (low, first), (high, last) in zip(sorted(f.items()), sorted(f.items())[1:], strict=False):
            assert last - first >= high - low
            if last - first == high - low:
                f.update({low + step: first + step for step in range(high - low)})
    assert sum(f[n] for n in range(1, 2027)) % 10**5 == answer("a9d3c9")


def test_sums_of_roots() -> None:
    with mpmath.workdps(60):
        roots = mpmath.polyroots([1, -1, 3, -5, 0, 2, 4, -3, 8], maxsteps=500, extraprec=400)
        value = abs(mpmath.fprod(a + b for a, b in combinations(roots, 2)))
        assert abs(value - answer("269127")) < mpmath.mpf(10) ** -30


def test_quadrilateral_under_a_tangent() -> None:
    with mpmath.workdps(60):
        a, b, c = mpmath.mpf(17), mpmath.mpf(25), mpmath.mpf(28)
        angle = mpmath.acos((b * b + c * c - a * a) / (2 * b * c))
        corner_b, corner_c = c, b * mpmath.expj(angle)  # A is the origin, AB the real axis
        centre = (b * corner_b + c * corner_c) / (a + b + c)
        radius = centre.imag
        along = (corner_c - corner_b) / a
        touch = corner_b + along * ((centre - corner_b) / along).real
        turned = (centre - 0) / touch  # the centre in a frame in which AD is the unit segment
        p = touch * (2 * turned.real - 1)  # the touch point, reflected in the centre's projection on AD
        assert abs(abs(p - centre) - radius) < mpmath.mpf(10) ** -50
        normal = p - centre

        def meet(direction: mpmath.mpc) -> mpmath.mpc:
            """Returns the point where the tangent at P meets the line through A in this direction."""
            return direction * (p * normal.conjugate()).real / (direction * normal.conjugate()).real

        k, ell = meet(corner_b), meet(corner_c)
        area = (abs(b * c) - abs(k) * abs(ell)) * mpmath.sin(angle) / 2
        fraction = Fraction(int(mpmath.nint(area * 10**40)), 10**40).limit_denominator(10**5)
        assert abs(area - mpmath.mpf(fraction.numerator) / fraction.denominator) < mpmath.mpf(10) ** -38
        assert fraction.numerator + fraction.denominator == answer("0f83a2")


def doubled(a: int, b: int, c: int) -> bool:
    """Returns whether one angle of the triangle is twice another: cos X = 2 cos^2 Y - 1 with exact cosines."""
    sides = (a, b, c)

    def cosine(index: int) -> Fraction:
        x, y, z = sides[index], sides[index - 1], sides[index - 2]
        return Fraction(y * y + z * z - x * x, 2 * y * z)

    return any(
        i != j and cosine(j) > 0 and cosine(i) == 2 * cosine(j) ** 2 - 1  # Y is acute, so 2Y lies between 0 and 180 degrees
        for i in range(3)
        for j in range(3)
    )


@pytest.mark.slow
def test_triangles_with_a_doubled_angle() -> None:
    def found(limit: int) -> set[tuple[int, ...]]:
        """Returns all sides a, b, c with a^2 = b(b + c): the angle opposite a is twice the angle opposite b."""
        triangles = set()
        for a in range(1, limit // 2 + 1):
            b = np.arange(a // 2 + 1, a)  # c > 0 needs b < a, and a < b + c needs a < 2b
            for side in b[(a * a) % b == 0] if len(b) else ():
                c = a * a // int(side) - int(side)
                if a + side + c <= limit and c < a + side:
                    triangles.add(tuple(sorted((a, int(side), c))))
        return triangles

    shapes = ((a, b, c) for c in range(1, 75) for b in range(1, c + 1) for a in range(c - b + 1, b + 1) if a + b + c <= 150)
    small = {shape for shape in shapes if doubled(*shape)}
    assert small == found(150)
    assert len(found(20_000)) == answer("87ba4d")


@pytest.mark.parametrize("problem_id", sorted(PROBLEMS))
def test_every_text_is_plain_latex(problem_id: str) -> None:
    text = PROBLEMS[problem_id].text
    assert text.count("$") % 2 == 0
    assert text.count("{") == text.count("}")
    assert text.isascii()
    assert len(text) > 120
