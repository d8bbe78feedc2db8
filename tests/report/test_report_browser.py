"""The page in a real browser: it works from disk, by mouse and keyboard, in light, dark, narrow and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from latentwire.report import page
from latentwire.report.gathered import Gathered
from latentwire.report.sample_data import is_right
from tests.support.chromium import chromium, emulated, requested, resized

WAIT = 10
UNNAMED = """
const all = (selector) => [...document.querySelectorAll(selector)];
const labelled = (each) => document.getElementById(each.getAttribute("aria-labelledby"));
return [
  ...all("select, input").filter((each) => !each.labels.length),
  ...all("button, a[href]").filter((each) => !each.textContent.trim()),
  ...all("[role=img], [role=region]").filter((each) => !each.getAttribute("aria-label") && !labelled(each)),
  ...all("svg:not([role=img]):not([aria-hidden=true])").filter((each) => !each.closest(".legend")),
  ...all("th:not([scope])"),
].map((each) => each.outerHTML.slice(0, 120));
"""
"""What a screen reader would meet without a name."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(studies: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("pages") / "report.html"
    page.write([studies["demo"]], out)
    return out.as_uri()


@pytest.fixture
def opened(driver: Any, address: str) -> Any:
    """The page at its beginning, as a wide light screen shows it."""
    emulated(driver)
    resized(driver, 1280)
    driver.get("about:blank")
    driver.get(address)
    return driver


