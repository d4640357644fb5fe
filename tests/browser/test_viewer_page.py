"""The viewer's page in a real browser, from the disk: it loads, finds, compares, and runs nothing that it shows.

`POLYTURN_PICTURES=docs/pictures make browser` also keeps the screenshots.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shown

from polyturn.agents.viewing import tokenizer_pieces
from polyturn.envs.store import Store
from polyturn.envs.viewing.page import write_page
from polyturn.envs.viewing.serving import ViewServer

pytestmark = pytest.mark.browser
PICTURES = os.environ.get("POLYTURN_PICTURES")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert path is not None, "no Chromium: run scripts/browser.sh, or set CHROMIUM"
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root; the page under test is ours.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end nothing may have failed, been refused by the policy, or asked a network."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")

    def visit(address: str | Path, fragment: str = "") -> Any:
        page = context.new_page()
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        url = address if isinstance(address, str) else address.absolute().as_uri()
        own = url.partition("#")[0].rpartition("/")[0]
        page.on("request", lambda r: None if r.url.startswith((own, "data:", "blob:")) else problems.append(r.url))
        page.goto(url + fragment)
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    context.close()
    assert problems == []


def keep(page: Any, name: str) -> None:
    """A screenshot for the documentation, if asked for."""
    if PICTURES:
        page.wait_for_timeout(200)
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def accessible(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [node["target"] for node in v["nodes"]][:3]) for v in serious] == []


def counted(page: Any, text: str, timeout: float = 5_000) -> None:
    """Waits until the list says how many episodes it shows."""
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(text, timeout=timeout)


def copied(page: Any, button: str) -> str:
    """What a button copies."""
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', "
        "{configurable: true, value: {writeText: async (t) => { window.copied = t; }}})"
    )
    page.click(f"text={button}")
    text: str = page.evaluate("window.copied")
    return text


def numbers(page: Any) -> list[str]:
    return page.locator("#rows .row .number").all_inner_texts()  # type: ignore[no-any-return]


@pytest.fixture
def ordinary(tmp_path: Path) -> Path:
    stores = [
        shown.ordinary(tmp_path / "before.jsonl", "sft"),
        shown.ordinary(tmp_path / "after.jsonl", "trained", flipped=True),
        shown.branched(tmp_path / "pairs.jsonl"),
    ]
    pieces = tokenizer_pieces(shown.tokenizer(tmp_path / "t"))
    return write_page(stores, tmp_path / "out.html", title="three stores", pieces=pieces)


def test_an_episode_is_read_as_a_conversation(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary)
    assert "27 episodes" in page.inner_text("#count")
    page.locator("#rows .row").first.click()
    page.wait_for_selector(".speech.agent")
    assert page.locator(".speech").count() == 5
    assert page.inner_text(".code .keyword >> nth=0") == "for"
    folded = page.locator("details:has(pre)", has_text="line 0").last
    assert folded.get_attribute("open") is None
    assert "30 line" in folded.locator("summary").inner_text() or "32 lines" in folded.locator("summary").inner_text()
    assert "reward 1 (in all 1)" in page.inner_text(".speech.agent >> nth=1")
    accessible(page)
    keep(page, "viewer-episode")


def test_filters_and_order(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary)
    page.select_option("[name=valid]", "invalid")
    assert page.inner_text("#count") == "2 episodes of 27"
    page.select_option("[name=valid]", "")
    page.check("[name=tools]")
    assert page.inner_text("#count") == "6 episodes of 27"
    page.uncheck("[name=tools]")
    page.fill("[name=min]", "1")
    right = "12 episodes of 27"
    counted(page, right)
    page.click("#column-turns button")
    assert page.get_attribute("#column-turns", "aria-sort") == "ascending"
    page.click("#column-turns button")
    assert page.locator("#rows .row .turns").first.inner_text() == "3"
    assert "sort=-turns" in page.url
    again = visit(page.url)
    assert again.inner_text("#count") == right
    assert numbers(again) == numbers(page)
    page.click("text=clear")
    assert page.inner_text("#count") == "27 episodes"


def test_search_reads_all_text_and_marks_it(ordinary: Path, visit: Open) -> None:
    """Text inside folded output too, whatever its case."""
    page = visit(ordinary)
    page.keyboard.press("/")
    page.keyboard.type("WATER RISES")
    counted(page, "1 episode of 27")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.wait_for_selector("mark")
    assert page.inner_text("mark") == "Water rises"


def test_keys_move_and_links_come_back(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary)
    for key in "jjjk":
        page.keyboard.press(key)
    page.wait_for_selector("h2:has-text('Episode 2')")
    page.keyboard.press("t")
    page.wait_for_selector(".tokens")
    again = visit(page.url)
    again.wait_for_selector(".tokens")
    assert "Episode 2" in again.inner_text("h2")
    page.go_back()
    page.wait_for_selector(".tokens", state="detached")
    page.keyboard.press("Escape")
    page.wait_for_selector("h2:has-text('What is here')")


def test_tokens_show_what_is_trained_on(tmp_path: Path, visit: Open) -> None:
    """Shaded by log-prob, log-ratio or weight; the numbers where one points; the store's text stays text."""
    pieces = tokenizer_pieces(shown.tokenizer(tmp_path / "t"))
    page = visit(
        write_page([shown.weighed(tmp_path / "s.jsonl")], tmp_path / "out.html", pieces=pieces), "#v=episode&e=0:1&t=1"
    )
    page.wait_for_selector(".tokens")
    page.click("button:has-text('log-ratio')")
    assert page.locator(".tokens .up2").count() == 2
    assert page.locator(".tokens .down1").count() == 1
    assert page.locator(".tokens .outside").count() == 4
    accessible(page)
    page.click("button:has-text('weight in the loss')")
    assert page.get_attribute("button:has-text('weight in the loss')", "aria-pressed") == "true"
    assert (page.locator(".tokens .up2").count(), page.locator(".tokens .up1").count()) == (6, 1)
    page.locator(".tokens .token").nth(3).hover()
    assert page.inner_text(".token-status").endswith("written outside the agent; weight in the loss -0.01: pushed up")
    page.locator(".tokens .token").nth(5).hover()
    assert page.inner_text(".token-status").endswith("; log-ratio -0.2500 nats; weight in the loss -0.05: pushed up")
    assert page.locator(".tokens .pointed").count() == 1
    accessible(page)
    keep(page, "viewer-weights")
    page.keyboard.press("j")
    page.wait_for_selector("h2:has-text('Episode 2')")
    page.wait_for_selector(".tokens .down2")
    assert (page.locator(".tokens .down2").count(), page.locator(".tokens .down1").count()) == (4, 1)
    page.locator(".tokens .token").nth(4).hover()
    assert page.inner_text(".token-status").endswith("; no log-ratio; weight in the loss 0: nothing is learned from it")
    assert page.evaluate("window.stolen") is None


