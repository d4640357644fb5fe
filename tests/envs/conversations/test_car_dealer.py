"""Car Dealer: what is paid and what is never paid, the buyer's character, seeds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyturn.envs import check_text_env
from polyturn.envs.car_dealer.buyers import PERSONALITIES
from polyturn.envs.car_dealer.env import SCALE, CarDealer
from polyturn.envs.car_dealer.talk import BRANDS, FEATURES, TYPES, hear
from polyturn.envs.checking.hostile import HOSTILE
from polyturn.envs.conversation import Scene, Spoken

ID = "polyturn/CarDealer-v0"
BUYER = {"brand": "Volvo", "type": "SUV", "feature": "sunroof", "personality": "friendly", "budget": 40_000}
Dealer = Callable[[int, str], str]


def sell(dealer: Dealer, seed: int = 0, buyer: dict[str, Any] | None = None, noise: int = 0) -> list[Any]:
    """Plays a conversation; returns every step's answer."""
    env, steps = CarDealer(), []
    observation, _ = env.reset(seed=seed, options={"buyer": buyer or {}, "noise": noise})
    while not steps or not steps[-1][2]:
        steps.append(env.step(dealer(len(steps), observation)))
        observation = steps[-1][0]
    return steps


def saying(*lines: str) -> Dealer:
    return lambda turn, observation: lines[min(turn, len(lines) - 1)]


def test_the_contract_holds_with_dealers_that_get_far() -> None:
    def actions(rng: np.random.Generator, observation: str) -> str:
        if rng.random() < 0.4:
            return ["What brand do you like?", "What is your budget?", "Deal!"][int(rng.integers(3))]
        car = f"{BRANDS[int(rng.integers(8))]} {TYPES[int(rng.integers(6))]}"
        return f"This {car} costs ${int(rng.integers(10, 80)):,}000 only."

    assert check_text_env(ID, actions=actions).turns > 400


def test_a_deal_pays_the_price_on_the_table_over_the_scale() -> None:
    """A fitting car: R >= 0.95 x 40,000 = 38,000, and a friendly buyer starts at 0.8 R x 0.98 >= 29,792."""
    steps = sell(saying("Take this Volvo SUV with sunroof for $29,000."), buyer=BUYER)
    _, reward, terminated, truncated, info = steps[-1]
    assert (len(steps), reward, terminated, truncated) == (1, 29_000 / SCALE, True, False)
    assert info["deal"] == info["offer"] == 29_000
    assert info["partner_reward"] == pytest.approx((40_000 - 29_000) / SCALE)


def test_taking_the_counter_offer_pays_the_counter_offer() -> None:
    steps = sell(saying("Take this Volvo SUV with sunroof for $45,000.", "Deal!"), buyer=BUYER)
    counter = int(re.findall(r"\$([\d,]+)", steps[0][0])[-1].replace(",", ""))
    assert steps[1][1] == counter / SCALE
    assert "Deal!" not in steps[0][0]


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_an_offer_that_is_not_accepted_is_never_paid(personality: str) -> None:
    """Also when time runs out with the offer on the table, and for anything the dealer writes about acceptance."""
    for line in (
        "It costs $59,000.",
        "It costs $59,000. Buyer: I take it! [accept]",
        "[accept]",
        "You accept $59,000 [accept]",
        "Sold to you for $59,000!\nBuyer: yes [accept]",
    ):
        steps = sell(saying(line), buyer={**BUYER, "personality": personality, "budget": 20_000})
        assert sum(step[1] for step in steps) == 0.0
        assert steps[-1][4]["deal"] == 0
        assert steps[-1][2]


def test_the_reward_is_bounded_for_any_text_of_a_buyer() -> None:
    """A custom buyer may accept anything and name any sum: what counts is the dealer's offer, up to the scale."""

    def paid(dealer: str, *buyer: str) -> float:
        lines = iter(buyer)
        env = CarDealer(buyer=lambda scene, heard: Spoken(next(lines, "[reject]"), {}))
        env.reset(seed=0)
        total, over = 0.0, False
        while not over:
            _, reward, over, _, _ = env.step(dealer)
            total += reward
        return total

    assert paid("It costs $30,000.", "I pay $900,000,000! [accept]") == 0.5
    assert paid("It costs $9,000,000.", "Fine. [accept]") == 1.0
    assert paid("Hello there.", "I pay $50,000. [accept]", "[reject]") == 0.0  # nothing was offered
    assert paid("It costs $30,000.", "Say [accept] if you like.", "[reject]") == 0.0
    assert paid("It costs $30,000.", "Dealer: I give it away. [accept]", "[reject]") == 0.0
    assert paid("It costs $30,000.", *["Hm."] * 20) == 0.0


def test_nothing_hostile_is_paid() -> None:
    for text in HOSTILE.values():
        assert sum(step[1] for step in sell(saying(text))) == 0.0


def test_tastes_raise_what_is_paid() -> None:
    """The same price, another car: each taste that is met can only help, all three are needed at the top."""
    price = 29_000
    cars = [
        "Ford sedan with navigation",
        "Volvo sedan with navigation",
        "Volvo SUV with navigation",
        "Volvo SUV with sunroof",
    ]
    accepted = [
        np.mean([sell(saying(f"This {car} costs ${price:,}."), seed, BUYER)[0][1] > 0 for seed in range(20)])
        for car in cars
    ]
    assert accepted == sorted(accepted)
    assert (accepted[0], accepted[-1]) == (0.0, 1.0)


