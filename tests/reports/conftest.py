"""A browser for pages, where the machine has one."""

import shutil

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


CONTRAST = """(chosen) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 10 ? v / 3295 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(linear)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  return [...document.querySelectorAll(chosen)].map(element => {
    let under = element, ground;
    do {
      ground = parse(getComputedStyle(under).backgroundColor);
      under = under.parentElement;
    } while (ground[3] === 0);
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground)].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  });
}"""


@pytest.fixture(scope="module")  # not longer: while it is open, no asyncio.run is possible in this process
def browser():
    """Headless Chromium, driven by Playwright; the test is skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing (pip install playwright)")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)})")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """show(path, **options of Browser.new_context): the file as a Playwright page.

    The test fails on anything in the console, on an uncaught error, and on any request but the file itself.
    """
    contexts, wrong = [], []

    def show(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        address = path.resolve().as_uri()
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.split("#")[0] == address or request.url.startswith("data:")
                else wrong.append(f"request: {request.url}")
            ),
        )
        page.goto(address)
        return page

    yield show
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def contrast():
    """(page, CSS selector) -> the contrast of text and ground of each element."""
    return lambda page, chosen: page.evaluate(CONTRAST, chosen)
