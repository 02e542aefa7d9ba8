# ruff: noqa: E501  a wording or a program is easier to read on one line
"""Word problems for training the pocket model: sixteen families, each with several wordings and its own solution.

A problem is a family, its numbers and one of the family's wordings. `Family.answer` computes the answer by another method
than the programs that the model learns to write, so that transcripts can be checked against it.

One problem in ten, chosen by a hash of family and numbers, is held out: training never uses it, in any wording or with any
seed, and evaluation uses nothing else.

In wordings and programs, `<a>` is replaced by the number a. A program's last line `=> x` shows the value x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import gcd, isqrt, prod
from random import Random

ANSWERS = range(100_000)
HELD_OUT_SHARE = 0.1
NAMES = ("Ada", "Ben", "Chloe", "Dmitri", "Emmy", "Farid", "Grace", "Hugo", "Ines", "Jun", "Kofi", "Lena", "Mira", "Noor", "Omar")
ENDINGS = ("", "", "", " Give the answer as an integer.", " Give your answer as a whole number.", " What is the answer?")

Numbers = dict[str, int]


@dataclass(frozen=True, slots=True)
class Program:
    """One way to compute the answer.

    Attributes:
        thoughts: what may be thought before it is written.
        code: Python; its last line `=> x` shows x.
        slips: texts of `code` and what they become in a version that fails when it is run.
    """

    thoughts: tuple[str, ...]
    code: str
    slips: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of problem.

    Attributes:
        draw: numbers for a new problem.
        answer: the answer from the numbers, by another method than that of `programs`.
    """

    name: str
    draw: Callable[[Random], Numbers]
    answer: Callable[..., int]
    wordings: tuple[str, ...]
    programs: tuple[Program, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its text, its answer and where they come from."""

    family: Family
    numbers: Numbers
    text: str
    answer: int

    def fill(self, template: str) -> str:
        """Returns `template` with `<name>` replaced by this problem's numbers."""
        return fill(template, self.numbers)


def fill(template: str, numbers: Numbers) -> str:
    return re.sub(r"<([a-z])>", lambda hole: str(numbers[hole[1]]), template)


def held_out(family: str, numbers: Numbers) -> bool:
    """Returns whether a problem belongs to evaluation."""
    key = f"{family} {sorted(numbers.items())}"
    return int.from_bytes(sha256(key.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def problems(seed: int | str, *, for_training: bool, families: tuple[Family, ...] | None = None) -> Iterator[Problem]:
    """Yields problems endlessly, one family after another (`FAMILIES` by default); the same seed gives the same problems."""
    random = Random(f"problems {seed} {for_training}")
    while True:
        for family in families or FAMILIES:
            yield _draw(family, random, for_training)


def _draw(family: Family, random: Random, for_training: bool) -> Problem:
    while True:
        numbers = family.draw(random)
        if held_out(family.name, numbers) == for_training:
            continue
        answer = family.answer(**numbers)
        if answer in ANSWERS:
            wording = random.choice(family.wordings).replace("<who>", random.choice(NAMES))
            return Problem(family, numbers, fill(wording, numbers) + random.choice(ENDINGS), answer)


# Numbers


def _draw_power(random: Random) -> Numbers:
    return {"a": random.randint(2, 999), "b": random.randint(10, 3000), "m": random.randint(11, 99_999)}


def _draw_gcd(random: Random) -> Numbers:
    common = random.randint(2, 400)
    x, y = random.sample(range(2, 50), 2)
    return {"a": common * x, "b": common * y}


def _draw_lcm(random: Random) -> Numbers:
    a, b, c = random.sample(range(4, 100), 3)
    return {"a": a, "b": b, "c": c}


def _draw_lcm_of_two(random: Random) -> Numbers:
    common = random.randint(1, 60)
    a, b = random.sample(range(2, 60), 2)
    return {"a": common * a, "b": common * b}


def _draw_divisors(random: Random) -> Numbers:
    n = 1
    while n < 500:
        n *= random.choice((2, 2, 2, 3, 3, 5, 5, 7, 11, 13, 17, 19, 23))
    return {"n": n}


def _draw_digit_sum(random: Random) -> Numbers:
    return {"a": random.randint(2, 99), "b": random.randint(10, 300)}


def _draw_multiples(random: Random) -> Numbers:
    a, b = random.sample(range(3, 40), 2)
    return {"n": random.randint(60, 600), "a": a, "b": b}


def _draw_pairs(random: Random) -> Numbers:
    return {"n": random.randint(12, 70), "a": random.randint(2, 30), "m": random.randint(3, 40)}


def _draw_binomial(random: Random) -> Numbers:
    n = random.randint(20, 140)
    return {"n": n, "k": random.randint(5, n // 2), "m": random.randint(101, 99_999)}


def _draw_recurrence(random: Random) -> Numbers:
    s, t, p, q = (random.randint(1, 20) for _ in range(4))
    return {"s": s, "t": t, "p": p, "q": q, "n": random.randint(15, 500), "m": random.randint(101, 99_999)}


def _draw_lattice(random: Random) -> Numbers:
    return {"r": random.randint(20, 4000)}


def _draw_congruences(random: Random) -> Numbers:
    while True:
        p, q, r = random.sample(range(3, 48), 3)
        if gcd(p, q) == gcd(p, r) == gcd(q, r) == 1 and 60 < p * q * r < 30_000:
            return {"p": p, "q": q, "r": r, "a": random.randrange(1, p), "b": random.randrange(1, q), "c": random.randrange(1, r)}


def _draw_primes(random: Random) -> Numbers:
    a = random.randint(10, 2500)
    return {"a": a, "b": a + random.randint(100, 900)}


def _draw_digits(random: Random) -> Numbers:
    return {"n": random.randint(300, 9999), "s": random.randint(5, 22)}


def _draw_coprime(random: Random) -> Numbers:
    return {"n": random.randint(50, 5000), "m": random.randint(6, 5000)}


def _draw_coins(random: Random) -> Numbers:
    a, b, c = sorted(random.sample(range(2, 40), 3))
    return {"n": random.randint(60, 500), "a": a, "b": b, "c": c}


def _draw_factorial(random: Random) -> Numbers:
    return {"n": random.randint(50, 50_000), "p": random.choice((2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47))}


# Answers, by other methods than the programs'


def _factors(n: int) -> dict[int, int]:
    """Returns the prime factors of n with their multiplicities."""
    factors: dict[int, int] = {}
    p = 2
    while n > 1:
        while n % p == 0:
            factors[p] = factors.get(p, 0) + 1
            n //= p
        p += 1
    return factors


def _power(a: int, b: int, m: int) -> int:
    rest, square = 1, a
    while b:
        if b & 1:
            rest = rest * square % m
        square = square * square % m
        b >>= 1
    return rest


def _gcd(a: int, b: int) -> int:
    left, right = _factors(a), _factors(b)
    return prod(p ** min(e, right.get(p, 0)) for p, e in left.items())


def _lcm(a: int, b: int, c: int) -> int:
    parts = [_factors(x) for x in (a, b, c)]
    return prod(p ** max(part.get(p, 0) for part in parts) for p in set().union(*parts))


def _divisors(n: int) -> int:
    return prod(e + 1 for e in _factors(n).values())


def _digit_sum(a: int, b: int) -> int:
    digits = [1]
    for _ in range(b):
        carry = 0
        for place, digit in enumerate(digits):
            carry, digits[place] = divmod(digit * a + carry, 10)
        while carry:
            carry, digit = divmod(carry, 10)
            digits.append(digit)
    return sum(digits)


def _multiples(n: int, a: int, b: int) -> int:
    def up_to(d: int) -> int:
        count = n // d
        return d * count * (count + 1) // 2

    return up_to(a) + up_to(b) - up_to(a * b // gcd(a, b))


def _pairs(n: int, a: int, m: int) -> int:
    left, right = [0] * m, [0] * m
    for x in range(1, n + 1):
        left[x * x % m] += 1
        right[-a * x * x % m] += 1
    return sum(x * y for x, y in zip(left, right, strict=True))


def _binomial(n: int, k: int, m: int) -> int:
    row = [1] + [0] * k
    for _ in range(n):
        for j in range(k, 0, -1):
            row[j] = (row[j] + row[j - 1]) % m
    return row[k]


Matrix = tuple[int, int, int, int]


def _recurrence(s: int, t: int, p: int, q: int, n: int, m: int) -> int:
    def times(x: Matrix, y: Matrix) -> Matrix:
        a, b, c, d = x
        e, f, g, h = y
        return ((a * e + b * g) % m, (a * f + b * h) % m, (c * e + d * g) % m, (c * f + d * h) % m)

    power, square, left = (1, 0, 0, 1), (p, q, 1, 0), n - 1
    while left:
        if left & 1:
            power = times(power, square)
        square = times(square, square)
        left >>= 1
    return (power[2] * t + power[3] * s) % m


def _lattice(r: int) -> int:
    return sum(2 * isqrt(r - x * x) + 1 for x in range(-isqrt(r), isqrt(r) + 1))


def _congruences(p: int, q: int, r: int, a: int, b: int, c: int) -> int:
    whole = p * q * r
    return sum(rest * (whole // mod) * pow(whole // mod, -1, mod) for rest, mod in ((a, p), (b, q), (c, r))) % whole


def _primes(a: int, b: int) -> int:
    sieve = bytearray([0, 0]) + bytearray([1]) * (b - 1)
    for p in range(2, isqrt(b) + 1):
        if sieve[p]:
            sieve[p * p :: p] = bytes(len(range(p * p, b + 1, p)))
    return sum(sieve[a:])


def _digits(n: int, s: int) -> int:
    def below(prefix_sum: int, places: int) -> int:
        """Returns the number of ways to fill `places` free digits so that all digits sum to s."""
        ways = [1] + [0] * s
        for _ in range(places):
            ways = [sum(ways[max(0, total - 9) : total + 1]) for total in range(s + 1)]
        return ways[s - prefix_sum] if prefix_sum <= s else 0

    digits = [int(digit) for digit in str(n + 1)]
    return sum(below(sum(digits[:i]) + d, len(digits) - i - 1) for i, digit in enumerate(digits) for d in range(digit))


def _coprime(n: int, m: int) -> int:
    signed = [1]
    for p in _factors(m):
        signed += [-p * d for d in signed]
    return sum(n // d if d > 0 else -(n // -d) for d in signed)


def _coins(n: int, a: int, b: int, c: int) -> int:
    ways = [1] + [0] * n
    for coin in (a, b, c):
        for amount in range(coin, n + 1):
            ways[amount] += ways[amount - coin]
    return ways[n]


def _factorial(n: int, p: int) -> int:
    digits, left = 0, n
    while left:
        digits += left % p
        left //= p
    return (n - digits) // (p - 1)


FAMILIES: tuple[Family, ...] = (
    Family(
        "power_remainder",
        _draw_power,
        _power,
        (
            "Find the remainder when <a>^<b> is divided by <m>.",
            "What is the remainder of $<a>^{<b>}$ modulo <m>?",
            "Let N = <a>^<b>. Compute the remainder of N upon division by <m>.",
            "<who> multiplies <b> factors, each equal to <a>, and divides the product by <m>. What remainder is left?",
            "A number is written as <a> to the power <b>. Which remainder does it leave when divided by <m>?",
        ),
        (
            Program(
                ("Modular exponentiation.", "The three-argument pow does this."),
                "=> pow(<a>, <b>, <m>)",
                (("pow(", "powmod("),),
            ),
            Program(
                ("Multiply step by step and reduce.", "A loop keeps the remainder small."),
                "rest = 1\nfor _ in range(<b>):\n    rest = rest * <a> % <m>\n=> rest",
                (("rest = 1\n", ""), ("range(", "rang(")),
            ),
        ),
    ),
    Family(
        "gcd",
        _draw_gcd,
        _gcd,
        (
            "Find the greatest common divisor of <a> and <b>.",
            "What is the largest integer that divides both <a> and <b>?",
            "A floor of <a> by <b> centimetres is covered by equal square tiles without cutting any. How long is the side of the largest possible tile?",
            "<who> has <a> red and <b> blue beads and makes as many identical bags as possible, using all beads. How many bags are there?",
            "Compute $\\gcd(<a>, <b>)$.",
        ),
        (
            Program(
                ("The greatest common divisor.", "Use gcd."),
                "from math import gcd\n=> gcd(<a>, <b>)",
                (("math import gcd", "math import gdc"), ("from math import gcd\n=> gcd(", "import math\n=> math.gdc(")),
            ),
            Program(
                ("Euclid's algorithm.", "Divide with remainder until nothing is left."),
                "x, y = <a>, <b>\nwhile y:\n    x, y = y, x % y\n=> x",
                (("while y:", "while y"), ("x % y", "x % z")),
            ),
        ),
    ),
    Family(
        "lcm",
        _draw_lcm,
        _lcm,
        (
            "Find the least common multiple of <a>, <b> and <c>.",
            "Three lamps flash every <a>, <b> and <c> seconds. They flash together now. After how many seconds do they flash together again?",
            "What is the smallest positive integer divisible by <a>, <b> and <c>?",
            "Runners need <a>, <b> and <c> seconds for a lap and start together. After how many seconds are all three at the start again for the first time?",
            "Compute $\\operatorname{lcm}(<a>, <b>, <c>)$.",
        ),
        (
            Program(
                ("The least common multiple.", "Use lcm."),
                "from math import lcm\n=> lcm(<a>, <b>, <c>)",
                (("math import lcm", "math import lmc"), ("from math import lcm\n=> lcm(", "import math\n=> math.lmc(")),
            ),
            Program(
                ("Try the multiples of the first number.", "Step through multiples."),
                "n = <a>\nwhile n % <b> or n % <c>:\n    n += <a>\n=> n",
                (("n = <a>\n", ""),),
            ),
        ),
    ),
    Family(
        "divisor_count",
        _draw_divisors,
        _divisors,
        (
            "How many positive divisors does <n> have?",
            "Count the positive integers that divide <n>.",
            "In how many ways can <n> unit squares be laid out as a rectangle, if a by b and b by a count as different?",
            "<who> wants to split <n> marbles into equal piles. How many different numbers of piles are possible?",
            "Let d(n) be the number of divisors of n. Find d(<n>).",
        ),
        (
            Program(
                ("Test every candidate.", "Count the divisors directly."),
                "n = <n>\n=> sum(1 for d in range(1, n + 1) if n % d == 0)",
                (("range(1, n + 1)", "range(n + 1)"),),
            ),
            Program(
                ("Divisors come in pairs.", "It is enough to go up to the square root."),
                "n = <n>\ncount = 0\nd = 1\nwhile d * d <= n:\n    if n % d == 0:\n        count += 1 if d * d == n else 2\n    d += 1\n=> count",
                (("count = 0\n", ""), ("=> count", "=> cuont")),
            ),
            Program(
                ("sympy counts divisors.",),
                "from sympy import divisor_count\n=> divisor_count(<n>)",
                (("import divisor_count", "import divisors_count"),),
            ),
        ),
    ),
    Family(
        "digit_sum",
        _draw_digit_sum,
        _digit_sum,
        (
            "Find the sum of the decimal digits of <a>^<b>.",
            "What is the digit sum of $<a>^{<b>}$?",
            "<who> writes out the number <a>^<b> in full and adds up all its digits. What is the total?",
            "Compute the sum of all digits of <a> raised to the power <b>.",
            "The number <a>^<b> is written in base ten. What do its digits add up to?",
        ),
        (
            Program(
                ("Write the power out and add its digits.", "Add the digits of the string."),
                "=> sum(int(d) for d in str(<a> ** <b>))",
                (("str(<a> ** <b>)", "(<a> ** <b>)"),),
            ),
            Program(
                ("Peel off the digits one by one.", "Take digits from the end."),
                "n = <a> ** <b>\ntotal = 0\nwhile n:\n    total += n % 10\n    n //= 10\n=> total",
                (("total = 0\n", ""), ("=> total", "=> totl")),
            ),
        ),
    ),
    Family(
        "multiples_sum",
        _draw_multiples,
        _multiples,
        (
            "Find the sum of all integers from 1 to <n> that are divisible by <a> or by <b>.",
            "Add up all positive integers not exceeding <n> that are multiples of <a> or of <b>. What is the sum?",
            "Doors are numbered 1 to <n>. <who> opens those whose number is a multiple of <a> or <b>. What is the sum of the numbers of the open doors?",
            "What is the sum of those k with 1 <= k <= <n> for which <a> divides k or <b> divides k?",
            "Among the integers 1, 2, ..., <n>, consider those divisible by at least one of <a> and <b>. Compute their sum.",
        ),
        (
            Program(
                ("Sum with a condition.", "Add the numbers that fit."),
                "=> sum(k for k in range(1, <n> + 1) if k % <a> == 0 or k % <b> == 0)",
                (("range(", "rang("), ("if k %", "if n %")),
            ),
            Program(
                ("Go through all numbers.", "A loop with one condition."),
                "total = 0\nfor k in range(1, <n> + 1):\n    if k % <a> == 0 or k % <b> == 0:\n        total += k\n=> total",
                (("total = 0\n", ""), ("== 0:\n", "== 0\n")),
            ),
        ),
    ),
    Family(
        "pair_count",
        _draw_pairs,
        _pairs,
        (
            "How many ordered pairs (x, y) of integers with 1 <= x, y <= <n> are there such that x^2 + <a>y^2 is divisible by <m>?",
            "Count the pairs (x, y) with x and y from 1 to <n> for which <m> divides x^2 + <a>y^2.",
            "<who> picks two integers x and y, each between 1 and <n> inclusive. For how many choices is x^2 + <a>y^2 a multiple of <m>?",
            "Let S be the set of pairs $(x, y)$ with $1 \\le x, y \\le <n>$ and $x^2 + <a>y^2 \\equiv 0 \\pmod{<m>}$. How many elements does S have?",
        ),
        (
            Program(
                ("Count by brute force.", "Few pairs, try them all."),
                "n = <n>\n=> sum(1 for x in range(1, n + 1) for y in range(1, n + 1) if (x * x + <a> * y * y) % <m> == 0)",
                (("n = <n>\n", "N = <n>\n"), ("y * y)", "z * z)")),
            ),
            Program(
                ("Two nested loops.", "Check each pair."),
                "count = 0\nfor x in range(1, <n> + 1):\n    for y in range(1, <n> + 1):\n        if (x * x + <a> * y * y) % <m> == 0:\n            count += 1\n=> count",
                (("count = 0\n", ""), ("=> count", "=> cuont")),
            ),
        ),
    ),
    Family(
        "binomial_remainder",
        _draw_binomial,
        _binomial,
        (
            "Find the remainder when the binomial coefficient C(<n>, <k>) is divided by <m>.",
            "What is $\\binom{<n>}{<k>}$ modulo <m>?",
            "In how many ways can <k> people be chosen out of <n>? Give the remainder of that number modulo <m>.",
            "<who> chooses <k> of <n> books. Let W be the number of ways to do so. Compute the remainder of W upon division by <m>.",
            "A set has <n> elements. Let T be the number of its subsets with exactly <k> elements. Find T mod <m>.",
        ),
        (
            Program(
                ("A binomial coefficient, then reduce.", "Use comb."),
                "from math import comb\n=> comb(<n>, <k>) % <m>",
                (("math import comb", "math import binom"), ("from math import comb\n=> comb(", "import math\n=> math.binom(")),
            ),
            Program(
                ("Build it factor by factor.", "The product formula."),
                "c = 1\nfor i in range(<k>):\n    c = c * (<n> - i) // (i + 1)\n=> c % <m>",
                (("c = 1\n", ""), ("(i + 1)", "i")),
            ),
        ),
    ),
    Family(
        "recurrence",
        _draw_recurrence,
        _recurrence,
        (
            "A sequence has a_1 = <s>, a_2 = <t> and a_n = <p>a_{n-1} + <q>a_{n-2} for n >= 3. Find the remainder of a_<n> modulo <m>.",
            "Let $a_1 = <s>$, $a_2 = <t>$ and $a_n = <p>a_{n-1} + <q>a_{n-2}$. What remainder does $a_{<n>}$ leave when divided by <m>?",
            "<who> starts with the numbers <s> and <t>. Each next number is <p> times the last one plus <q> times the one before it. What is the <n>th number modulo <m>?",
            "The first two terms of a sequence are <s> and <t>. Every later term is <p> times the previous term plus <q> times the term before that. Compute term number <n> modulo <m>.",
        ),
        (
            Program(
                ("Step through the recurrence.", "Keep the last two terms and reduce."),
                "x, y = <s>, <t>\nfor _ in range(<n> - 2):\n    x, y = y, (<p> * y + <q> * x) % <m>\n=> y % <m>",
                (("x, y = <s>, <t>\n", "x = <s>, <t>\n"), ("range(", "rang(")),
            ),
            Program(
                ("Build the list of terms.", "Append term after term."),
                "a = [<s>, <t>]\nwhile len(a) < <n>:\n    a.append((<p> * a[-1] + <q> * a[-2]) % <m>)\n=> a[<n> - 1] % <m>",
                (("a.append(", "a.add("), ("[<n> - 1]", "[<n>]")),
            ),
        ),
    ),
    Family(
        "lattice_points",
        _draw_lattice,
        _lattice,
        (
            "How many points (x, y) with integer coordinates satisfy x^2 + y^2 <= <r>?",
            "Count the lattice points in the plane whose squared distance from the origin is at most <r>.",
            "A disc around the origin has radius $\\sqrt{<r>}$. How many integer points lie in it or on its edge?",
            "For how many ordered pairs (x, y) of integers, negative ones included, is x^2 + y^2 no larger than <r>?",
        ),
        (
            Program(
                ("Count the points in a square around the disc.", "Try all points near the origin."),
                "R = int(<r> ** 0.5)\n=> sum(1 for x in range(-R, R + 1) for y in range(-R, R + 1) if x * x + y * y <= <r>)",
                (("int(<r> ** 0.5)", "<r> ** 0.5"), ("R = ", "r = ")),
            ),
            Program(
                ("Count column by column.", "For each x count the y."),
                "from math import isqrt\ntotal = 0\nR = isqrt(<r>)\nfor x in range(-R, R + 1):\n    total += 2 * isqrt(<r> - x * x) + 1\n=> total",
                (("total = 0\n", ""), ("import isqrt", "import intsqrt")),
            ),
        ),
    ),
    Family(
        "congruences",
        _draw_congruences,
        _congruences,
        (
            "Find the smallest positive integer that leaves remainder <a> when divided by <p>, remainder <b> when divided by <q> and remainder <c> when divided by <r>.",
            "What is the least positive x with x = <a> mod <p>, x = <b> mod <q> and x = <c> mod <r>?",
            "<who> counts coins. In rows of <p>, <a> are left over, in rows of <q>, <b> are left over, and in rows of <r>, <c> are left over. What is the smallest possible number of coins?",
            "Determine the smallest $x > 0$ such that $x \\equiv <a> \\pmod{<p>}$, $x \\equiv <b> \\pmod{<q>}$ and $x \\equiv <c> \\pmod{<r>}$.",
        ),
        (
            Program(
                ("A system of congruences, search.", "Test numbers until all three fit."),
                "x = 1\nwhile x % <p> != <a> or x % <q> != <b> or x % <r> != <c>:\n    x += 1\n=> x",
                (("x = 1\n", ""),),
            ),
            Program(
                ("Step through one class and test the others.", "Walk in steps of the first modulus."),
                "x = <a>\nwhile x % <q> != <b> or x % <r> != <c>:\n    x += <p>\n=> x",
                (("<c>:\n", "<c>\n"), ("=> x", "=> n")),
            ),
            Program(
                ("The Chinese remainder theorem.",),
                "from sympy.ntheory.modular import crt\n=> int(crt([<p>, <q>, <r>], [<a>, <b>, <c>])[0])",
                (("from sympy.ntheory.modular", "from sympy.ntheory.modulo"),),
            ),
        ),
    ),
    Family(
        "prime_count",
        _draw_primes,
        _primes,
        (
            "How many prime numbers p satisfy <a> <= p <= <b>?",
            "Count the primes between <a> and <b>, both ends included.",
            "<who> lists all integers from <a> to <b> and crosses out every number that is not prime. How many numbers remain?",
            "What is the number of primes in the interval $[<a>, <b>]$?",
        ),
        (
            Program(
                ("Trial division.", "Test each number for divisors."),
                "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))\n=> sum(is_prime(n) for n in range(<a>, <b> + 1))",
                (("int(n ** 0.5) + 1", "n ** 0.5 + 1"), ("sum(is_prime(", "sum(isprimes(")),
            ),
            Program(
                ("sympy knows the primes.", "List them with sympy."),
                "from sympy import primerange\n=> len(list(primerange(<a>, <b> + 1)))",
                (("import primerange", "import prime_range"), ("len(list(", "len((")),
            ),
        ),
    ),
    Family(
        "digit_condition",
        _draw_digits,
        _digits,
        (
            "How many integers from 1 to <n> have digit sum <s>?",
            "Count the positive integers not exceeding <n> whose digits add up to <s>.",
            "Raffle tickets are numbered 1 to <n>. A ticket wins if its digits sum to <s>. How many tickets win?",
            "For how many k with 1 <= k <= <n> is the sum of the decimal digits of k equal to <s>?",
        ),
        (
            Program(
                ("Check the digit sum of each number.", "Brute force over all numbers."),
                "=> sum(1 for k in range(1, <n> + 1) if sum(int(d) for d in str(k)) == <s>)",
                (("in str(k)", "in k"),),
            ),
            Program(
                ("Count in a loop.", "Go through the numbers one by one."),
                "count = 0\nfor k in range(1, <n> + 1):\n    if sum(map(int, str(k))) == <s>:\n        count += 1\n=> count",
                (("str(k)", "k"), ("count = 0\n", "")),
            ),
        ),
    ),
    Family(
        "coprime_count",
        _draw_coprime,
        _coprime,
        (
            "How many integers from 1 to <n> are coprime to <m>?",
            "Count the positive integers k <= <n> with $\\gcd(k, <m>) = 1$.",
            "<who> keeps the numbers between 1 and <n> that share no factor greater than 1 with <m>. How many are kept?",
            "For how many k from 1 to <n> is the fraction k/<m> in lowest terms?",
        ),
        (
            Program(
                ("Count with gcd.", "The common divisor must be 1."),
                "from math import gcd\n=> sum(1 for k in range(1, <n> + 1) if gcd(k, <m>) == 1)",
                (("math import gcd", "math import gdc"), ("gcd(k,", "gcd(n,")),
            ),
            Program(
                ("Test each number in a loop.", "Loop and count."),
                "import math\ncount = 0\nfor k in range(1, <n> + 1):\n    if math.gcd(k, <m>) == 1:\n        count += 1\n=> count",
                (("math.gcd(", "math.gdc("), ("count = 0\n", "")),
            ),
        ),
    ),
    Family(
        "coins",
        _draw_coins,
        _coins,
        (
            "In how many ways can <n> be paid with coins of value <a>, <b> and <c>, if the order does not matter?",
            "How many triples (x, y, z) of non-negative integers satisfy <a>x + <b>y + <c>z = <n>?",
            "<who> buys packs of <a>, <b> and <c> pencils and wants exactly <n> pencils. How many combinations of packs are possible?",
            "Find the number of solutions of $<a>x + <b>y + <c>z = <n>$ in integers $x, y, z \\ge 0$.",
        ),
        (
            Program(
                ("Choose the first two, the third must fit.", "Two loops, the rest must be divisible."),
                "n = <n>\n=> sum(1 for x in range(n // <a> + 1) for y in range((n - <a> * x) // <b> + 1) if (n - <a> * x - <b> * y) % <c> == 0)",
                (("range(n // <a> + 1)", "range(n / <a> + 1)"), ("n = <n>\n", "N = <n>\n")),
            ),
            Program(
                ("Count with loops.", "Go through the first two counts."),
                "count = 0\nfor x in range(0, <n> + 1, <a>):\n    for y in range(0, <n> - x + 1, <b>):\n        if (<n> - x - y) % <c> == 0:\n            count += 1\n=> count",
                (("count = 0\n", ""), ("=> count", "=> cuont")),
            ),
        ),
    ),
    Family(
        "factorial_exponent",
        _draw_factorial,
        _factorial,
        (
            "Find the largest k such that <p>^k divides <n>!.",
            "What is the exponent of the prime <p> in the factorisation of <n>!?",
            "<who> divides <n>! by <p> again and again as long as the result is an integer. How many divisions are possible?",
            "How often does the prime factor <p> occur in the product 1 * 2 * ... * <n>?",
            "Let $v$ be the number of times $<p>$ divides $<n>!$. Compute $v$.",
        ),
        (
            Program(
                ("Legendre's formula.", "Add up the quotients."),
                "n = <n>\ncount = 0\nwhile n:\n    n //= <p>\n    count += n\n=> count",
                (("count = 0\n", ""), ("while n:", "while n")),
            ),
            Program(
                ("Sum over powers of the prime.", "Count multiples of each power."),
                "q, total = <p>, 0\nwhile q <= <n>:\n    total += <n> // q\n    q *= <p>\n=> total",
                (("q, total = <p>, 0\n", "q = <p>\n"), ("=> total", "=> totl")),
            ),
        ),
    ),
)

# The pocket model never saw this family; it gets about 45 % right, because it often adds a third number to the call.
WEAK_FAMILY = Family(
    "lcm_of_two",
    _draw_lcm_of_two,
    lambda a, b: a * b // gcd(a, b),
    (
        "Find the least common multiple of <a> and <b>.",
        "What is the least positive number that is a multiple of <a> and a multiple of <b>?",
        "Two gears with <a> and <b> teeth turn together. After how many teeth are both back at their start?",
        "Two lamps flash every <a> and <b> seconds. They flash together now. After how many seconds do they flash together again?",
        "Compute $\\operatorname{lcm}(<a>, <b>)$.",
    ),
    (),
)
