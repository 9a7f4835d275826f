"""The page in a real browser: Debian's chromium, without a window, in which every request but the page is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from support import require
from test_page import HOSTILE

from esmpi.report.page import page_of_run, page_of_runs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    require("chromium", path is not None, "apt-get install chromium; pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with hostile texts, and that of several runs."""
    folder = tmp_path_factory.mktemp("pages")
    texts = [*HOSTILE, "averylongword" * 60]
    runs = [make_run(folder / f"r{i}", f"es.sigma={1 + i // 2}", seed=i % 2) for i in range(4)]
    (folder / "one.html").write_text(page_of_run(make_run(folder / "run", texts=texts)))
    (folder / "several.html").write_text(page_of_runs(runs))
    return {"one": folder / "one.html", "several": folder / "several.html"}


class View:
    """A page in the browser, with what it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str, scripts: bool = True):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()

    def check_quiet(self) -> None:
        """Fail if the page asked for anything but itself, or complained."""
        assert [url for url in self.requests if url != self.own and not url.startswith("data:")] == []
        assert self.complaints == []


@pytest.fixture
def view(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Open a page, by its name."""
    opened: list[View] = []

    def open_page(name: str, width: int = 1400, scheme: str = "light", scripts: bool = True) -> View:
        opened.append(View(browser, pages[name], width, scheme, scripts))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


DRAWN = """() => [...document.querySelectorAll("figure")].map((figure) => {
  const plot = [...figure.querySelectorAll(".plot")].filter((one) => getComputedStyle(one).display !== "none");
  const box = plot[0].querySelector("svg").getBoundingClientRect();
  const shapes = [...plot[0].querySelectorAll("path, rect, use")].filter((shape) => {
    const own = shape.getBoundingClientRect();
    const style = getComputedStyle(shape);
    const seen = style.stroke !== "none" || style.fill !== "none";
    return seen && own.width + own.height > 0 && own.left < box.right && own.right > box.left;
  });
  const sizes = [...plot[0].querySelectorAll("text")].map((text) => text.getBoundingClientRect().height);
  return {name: figure.id, plots: plot.length, width: box.width, shapes: shapes.length, text: Math.min(...sizes)};
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize(("name", "num_figures"), [("one", 16), ("several", 8)])
def test_every_figure_is_drawn_and_fits(view: Any, name: str, num_figures: int, width: int, scheme: str) -> None:
    seen = view(name, width, scheme)
    figures = seen.page.evaluate(DRAWN)
    assert len(figures) == num_figures
    for figure in figures:
        assert figure["plots"] == 1
        assert figure["shapes"] >= 8, figure
        assert 250 < figure["width"] < width, figure
        assert figure["text"] >= 9, figure  # pixels that a line of text is high
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    if name == "one":  # what each rank did when is on paper, whose colours are the same on dark ground
        paper = seen.page.evaluate("getComputedStyle(document.querySelector('.paper text')).fill")
        assert paper == "rgb(90, 100, 114)"
        assert seen.page.locator("#profile path:visible").count() >= 8
    ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(244, 246, 249)", "dark": "rgb(13, 17, 23)"}[scheme]
    label = seen.page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill")
    assert label == {"light": "rgb(90, 100, 114)", "dark": "rgb(163, 174, 187)"}[scheme]
    seen.check_quiet()


def test_hostile_texts_are_inert(view: Any) -> None:
    seen = view("one")
    seen.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.acted") is None
    assert (
        seen.page.evaluate(
            "document.querySelectorAll('img, iframe, form, main a, :is(.sample, .member) :is(svg, style)').length"
        )
        == 0
    )
    shown = seen.page.inner_text("#samples")
    assert "<script>window.acted = 1</script>" in shown
    assert '<img src=x onerror="window.acted = 1">' in shown
    assert "{{ 7 * 7 }}" in shown
    assert seen.page.inner_text("h1") == "made"
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1400
    seen.check_quiet()


def test_the_policy_stops_what_would_act_if_it_were_in_the_page(view: Any) -> None:
    seen = view("one")
    seen.page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.acted = 1'>"
            + "<b style='position:fixed' id=styled></b>");
          const script = document.createElement("script");
          script.textContent = "window.acted = 2";
          document.body.append(script);
        }"""
    )
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.acted") is None
    assert seen.page.evaluate("getComputedStyle(document.getElementById('styled')).position") == "static"
    assert len(seen.complaints) >= 3
    with pytest.raises(Exception, match="Failed to fetch"):
        seen.page.evaluate("fetch('http://127.0.0.1:9/')")
    assert "Content Security Policy" in seen.complaints[-1]


