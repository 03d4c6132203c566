"""The page at `/ui` in a real browser, on a desk and on a phone; `make test-ui` brings Chromium and runs it.

Screenshots are left in build/ui, for people to look at.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.shard.engines.fake import FakeOptions

playwright_api = pytest.importorskip("playwright.async_api", reason="make test-ui brings playwright")
expect = playwright_api.expect

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).resolve().parents[4] / "build" / "ui"
SCREENS = {"desk": (1280, 800), "phone": (390, 844), "narrow": (360, 640)}
ENGINE = FakeOptions(step_time_s=0.02)
"""Slow enough that a person, or a test, is in time to press a button."""


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright_api.async_playwright() as playwright:
        path = shutil.which("chromium")
        assert path is not None, "make test-ui installs chromium"
        running = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        await running.close()


@asynccontextmanager
async def opened(browser: Any, base_url: str, screen: str, scheme: str = "light") -> AsyncIterator[Any]:
    """A page that must not log an error, unless it says that it expects one."""
    width, height = SCREENS[screen]
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=screen != "desk"
    )
    page = await context.new_page()
    page.set_default_timeout(10_000)
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text) if line.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(f"{base_url}/ui")
    yield page
    await context.close()
    # Chromium itself logs each answer that is no success.
    assert [text for text in complaints if "the server responded with a status of 400" not in text] == []


async def shoot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


async def set_number(page: Any, name: str, value: str) -> None:
    if not await page.locator("#settings").evaluate("panel => panel.open"):
        await page.locator("#settings > summary").click()
    await page.locator(f"[name={name}]").fill(value)


async def ask(page: Any, text: str) -> Any:
    await page.get_by_label("Message").fill(text)
    await page.get_by_label("Message").press("Enter")
    return page.locator(".turn.assistant").last


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["desk", "phone"])
async def test_a_conversation(deploy_rest: Callable[..., Any], browser: Any, screen: str, scheme: str) -> None:
    async with deploy_rest(engine=ENGINE) as rest, opened(browser, rest.base_url, screen, scheme) as page:
        await page.get_by_text("1/1 serving").wait_for()
        assert await page.locator("#model").input_value() == "test-model"
        await shoot(page, f"{screen}-{scheme}-empty")
        await set_number(page, "max_tokens", "50")
        if screen == "phone":
            await shoot(page, f"{screen}-{scheme}-settings")
            await page.locator("#settings > summary").click()

        answer = await ask(page, "Why is the sky blue?")
        await expect(answer.locator(".text")).to_have_text(re.compile(".{5}", re.DOTALL))
        assert await answer.get_attribute("aria-busy") == "true"  # text before the end: it is streamed
        await answer.locator(".measured").wait_for()
        measured = await answer.locator(".measured").inner_text()
        for part in ("cut at a limit", "50 generated", "first token", "tokens/s"):
            assert part in measured

        await set_number(page, "max_tokens", "2000")
        if screen == "phone":
            await page.locator("#settings > summary").click()
        answer = await ask(page, "And at night?")
        await page.get_by_text("1 running").first.wait_for()
        await expect(page.locator("#live-rate")).to_have_text(re.compile(r"[1-9]\d*\.\d"))
        if screen == "phone":
            await page.locator("#live > summary").click()
        await shoot(page, f"{screen}-{scheme}-running")
        if screen == "phone":
            await page.locator("#live > summary").click()
        await page.get_by_role("button", name="Stop").click()
        assert (await answer.locator(".measured").inner_text()).startswith("stopped")
        await rest.idle()  # stopping stops the work, too

        await set_number(page, "temperature", "7")
        answer = await ask(page, "Is it warm?")
        error = await answer.locator(".error").inner_text()
        assert "temperature" in error
        assert "HTTP 400" in error
        assert await page.locator("[name=temperature]").get_attribute("aria-invalid") == "true"
        assert await page.get_by_label("Message").input_value() == "Is it warm?"
        await shoot(page, f"{screen}-{scheme}-refused")

        await page.get_by_role("button", name="Clear").click()
        assert await page.locator(".turn").count() == 0


async def test_the_whole_conversation_and_the_settings_are_sent(deploy_rest: Callable[..., Any], browser: Any) -> None:
    async with deploy_rest() as rest, opened(browser, rest.base_url, "desk") as page:
        await page.locator("[name=system]").fill("Be brief.")
        await page.locator("[name=stop]").fill("\\n\\n\nEND")
        for name, value in {"max_tokens": "3", "top_k": "5", "top_p": "0.9", "seed": "11"}.items():
            await set_number(page, name, value)
        await page.get_by_label("API key").fill("secret")
        await page.get_by_label("API key").press("Tab")
        first = await ask(page, "<b>One</b>")
        await first.locator(".measured").wait_for()
        said = await first.locator(".text").text_content()
        async with page.expect_request("**/v1/chat/completions") as sent:
            await ask(page, "Two")
        request = await sent.value
        assert request.headers["authorization"] == "Bearer secret"
        assert request.post_data_json == {
            "model": "test-model",
            "max_tokens": 3,
            "top_k": 5,
            "top_p": 0.9,
            "seed": 11,
            "stop": ["\n\n", "END"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<b>One</b>"},
                {"role": "assistant", "content": said},
                {"role": "user", "content": "Two"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert await page.locator(".turn b").count() == 0  # text is never markup
        assert await page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]


async def test_a_narrow_phone_scrolls_only_down(deploy_rest: Callable[..., Any], browser: Any) -> None:
    async with deploy_rest() as rest, opened(browser, rest.base_url, "narrow") as page:
        await page.get_by_text("1/1 serving").wait_for()
        await set_number(page, "max_tokens", "40")
        await page.locator("#live > summary").click()
        await (await ask(page, "word" * 60)).locator(".measured").wait_for()
        await shoot(page, "narrow")
        overflow = "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > 360.5).length"
        assert await page.evaluate(overflow) == 0
        assert await page.get_by_role("button", name="Send").is_visible()


async def test_a_hidden_page_asks_nothing(deploy_rest: Callable[..., Any], browser: Any) -> None:
    async with deploy_rest() as rest, opened(browser, rest.base_url, "desk") as page:
        await page.get_by_text("1/1 serving").wait_for()
        streams = rest.sidecar.link._channel._calls
        assert len(streams) == 1
        hide = "is => { Object.defineProperty(document, 'hidden', { value: is, configurable: true });"
        hide += " document.dispatchEvent(new Event('visibilitychange')) }"
        for is_hidden, stream_count in ((True, 0), (False, 1)):
            await page.evaluate(hide, is_hidden)
            async with asyncio.timeout(5):
                while len(streams) != stream_count:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