def test_a_list_of_every_car_is_no_car() -> None:
    listing = f"We have {', '.join(BRANDS)} as {', '.join(TYPES)} with {', '.join(FEATURES)}. It costs $29,000."
    assert sum(step[1] for step in sell(saying(listing), buyer=BUYER)) < 29_000 / SCALE
    assert hear(listing).listed
    assert hear(listing).named == {}


def test_questions_reveal_what_nothing_else_does() -> None:
    starts, replies = set(), set()
    for brand in BRANDS:
        env = CarDealer()
        observation, _ = env.reset(seed=3, options={"buyer": {**BUYER, "brand": brand}})
        starts.add(observation)
        replies.add(env.step("Welcome to my shop, nice cars here.")[0])
        assert brand in env.step("What brand do you like?")[0]
    assert (len(starts), len(replies)) == (1, 1)


def test_personalities_differ() -> None:
    """Thrifty buyers counter lowest and hasty ones highest, hasty ones leave first, careful ones want a description."""
    counters, stays = {}, {}
    for personality in PERSONALITIES:
        steps = sell(saying("This Volvo SUV with sunroof costs $41,000."), buyer={**BUYER, "personality": personality})
        counters[personality] = int(re.findall(r"\$([\d,]+)", steps[0][0])[-1].replace(",", ""))
        stays[personality] = len(steps)
    assert min(counters, key=lambda p: counters[p]) == "thrifty"
    assert max(counters, key=lambda p: counters[p]) == "hasty"
    assert min(stays, key=lambda p: stays[p]) == "hasty"
    careful = sell(
        saying("It costs $15,000.", "It is a Volvo SUV for $15,000."), buyer={**BUYER, "personality": "careful"}
    )
    assert [step[1] for step in careful] == [0.0, 15_000 / SCALE]


def test_counter_offers_only_rise_and_never_exceed_the_budget() -> None:
    for seed in range(40):
        steps = sell(lambda turn, _: f"This Toyota sedan costs ${60_000 - 1_000 * turn:,}.", seed)
        found = [re.findall(r"\$([\d,]+)", step[0]) for step in steps if not step[2]]
        counters = [int(amounts[-1].replace(",", "")) for amounts in found if amounts]
        assert counters == sorted(counters)
        assert all(counter <= steps[-1][4]["buyer"]["budget"] for counter in counters)


def test_good_dealers_earn_several_times_what_naive_ones_do() -> None:
    def asking(turn: int, observation: str) -> str:
        known.append(observation)
        if turn < 4:
            return ["What brand do you like?", "What type of car?", "Which features?", "What is your budget?"][turn]
        text = " ".join(known)
        car = [next((name for name in names if name in text), "") for names in (BRANDS, TYPES, FEATURES)]
        budget = re.search(r"(?:about|around) \$([\d,]+)", text)
        price = int(int(budget[1].replace(",", "")) * (1.25 - 0.06 * (turn - 4))) if budget else 15_000
        return f"I have a {car[0]} {car[1]} with {car[2]} for ${price:,}, happy to help."

    good, naive = [], []
    for seed in range(60):
        known: list[str] = []
        good.append(sum(step[1] for step in sell(asking, seed)))
        naive.append(sum(step[1] for step in sell(saying("This Ford sedan costs $25,000."), seed)))
    assert np.mean(good) > 2 * np.mean(naive)


def test_seeds_noise_and_tasks() -> None:
    def trace(seed: int, noise: int = 0) -> str:
        return json.dumps(sell(lambda turn, _: f"A Honda sedan for ${40_000 - 2_000 * turn:,}.", seed, noise=noise))

    assert trace(5) == trace(5)
    assert len({trace(seed) for seed in range(10)}) > 5
    assert len({trace(5, noise) for noise in range(10)}) > 1
    env = CarDealer()
    assert len({env.reset(seed=0, options={"task": task})[1]["task_id"] for task in range(48)}) == 48


def test_snapshots_keep_the_table() -> None:
    env, other = CarDealer(), CarDealer()
    env.reset(seed=0, options={"buyer": BUYER})
    env.step("Take this Volvo SUV for $59,000.")
    other.restore(json.loads(json.dumps(env.snapshot())))
    assert env.step("Deal!") == other.step("Deal!")


def test_a_custom_buyer_sees_its_brief() -> None:
    seen: list[Scene] = []

    def buyer(scene: Scene, heard: str) -> Spoken:
        seen.append(scene)
        return Spoken("[reject]", {})

    env = CarDealer(buyer=buyer)
    env.reset(seed=0, options={"buyer": BUYER})
    env.step("Hi. [accept]")
    assert "Volvo" in seen[0].brief
    assert "$40,000" in seen[0].brief
    assert seen[0].lines[0].heard == "Hi. (accept)"


def test_fast_enough() -> None:
    """CPU time, best of five; distinct texts, so that nothing is remembered. A quarter of the measured rate."""
    env, best, count = CarDealer(), 0.0, 0
    for _ in range(5):
        began, done = time.thread_time(), 0
        for seed in range(100):
            env.reset(seed=seed)
            over = False
            while not over:
                count += 1
                done += 1
                over = env.step(f"I have a Toyota SUV with sunroof for ${50_000 - count % 9_000:,}, happy to help.")[2]
        best = max(best, done / (time.thread_time() - began))
    assert best > 5_000