def test_values_are_shown_under_the_pointer(view: Any) -> None:
    seen = view("one")
    box = seen.page.locator("#speed .plot svg").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    seen.page.locator("#speed").scroll_into_view_if_needed()
    box = seen.page.locator("#speed .plot svg").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert seen.page.locator("#tip").is_visible()
    lines = [text for text in seen.page.inner_text("#tip").splitlines() if text]
    generation = int(lines[0].removeprefix("generation "))
    assert 4 <= generation <= 7
    data = seen.page.evaluate("JSON.parse(document.getElementById('values-speed').textContent)")
    assert lines[1] == f"all ranks together {data['curves'][0]['y'][generation]:.0f}"
    seen.page.mouse.move(2, 2)
    assert not seen.page.locator("#tip").is_visible()
    seen.check_quiet()


def test_completions_are_found_by_words_and_by_kind(view: Any) -> None:
    seen = view("one")
    count = lambda: seen.page.locator(".sample:visible").count()  # noqa: E731
    assert count() == 20
    seen.page.fill("#search", "What is 17?")
    assert count() == 1
    assert "what is 17?" in seen.page.inner_text(".sample:visible")
    seen.page.fill("#search", "")
    seen.page.uncheck("input[value='became right']")
    assert count() == 8
    assert seen.page.inner_text("#found") == "8 of 20 shown"
    assert seen.page.locator(".sample mark").count() > 20


def test_a_generation_is_chosen_of_which_members_completions_are_seen(view: Any) -> None:
    seen = view("one", width=380)
    shown = lambda: seen.page.locator(".generation:visible").get_attribute("data-generation")  # noqa: E731
    assert shown() == "11"
    seen.page.focus("#generation")
    for _ in range(3):
        seen.page.keyboard.press("ArrowLeft")
    assert (shown(), seen.page.inner_text("#chosen")) == ("8", "8")
    texts = seen.page.locator(".member:visible").all_inner_texts()
    assert len(texts) == 6
    assert all("at generation 8 gives" in text and "format 0.25" in text for text in texts)
    assert seen.page.inner_text(".generation:visible .who >> nth=0") == "best member 0, fitness 0.9"
    assert seen.page.evaluate("window.acted") is None
    seen.check_quiet()


def test_the_axis_of_all_figures_is_chosen(view: Any) -> None:
    seen = view("several")
    for axis, label in (("tokens", "tokens generated in training"), ("seconds", "seconds of training")):
        seen.page.check(f"#axis-{axis}")
        shown = seen.page.locator(".plot:visible")
        assert shown.count() == 8
        assert all(label in shown.nth(i).text_content() for i in range(8))


def test_a_page_is_printed_light_and_whole_and_needs_no_script(view: Any) -> None:
    seen = view("one", scheme="dark", scripts=False)
    assert not seen.page.locator(".filter").is_visible()
    assert seen.page.locator(".generation > summary:visible").count() == 12, "each can be opened"
    seen.page.emulate_media(media="print")
    assert len(seen.page.pdf(format="A4")) > 50_000
    seen.check_quiet()


def test_the_switch_changes_the_colours(view: Any) -> None:
    seen = view("one", scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    seen.page.click("#theme")
    assert seen.page.evaluate(ground) == "rgb(244, 246, 249)"
    seen.page.click("#theme")
    assert seen.page.evaluate(ground) == "rgb(13, 17, 23)"
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert seen.page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == "rgb(90, 100, 114)"
