"""The page as a person uses it: helpers over playwright's Page."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

PATIENCE = 10_000  # milliseconds


class Screen:
    """A page that is open. `complaints` are errors of its console and its scripts."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, line: "ConsoleMessage") -> None:
        if line.type == "error":
            self.complaints.append(line.text)

    @classmethod
    @contextmanager
    def opened(cls, browser: "Browser", url: str, ready: str = ".welcome .lead", **context: Any) -> "Iterator[Screen]":
        """Open the page in a context of its own, and see at the end that nothing was complained of."""
        with browser.new_context(viewport=context.pop("viewport", {"width": 1280, "height": 800}), **context) as own:
            screen = cls(own.new_page())
            screen.page.goto(url)
            screen.page.wait_for_selector(ready)
            yield screen
            assert screen.complaints == []

    def find(self, selector: str) -> "Locator":
        """Return what a selector finds."""
        return self.page.locator(selector)

    def button(self, name: str, within: str = "body") -> "Locator":
        """Return the buttons of this name."""
        return self.find(within).get_by_role("button", name=name, exact=True)

    def limit(self, n_tokens: int) -> None:
        """Set the longest answer, as a person does."""
        self.button("Settings of this conversation").click()
        self.page.get_by_label("Longest answer").fill(str(n_tokens))
        self.button("Close the settings").click()

    def write(self, text: str) -> None:
        """Write a message and send it."""
        self.find("#message").fill(text)
        self.find("#message").press("Enter")

    def ask(self, text: str) -> dict[str, Any]:
        """Write a message and wait for the answer's end. Returns what the (first) request asked for."""
        before = self.find("article.answer").count()
        with self.page.expect_request("**/v1/chat/completions") as request:
            self.write(text)
        self.page.wait_for_function("n => document.querySelectorAll('article.answer').length > n", arg=before)
        self.wait()
        return request.value.post_data_json or {}

    def wait(self) -> None:
        """Wait until nothing is being answered."""
        self.page.wait_for_selector(".send[aria-label=Send]")
        self.page.wait_for_function("() => !document.querySelector('article.answer[aria-busy=true]')")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all that a selector finds."""
        return self.find(selector).all_inner_texts()

    def answer(self) -> str:
        """Return the last answer's text."""
        return self.texts("article.answer .said")[-1]

    def give_file(self, label: str, *files: dict[str, Any]) -> None:
        """Press a button that asks for files, and give it these."""
        with self.page.expect_file_chooser() as chooser:
            self.button(label).click()
        chooser.value.set_files(list(files))  # pyright: ignore[reportArgumentType]

    def bring(self, messages: Sequence[tuple[str, str]]) -> None:
        """Import a conversation as `moe-gguf chat` saves it."""
        listed = [{"role": role, "content": content} for role, content in messages]
        text = json.dumps({"messages": listed}).encode()
        self.give_file("Import", {"name": "chat.json", "mimeType": "application/json", "buffer": text})
        n_answers = sum(role == "assistant" for role, _ in messages)
        shown = """([first, n]) => document.querySelector(".bubble")?.textContent === first
          && document.querySelectorAll("article.answer .said .block:first-child").length === n"""
        self.page.wait_for_function(shown, arg=[messages[0][1], n_answers])

    def export(self, path: Path) -> dict[str, Any]:
        """Export all conversations and return the file's content."""
        with self.page.expect_download() as download:
            self.button("Export all").click()
        download.value.save_as(path)
        return json.loads(path.read_text(encoding="utf-8"))