def test_tokens_show_whose_they_are_and_how_probable(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=episode&e=0:1&t=1")
    page.wait_for_selector(".tokens")
    assert page.locator(".tokens .token").count() == 20
    assert page.locator(".tokens .outside").count() == 8
    assert page.locator(".tokens .special").first.inner_text() == "<|end|>"
    page.focus(".tokens")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    status = page.inner_text(".token-status")
    assert status.startswith("token 5 of 20, turn 1")
    assert "log-prob -" in status
    page.keyboard.press("ArrowLeft")
    assert "written outside the agent" in page.inner_text(".token-status")
    accessible(page)
    keep(page, "viewer-tokens")


def test_a_cut_episode_says_where(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=episode&e=2:1&t=1")
    page.wait_for_selector(".cut")
    assert "after token 30" in page.inner_text(".cut")


def test_a_group_side_by_side_with_its_preferences(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=group&e=0:1")
    page.wait_for_selector(".matrix")
    assert page.locator(".branch").count() == 4
    assert "by reward: by_return" in page.inner_text(".matrix caption")
    cells = page.locator(".matrix tbody tr").first.locator("td").all_inner_texts()
    assert cells == ["", "1", "0.5", "not asked"]
    accessible(page)
    keep(page, "viewer-group")
    page.click(".matrix tbody tr:nth-child(1) td:nth-child(3) a")
    page.wait_for_selector("del")
    assert "99." in page.locator("ins").all_inner_texts() + page.locator("del").all_inner_texts()
    keep(page, "viewer-difference")
    accessible(page)


def test_a_branch_shows_what_is_shared_once(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=group&e=2:1")
    page.wait_for_selector(".shared")
    assert page.inner_text(".shared .note").startswith("3 episodes share 2 turns")
    assert page.locator("text=The moon pulls.").count() == 1
    assert page.locator(".branch").count() == 3
    keep(page, "viewer-branches")


def test_policies_from_the_same_start_meet(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=start&e=0:5")
    page.wait_for_selector(".branch")
    assert "8 episodes from the identical start" in page.inner_text("#detail")
    heads = page.locator(".leaf h3").all_inner_texts()
    assert {head.split()[0] for head in heads} == {"sft", "trained"}


def test_copies_are_what_they_say(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=episode&e=0:1")
    page.wait_for_selector(".speech")
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', "
        "{configurable: true, value: {writeText: async (t) => { window.copied = t; }}})"
    )
    page.click("text=copy as messages")
    messages = json.loads(copied(page, "copy as messages"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    ast.parse(copied(page, "copy as test"))


def test_a_copied_test_of_hostile_text_holds_it_and_nothing_else(tmp_path: Path, visit: Open) -> None:
    """The source is ASCII, so no control or direction mark can make it read otherwise than it runs."""
    path = write_page([shown.hostile(tmp_path / "s.jsonl")], tmp_path / "out.html")
    for number, said in [(1, shown.MARKUP), (2, shown.HIDDEN), (5, "\u2028'\"\\`${window.stolen=1}")]:
        page = visit(path, f"#v=episode&e=0:{number}")
        page.wait_for_selector(".speech")
        page.evaluate(
            "Object.defineProperty(navigator, 'clipboard', "
            "{configurable: true, value: {writeText: async (t) => { window.copied = t; }}})"
        )
        page.click("text=copy as test")
        source = copied(page, "copy as test")
        assert source.isascii()
        constants = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        assert said in constants


def test_a_copied_test_plays_an_episode_again(tmp_path: Path, visit: Open) -> None:
    from polyturn.agents import RandomAgent, collect

    with Store(tmp_path / "s.jsonl") as store:
        collect(RandomAgent(), "polyturn/Guess-v0", groups=3, group_size=1, seed=0, store=store, progress=False)
    path = write_page([tmp_path / "s.jsonl"], tmp_path / "out.html")
    for number in (1, 2, 3):
        page = visit(path, f"#v=episode&e=0:{number}")
        page.wait_for_selector(".speech")
        page.evaluate(
            "Object.defineProperty(navigator, 'clipboard', "
            "{configurable: true, value: {writeText: async (t) => { window.copied = t; }}})"
        )
        page.click("text=copy as test")
        names: dict[str, Any] = {}
        exec(copied(page, "copy as test"), names)
        names["test_the_recorded_episode_plays_again"]()


@pytest.mark.parametrize("form", ["page", "folder"])
def test_hostile_text_is_shown_and_runs_nothing(form: Any, tmp_path: Path, visit: Open) -> None:
    path = write_page([shown.hostile(tmp_path / "s.jsonl")], tmp_path / "out.html", title=shown.MARKUP, form=form)
    for view in ("episode", "group", "start"):
        for number in range(1, 7):
            page = visit(path, f"#v={view}&e=0:{number}&t={'1' if view == 'episode' else ''}&q={'%3C'}")
            page.wait_for_selector("[data-shown]")
            page.wait_for_selector(".speech")
            assert page.evaluate("window.stolen") is None
            assert page.locator("#detail img, #detail script, #detail style").count() == 0
            page.close()
    page = visit(path, "#v=episode&e=0:1")
    page.wait_for_selector(".speech")
    assert shown.MARKUP in page.inner_text(".speech.agent >> nth=0")
    accessible(page)


def test_what_cannot_be_seen_is_made_visible(tmp_path: Path, visit: Open) -> None:
    path = write_page([shown.hostile(tmp_path / "s.jsonl")], tmp_path / "out.html")
    page = visit(path, "#v=episode&e=0:2")
    page.wait_for_selector(".speech .odd")
    said = page.inner_text(".speech.agent >> nth=0")
    for code in ("202E", "001B", "200B", "0000", "D83D"):
        assert f"U+{code}" in said
    assert "right-to-left override" in page.locator(".speech .odd").first.get_attribute("title")
    keep(page, "viewer-hidden-characters")
    page = visit(path, "#v=episode&e=0:3")
    page.wait_for_selector(".speech .alike")
    assert page.locator(".speech.agent >> nth=0").locator(".alike").all_inner_texts() == ["\u0430", "\u0430"]
    page = visit(path, "#v=episode&e=0:6")
    page.wait_for_selector(".speech")
    marked = page.locator(".speech.agent >> nth=0").locator(".alike").all_inner_texts()
    assert "".join(marked) == "\uff28\uff25\uff2c\uff2c\uff2f"  # the Russian word beside it is no disguise


def test_a_runs_curves_lead_to_its_episodes(tmp_path: Path, visit: Open) -> None:
    run = shown.run_folder(tmp_path / "run")
    path = write_page(
        [run], tmp_path / "out.html", title="a run", pieces=tokenizer_pieces(run / "iteration-0" / "policy")
    )
    page = visit(path, "#v=runs")
    page.wait_for_selector(".curve")
    accessible(page)
    keep(page, "viewer-run")
    page.locator(".curve", has_text="mean_return").locator("button", has_text="2").click()
    counted(page, "12 episodes of 24")
    assert set(page.locator("#rows .row .policy").all_inner_texts()) == {"iteration-2"}


def test_results_are_shown_with_their_pictures(tmp_path: Path, visit: Open) -> None:
    path = write_page([shown.results_folder(tmp_path / "r")], tmp_path / "out.html")
    page = visit(path)
    page.wait_for_selector("img")
    assert page.evaluate("document.querySelector('#detail img').naturalWidth") > 0
    assert page.evaluate("window.stolen") is None
    assert "polyturn bench tool_math" in page.inner_text("#detail")
    accessible(page)


def test_a_comparison_leads_to_the_episodes_that_differ(tmp_path: Path, visit: Open) -> None:
    from polyturn import cli

    before = shown.ordinary(tmp_path / "before.jsonl", "sft")
    after = shown.ordinary(tmp_path / "after.jsonl", "trained", flipped=True)
    assert cli.main(["compare", str(before), str(after), "--page", str(tmp_path / "compare.html")]) == 0
    page = visit(tmp_path / "compare.html")
    page.wait_for_selector("#detail table")
    accessible(page)
    keep(page, "viewer-comparison")
    page.click("#detail table a >> nth=0")
    page.wait_for_selector(".branch")
    assert "episodes from the identical start" in page.inner_text("#detail")


def test_dark_mode_is_readable(ordinary: Path, visit: Open) -> None:
    page = visit(ordinary, "#v=episode&e=0:1&t=1")
    page.wait_for_selector(".tokens")
    page.click("text=dark or light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    accessible(page)
    keep(page, "viewer-dark")


@pytest.mark.parametrize("form", ["page", "folder"])
def test_ten_thousand_episodes_stay_smooth(form: Any, tmp_path: Path, visit: Open) -> None:
    """Rows in view only, and filters, sorting and opening within a blink."""
    store = tmp_path / "s.jsonl"
    with Store(store, fsync="never") as writer:
        for number in range(10_000):
            writer.append(shown.episode(number // 4, number % 4, f"The answer is {number}.", float(number % 2)))
    page = visit(write_page([store], tmp_path / "out.html", form=form))
    assert page.inner_text("#count") == "10,000 episodes"
    assert page.locator("#rows .row").count() < 80
    page.evaluate("document.querySelector('#scroller').scrollTop = 1e9")
    page.wait_for_selector("#rows .number a:text-is('10000')")
    took = page.evaluate(
        """() => { const begun = performance.now(); document.querySelector('#column-reward button').click();
        return performance.now() - begun; }"""
    )
    assert took < 500
    page.fill("[name=q]", "The answer is 7777.")
    counted(page, "1 episode of 10,000", timeout=60_000)
    page.locator("#rows .row").first.click()
    page.wait_for_selector(".speech")
    assert "Episode 7778" in page.inner_text("h2")


def test_a_live_run_is_followed(tmp_path: Path, visit: Open) -> None:
    store = shown.ordinary(tmp_path / "s.jsonl")
    server = ViewServer([store], title="live")
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        page = visit(server.url)
        assert page.inner_text("#count") == "12 episodes"
        with Store(store) as writer:
            writer.append(shown.episode(9, 0, "The answer is 9.", 1.0))
        counted(page, "13 episodes", timeout=20_000)
        page.locator("#rows .row").last.click()
        page.wait_for_selector("text=The answer is 9.")
        page.close()
    finally:
        server.close()
        thread.join()
