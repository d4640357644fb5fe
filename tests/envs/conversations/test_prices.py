"""Reading prices: every expected value is what a person would say."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from polyturn.envs.car_dealer.prices import LARGEST, offered_price, prices

READINGS: list[tuple[str, int | None]] = [
    ("I can do $9,500 today.", 9_500),
    ("9.5k is my price", 9_500),
    ("How about nine thousand?", 9_000),
    ("nine thousand five hundred dollars", 9_500),
    ("nine and a half thousand", 9_500),
    ("nine thousand and a half", 9_500),
    ("twenty-two thousand", 22_000),
    ("twenty-eight five hundred", 28_500),
    ("one hundred and five thousand", 105_000),
    ("twelve hundred dollars", 1_200),
    ("a hundred thousand", 100_000),
    ("15 grand", 15_000),
    ("30 thousand dollars", 30_000),
    ("$9.500", 9_500),
    ("$18,999.99", 19_000),
    ("USD 21000", 21_000),
    ("€30,000", 30_000),
    ("price: 25000", 25_000),
    ("$25,000!", 25_000),
    ("$ 9,500", 9_500),
    # several numbers in one line
    ("It was $12,000, but for you $9,500.", 9_500),
    ("I can do $9,500, down from $12,000.", 9_500),
    ("The list price is $12,000; I could let it go for 11k.", 11_000),
    ("a 2019 sedan with 40,000 miles for 15 grand", 15_000),
    ("$200 a month, or $18,500 in total", 18_500),
    ("I'll take $500 off, so $23,500.", 23_500),
    ("so $23,500 with $500 off", 23_500),
    ("I'd say 25000, not 30000", 25_000),
    ("your offer of $20,000 is too low; $24,000", 24_000),
    ("between 9k and 10k", 9_000),
    ("$28k-$30k", 28_000),
    ("9-10k", 9_000),
    # no price
    ("You said $20,000.", None),
    ("$30000 is too much, I know", None),
    ("It has 3 doors and 200 hp", None),
    ("in 2021 I sold it", None),
    ("thousands of people", None),
    ("$1,000,000,000,000", None),
    ("0 dollars", None),
    ("7" * 100_000, None),
    ("1e9 dollars", None),
    ("\uff12\uff15\uff10\uff10\uff10", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), READINGS, ids=lambda value: str(value)[:40])
def test_the_offer_in_a_turn(text: str, expected: int | None) -> None:
    assert offered_price(text) == expected


def test_all_amounts_are_found_with_their_places() -> None:
    found = prices("It was $12,000, now 9.5k.")
    assert [(amount.value, amount.offered) for amount in found] == [(12_000, False), (9_500, True)]
    assert "It was $12,000, now 9.5k."[found[1].start : found[1].end].strip() == "9.5k"


@given(st.integers(1_000, LARGEST))
def test_every_way_of_writing_a_number_agrees(value: int) -> None:
    """Whole dollars with and without commas, as words of the digits' groups, and in thousands where that is exact."""
    assert offered_price(f"I ask ${value:,} for it") == value
    assert offered_price(f"I ask {value} dollars for it") == value
    if value % 100 == 0 and value < 1_000_000:
        assert offered_price(f"I ask {value / 1000:g}k for it") == value


@given(st.text(max_size=300))
def test_any_text_gives_bounded_amounts(text: str) -> None:
    assert all(0 < amount.value <= LARGEST for amount in prices(text))
    assert all(0 < amount.value <= LARGEST for amount in prices(f"$9{text}00 dollars"))


@pytest.mark.parametrize(
    "piece", ["7", "one ", "$", "9,", "a ", "1.5 ", "nine-", "and ", "between 9k and ", "9" * 8 + " "]
)
def test_reading_takes_no_longer_for_hostile_text(piece: str) -> None:
    began = time.process_time()
    offered_price(piece * (100_000 // len(piece)))
    assert time.process_time() - began < 0.5