def one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def every(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def until(driver: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT, poll_frequency=0.05).until(condition)


def chosen(driver: Any, id_: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(one(driver, f"#{id_}")).select_by_visible_text(text)


def count(driver: Any) -> int:
    return int(one(driver, "#count").text.split()[0].replace(",", ""))


def keys(driver: Any, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*pressed).perform()


def test_it_opens_without_an_error_and_asks_for_nothing(driver: Any, address: str) -> None:
    requested(driver)
    driver.get_log("browser")
    driver.get(address)
    assert [url for url in requested(driver) if not url.startswith(("file:", "data:"))] == []
    assert driver.get_log("browser") == []
    assert driver.execute_script("return window.hacked") is None
    titles = driver.execute_script(
        "return [...document.querySelectorAll('figcaption')].map((each) => each.firstChild.data)"
    )
    assert {"macro", "retention, macro", "gap closed, later", "Gradient norm"} <= set(titles)
    assert len(every(driver, ".panel > svg, .panel > figure svg")) >= len(titles)


def test_filters_show_the_examples_that_the_outcomes_say(opened: Any, studies: dict[str, Path]) -> None:
    readings = Gathered.read(studies["demo"], "s1").readings
    right = {
        name: {(outcome.task, outcome.id): is_right(outcome) for outcome in readings[name].outcomes}
        for name in ("ablated/text", "baseline/text")
    }
    broke = [
        key for key in right["ablated/text"] if right["baseline/text"][key] and not right["ablated/text"][key]
    ]
    assert count(opened) == 160
    chosen(opened, "pick-show", "A wrong, B right")
    assert count(opened) == len(broke)
    chosen(opened, "pick-task", "choices (family)")
    assert count(opened) == sum(task.startswith("choices/") for task, _ in broke)
    chosen(opened, "pick-task", "all tasks")
    shown = [each.text.split(None, 1) for each in every(opened, "#kinds .kind")]
    kinds = {kind: int(times) for times, kind in shown}
    assert sum(kinds.values()) == len(broke)
    next(each for each in every(opened, "#kinds .kind") if "wrong person" in each.text).click()
    assert count(opened) == kinds["wrong person"]
    assert "error=wrong+person" in opened.current_url
    chosen(opened, "pick-show", "any readings disagree")
    assert 0 < count(opened) < 160


def test_a_link_in_the_text_leads_to_its_examples(opened: Any) -> None:
    link = one(opened, "#s1-evidence li .go a")
    told = int(link.text.split()[0])
    link.click()
    until(opened, lambda driver: count(driver) == told)
    assert one(opened, "#pick-show").get_attribute("value") == "broke"
    assert "Right answer" in one(opened, "#detail").text
    assert one(opened, "#samples").rect["y"] - opened.execute_script("return scrollY") < 200


def test_an_address_leads_to_one_example(opened: Any, address: str) -> None:
    opened.get("about:blank")
    opened.get(f"{address}#samples?a=after/latents&b=baseline/text&show=all&id=later/0007")
    assert "later/0007" in one(opened, ".head").text
    assert one(opened, "tr.chosen").text.startswith("Where does Person7 live?")


def test_search_looks_into_questions_passages_and_answers(opened: Any) -> None:
    for words, expected in (("person17 live", 4), ("VILLAGE21", 4), ("later/0003", 1), ("nowhere", 0)):
        field = one(opened, "#search")
        field.clear()
        field.send_keys(words)
        until(opened, lambda driver, wanted=expected: count(driver) == wanted)
    assert "No example fits" in one(opened, "#detail").text


def test_an_example_shows_every_reading_its_scores_and_what_was_read(opened: Any) -> None:
    one(opened, ".pick[data-at='1']").click()
    detail = one(opened, "#detail")
    names = [row.text.split("\n")[0] for row in every(opened, ".arms tbody th")]
    assert names[:2] == ["ablated/text", "baseline/text"]
    assert set(names) == {
        f"{stage}/{arm}"
        for stage, arms in {
            "baseline": ("text", "none"),
            "ablated": ("text", "none"),
            "after": ("text", "none", "latents"),
        }.items()
        for arm in arms
    }
    assert {"exact match", "nll", "tokens"} <= {each.text for each in every(opened, ".arms thead th")}
    assert [each.text for each in every(opened, ".passage mark")] == ["Town1"]
    assert "<i>Not markup</i>" in detail.text
    first, second = every(opened, ".got[open] .read")
    assert "see each other in both directions" in first.text
    assert "each sees those before it" in second.text
    assert first.find_elements("css selector", ".matrix .both")
    assert not second.find_elements("css selector", ".matrix .both")
    assert "Question: Where does Person1 live?" in first.text
    latents = next(each for each in every(opened, ".got") if "after/latents" in each.text)
    latents.find_element("css selector", "summary").click()
    until(opened, lambda driver: latents.find_elements("css selector", ".latents i"))
    assert len(latents.find_elements("css selector", ".latents i")) == 18
    assert "18 latents" in latents.text


def test_the_keyboard_reaches_and_moves_through_the_samples(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    keys(opened, Keys.TAB)
    assert opened.switch_to.active_element.text == "Skip to the content"
    outline = opened.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    keys(opened, Keys.ENTER, "/")
    assert opened.switch_to.active_element.get_attribute("id") == "search"
    keys(opened, "person5 live")
    until(opened, lambda driver: count(driver) == 4)
    keys(opened, *[Keys.TAB] * 5)
    reached = []
    for _ in range(8):
        if "pick" in (opened.switch_to.active_element.get_attribute("class") or ""):
            break
        reached.append(opened.switch_to.active_element.tag_name)
        keys(opened, Keys.TAB)
    button = opened.switch_to.active_element
    assert "pick" in button.get_attribute("class"), reached
    keys(opened, Keys.ENTER)
    before = one(opened, ".head p").text
    keys(opened, Keys.ARROW_DOWN)
    assert one(opened, ".head p").text != before
    keys(opened, "k")
    assert one(opened, ".head p").text == before


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(opened: Any, scheme: str) -> None:
    emulated(opened, scheme=scheme)
    page_colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(page_colour) < 0.1) == (scheme == "dark")
    for selector in (
        "p.lead",
        ".note",
        ".go a",
        "td",
        "thead th",
        ".verdict.no",
        ".verdict.yes",
        ".prompt",
        ".wire",
    ):
        colour = opened.execute_script(f"return getComputedStyle(document.querySelector({selector!r})).color")
        light, dark = sorted((luminance(colour), luminance(page_colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colour, page_colour)


def test_nothing_is_wider_than_a_narrow_screen(opened: Any) -> None:
    resized(opened, 400)
    opened.refresh()
    until(opened, lambda driver: every(driver, ".panel svg"))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 400
    assert one(opened, ".stagelist").rect["height"] > 100
    one(opened, ".pick[data-at='2']").click()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 400


def test_paper_gets_the_numbers_and_the_chosen_example_without_controls(opened: Any) -> None:
    emulated(opened, media="print")
    for selector in (".contents", ".filters", ".list", ".skip"):
        assert not one(opened, selector).is_displayed(), selector
    for selector in ("#s1-scores table", "#s1-comparisons table", "#detail", ".findings"):
        assert one(opened, selector).is_displayed(), selector
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


def test_a_screen_reader_finds_landmarks_names_and_headers(opened: Any) -> None:
    unnamed = opened.execute_script(UNNAMED)
    assert unnamed == []
    assert [len(every(opened, tag)) for tag in ("main", "nav[aria-label]", "header", "footer", "h1")] == [1] * 5
    levels = [int(each.tag_name[1]) for each in every(opened, "h1, h2, h3, h4")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert one(opened, "#count").get_attribute("aria-live") == "polite"


@pytest.mark.slow
def test_several_studies_are_side_by_side(driver: Any, studies: dict[str, Path], tmp_path: Path) -> None:
    out = page.write([studies["demo"], studies["second"]], tmp_path / "both.html")
    emulated(driver)
    resized(driver, 1280)
    driver.get_log("browser")
    driver.get(out.as_uri())
    assert driver.get_log("browser") == []
    assert len(every(driver, "#across tbody tr")) == 7
    assert count(driver) == 160
    every(driver, "#s2-comparisons .go a")[0].click()
    until(driver, lambda opened: one(opened, "#pick-show").get_attribute("value") == "broke")
    assert one(driver, ".arms tbody th").text.startswith("second: ablated/text")
    assert len(every(driver, ".arms tbody tr")) == 14
