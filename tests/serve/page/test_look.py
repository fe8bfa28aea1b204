"""How it looks and who can use it: Markdown, themes, small screens, the keyboard, screen readers, the API key."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from ...runner.tiny_gguf import write_tiny
from .conftest import Server
from .screen import Screen

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MARKDOWN = """# Title

Some **bold**, a [link](https://example.com/a_b), `code`, $x^2$ and \\(y\\), but $5 and $6.

```python
def f(x):
    return x + 1
```

$$
\\frac{a}{b}
$$

| a | b |
|---|--:|
| 1 | 2 |

1. one
2. two
"""


def axe() -> str:
    """Return the source of axe-core."""
    spec = find_spec("axe_playwright_python")
    assert spec and spec.origin
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def serious(screen: Screen, *rules: str) -> list[str]:
    """Return what axe-core finds that is serious or worse, by some of its rules or all."""
    screen.page.evaluate(axe())
    found = screen.page.evaluate("rules => axe.run(rules.length ? { runOnly: rules } : {})", list(rules))
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0].get('failureSummary')}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_markdown_is_rendered(screen: Screen) -> None:
    screen.bring([("user", "show"), ("assistant", MARKDOWN)])
    prose = screen.find("article.answer .said")
    expect(prose.locator("h1")).to_have_text("Title")
    expect(prose.locator("strong")).to_have_text("bold")
    expect(prose.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(prose.locator(".katex")).to_have_count(3)
    expect(prose.locator(".tex-block .katex-display")).to_have_count(1)
    expect(prose).to_contain_text("but $5 and $6.")
    expect(prose.locator("pre .hljs-keyword").first).to_have_text("def")
    expect(prose.locator("td").nth(1)).to_have_css("text-align", "right")
    expect(prose.locator("ol > li")).to_have_count(2)


def test_code_is_copied(browser: "Browser", server: Server) -> None:
    with Screen.opened(browser, server.url, permissions=["clipboard-read", "clipboard-write"]) as screen:
        screen.bring([("user", "show"), ("assistant", MARKDOWN)])
        screen.button("Copy the python code").click()
        expect(screen.find(".copy")).to_have_text("Copied")
        assert screen.page.evaluate("() => navigator.clipboard.readText()") == "def f(x):\n    return x + 1"


def test_axe_finds_nothing_serious(screen: Screen) -> None:
    def look() -> None:
        assert serious(screen) == []
        screen.page.evaluate("document.documentElement.dataset.theme = 'dark'")
        assert serious(screen, "color-contrast") == []
        screen.page.evaluate("document.documentElement.dataset.theme = 'light'")

    look()
    screen.limit(12)
    screen.page.get_by_label("Who answers").select_option("1")
    screen.ask("hello")
    screen.bring([("user", "show"), ("assistant", MARKDOWN)])
    screen.page.wait_for_selector(".katex")
    look()
    screen.button("hello").click()
    screen.find("article.answer .shares").first.click()
    screen.find("article.answer .word").first.click()
    screen.button("Settings of this conversation").click()
    look()
    screen.page.keyboard.press("Escape")
    screen.button("Keyboard shortcuts").click()
    look()


def test_the_theme_follows_the_system_until_one_is_chosen(browser: "Browser", server: Server) -> None:
    with Screen.opened(browser, server.url, color_scheme="dark") as screen:
        root = screen.find("html")
        expect(root).to_have_attribute("data-theme", "dark")
        screen.page.emulate_media(color_scheme="light")
        expect(root).to_have_attribute("data-theme", "light")
        screen.button("Dark theme").click()
        screen.page.reload()
        expect(root).to_have_attribute("data-theme", "dark")


def test_a_phone_shows_one_thing_at_a_time(browser: "Browser", server: Server) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with Screen.opened(browser, server.url, **phone) as screen:
        width = "() => document.documentElement.scrollWidth"
        expect(screen.find("#sidebar")).to_be_hidden()
        screen.limit(20)
        screen.find("#message").fill("hello")
        screen.button("Send").click()
        screen.page.wait_for_selector("article.answer")
        screen.wait()
        assert screen.page.evaluate(width) == 360
        screen.button("Conversations").click()
        screen.bring([("user", "show"), ("assistant", MARKDOWN + "`" + "long" * 100 + "`")])
        expect(screen.find("#sidebar")).to_be_hidden()
        assert screen.page.evaluate(width) == 360
        assert serious(screen) == []


def test_shortcuts_are_listed_and_work(screen: Screen) -> None:
    screen.page.evaluate("document.activeElement.blur()")
    screen.page.keyboard.press("?")
    expect(screen.find("dialog.keys")).to_be_visible()
    screen.page.keyboard.press("Escape")
    expect(screen.find("dialog.keys")).to_have_count(0)
    screen.page.evaluate("document.activeElement.blur()")
    screen.page.keyboard.press("/")
    expect(screen.find("#message")).to_be_focused()
    screen.page.keyboard.press("Control+,")
    expect(screen.find("#settings")).to_be_visible()
    screen.page.keyboard.press("Escape")
    expect(screen.find("#settings")).to_be_hidden()
    screen.write("hello")
    screen.page.wait_for_function("() => document.querySelectorAll('.answer .word').length > 2")
    screen.page.keyboard.press("Escape")
    screen.wait()


def test_a_server_that_wants_a_key_is_given_one(browser: "Browser", talker_path: Path) -> None:
    guarded = Server(talker_path, "-c", "2048", "-t", "1", "--api-key", "open sesame")
    try:
        with Screen.opened(browser, guarded.url, ready="dialog.key") as screen:
            assert serious(screen) == []
            screen.page.get_by_label("Key", exact=True).fill("wrong")
            screen.button("Use this key").click()
            expect(screen.page.get_by_label("Key", exact=True)).to_have_value("")
            screen.page.get_by_label("Key", exact=True).fill("open sesame")
            screen.button("Use this key").click()
            expect(screen.find(".welcome .lead")).to_contain_text("4 experts")
            screen.page.reload()
            expect(screen.find(".welcome .lead")).to_contain_text("4 experts")
            assert screen.page.evaluate("() => JSON.stringify(localStorage)").find("sesame") == -1
            screen.complaints[:] = [each for each in screen.complaints if "401" not in each]
    finally:
        guarded.stop()


def test_one_of_several_models_is_chosen(browser: "Browser", talker_path: Path, tmp_path: Path) -> None:
    (tmp_path / "One.gguf").symlink_to(talker_path)
    write_tiny(tmp_path / "Two.gguf", lambda fields, _: fields.update({"general.name": "The second"}))
    several = Server("--models-dir", tmp_path, "-c", "512", "-t", "1")
    try:
        with Screen.opened(browser, several.url) as screen:
            screen.limit(4)
            screen.page.get_by_label("Model", exact=True).select_option("Two")
            expect(screen.find(".welcome h1")).to_have_text("The second")
            assert screen.ask("hello")["model"] == "Two"
            screen.page.reload()
            expect(screen.page.get_by_label("Model", exact=True)).to_have_value("Two")
    finally:
        several.stop()
