"""Write docs/serve-page.png: the page with an answer of the demo. Needs `make demo`, playwright and a Chromium."""

import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
MODEL = DOCS.parent / "demo" / "SmolBruce-4x135M-Q4_K_M.gguf"
QUESTION = "Write a Python function that returns the n-th Fibonacci number."
SETTINGS = {"temperature": "0", "max_tokens": "200", "stop": " If the"}


def main(model: Path) -> None:
    """Serve the model, ask the question, take the picture."""
    from playwright.sync_api import sync_playwright

    command = [
        sys.executable,
        "-c",
        "from moe_gguf.cli import main; main()",
        "serve",
        str(model),
        "--port",
        "0",
        "-t",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stderr
        url = next(line.split("listening on ")[1].strip() for line in server.stderr if "listening on " in line)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 780}, color_scheme="light")
        page.goto(url)
        page.wait_for_selector(".welcome .lead")
        page.click("#toggle-settings")
        for name, value in SETTINGS.items():
            page.fill(f"#{name}", value)
        page.keyboard.press("Escape")
        page.fill("#message", QUESTION)
        page.press("#message", "Enter")
        page.wait_for_selector("article.answer .actions", timeout=120_000)
        # A font that is on most machines; and no number that depends on this one.
        page.evaluate("document.documentElement.style.setProperty('--sans', 'Liberation Sans, Arial, sans-serif')")
        page.evaluate("document.querySelector('.stats').remove(); document.activeElement.blur()")
        page.mouse.move(600, 5)
        page.evaluate("document.getElementById('scroll').scrollTop = 0")
        page.wait_for_timeout(500)
        page.screenshot(path=DOCS / "serve-page.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL)
