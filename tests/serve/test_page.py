"""The page in a real Chromium, against a real server with a tiny model."""

import shutil
import threading
import time

import pytest

from minionerec.config import ServeConfig
from minionerec.serve import server
from minionerec.serve.app import create_app

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is on this machine")
READY = "#results[aria-busy=false] #list > li:not(.skeleton)"


@pytest.fixture(scope="module")
def address(make):
    """A server of a model with a title that is markup."""
    recommender = make(num_beams=20)
    recommender.items.titles[3] = "<img src=x onerror=alert(1)> & Co"
    recommender.items.name("in_stock", [f"i{item}" for item in range(6)])
    settings = ServeConfig(port=0)
    app, bound = create_app(recommender, settings), server.bind(settings)
    running = server.Server(server.configure(app, settings))
    thread = threading.Thread(target=lambda: running.run(sockets=[bound]))
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    running.handle_exit(0, None)
    thread.join(10)


def expect(locator):
    from playwright import sync_api  # not above: where there is no browser, its import would take a second in vain

    return sync_api.expect(locator)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """The page when its first list is there. At the end: no error in the console, no request elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    complaints, requests = [], []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.expected = []
    page.goto(address)
    page.wait_for_selector(READY)
    yield page
    context.close()
    assert [text for text in complaints if not any(words in text for words in page.expected)] == []
    assert all(url.startswith((address, "data:")) for url in requests)


def titles(page, where):
    return [text.split("\n")[0] for text in page.locator(f"{where} .title").all_inner_texts()]


def test_a_history_is_picked_reordered_and_shortened_by_keyboard(page):
    assert "most popular" in page.inner_text("#note") and page.is_visible("#blank")
    for query in ("lamp 1", "lamp 2"):
        page.focus("#query")
        page.keyboard.type(query)
        expect(page.locator("#options li >> nth=0")).to_contain_text(query.split()[1])
        assert page.get_attribute("#query", "aria-expanded") == "true"
        page.keyboard.press("ArrowDown")
        assert page.get_attribute("#query", "aria-activedescendant") == "option-0"
        page.keyboard.press("Enter")
    first, second = titles(page, "#history")
    assert "1" in first and "2" in second and page.is_hidden("#blank")
    page.focus("#history li:nth-child(2) .up")
    page.keyboard.press("Enter")
    assert titles(page, "#history") == [second, first]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Earlier: {second}"
    page.keyboard.press("Alt+ArrowDown")
    assert titles(page, "#history") == [first, second]
    page.keyboard.press("Delete")
    assert titles(page, "#history") == [first]
    assert page.evaluate("document.activeElement.className") == "icon remove"


def test_a_user_of_the_test_split_gets_a_list_filters_act_and_the_tree_opens(page):
    page.click("#example")
    page.wait_for_selector(f"{READY} .sid")
    expect(page.locator("#badge")).to_have_text("proven exact")
    assert "This user chose next" in page.inner_text("#note")
    shown = titles(page, "#list")
    assert len(shown) == 10 and "%" in page.inner_text("#list .probability >> nth=0")
    page.click("#list .icon >> nth=0")
    expect(page.locator("#list")).not_to_contain_text(shown[0])
    assert f"without {shown[0]}" in page.inner_text("#chips")
    page.click("#chips >> text=in_stock")
    expect(page.locator("#note")).to_contain_text("The list is short")
    assert len(titles(page, "#list")) in (5, 6)
    page.click("#open")
    page.wait_for_selector("#tree details[open]")
    assert page.get_attribute("#open", "aria-expanded") == "true" and "in the list: 1" in page.inner_text("#tree")
    page.focus("#tree details:not([open]) summary >> nth=0")
    closed = page.locator("#tree details[open]").count()
    page.keyboard.press("Enter")
    assert page.locator("#tree details[open]").count() == closed + 1


def test_titles_are_never_markup(page):
    page.fill("#query", "onerror")
    page.wait_for_selector("#options li")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li")
    assert "<img src=x" in page.inner_text("#history") and page.locator("img").count() == 0


def test_an_error_a_slow_answer_and_a_server_that_is_gone_are_shown(page):
    page.fill("#k", "100000")
    page.expected = ["422", "net::ERR_FAILED"]
    page.keyboard.press("Tab")
    page.wait_for_selector("#error:not([hidden])")
    assert "1 to 500, found 100000" in page.inner_text("#error") and page.locator("#list li").count() == 0
    page.route("**/v1/recommend", lambda route: route.abort())
    page.fill("#k", "5")
    page.keyboard.press("Tab")
    expect(page.locator("#error")).to_contain_text("cannot be reached")
    page.unroute("**/v1/recommend")
    held = []
    page.route("**/v1/recommend", lambda route: held.append(route))
    page.click("#error button")
    page.wait_for_selector("#slow:not([hidden])")
    held[0].continue_()
    page.wait_for_selector(READY)
    assert page.is_hidden("#slow") and page.is_hidden("#error") and len(titles(page, "#list")) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_controls_have_names(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    page.click("#example")
    page.wait_for_selector(f"{READY} .sid")
    page.click("#open")
    page.wait_for_selector("#tree details")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    nameless = """[...document.querySelectorAll("button, input, select")].filter(control => control.checkVisibility()
        && !(control.getAttribute("aria-label") || control.innerText || (control.labels && control.labels[0]))).length"""
    assert page.evaluate(nameless) == 0
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert bright == {"light": "rgb(246, 247, 250)", "dark": "rgb(16, 20, 29)"}[scheme]
