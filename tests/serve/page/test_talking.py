"""Messages go out and answers come in: streamed, stopped, asked for again, branched, kept."""

from playwright.sync_api import expect

from .conftest import Server
from .screen import Screen


def test_the_first_visit_explains_the_model_in_one_line(screen: Screen) -> None:
    line = screen.find(".welcome .lead").inner_text()
    assert line.startswith("4 experts, 2 per token: ") and line.endswith(" parameters at work at a time.")
    assert screen.texts(".welcome .legend li") == [f"Expert {number}" for number in range(4)]


def test_an_answer_streams_and_is_announced(screen: Screen) -> None:
    screen.limit(1500)
    screen.page.evaluate(
        """() => {
          window.seen = new Set();
          const look = () => window.seen.add(document.querySelector("article.answer .said")?.textContent.length ?? 0);
          const messages = document.getElementById("messages");
          new MutationObserver(look).observe(messages, { subtree: true, childList: true });
        }"""
    )
    screen.ask("hello")
    lengths = screen.page.evaluate("() => [...window.seen]")
    assert sorted(lengths) == lengths and len(lengths) > 3
    expect(screen.find("#status")).to_contain_text("nswer")
    expect(screen.find("article.answer .stats")).to_contain_text("1500 tokens")
    expect(screen.find("article.answer .note")).to_contain_text("limit of tokens")


def test_stop_keeps_what_came(screen: Screen) -> None:
    screen.write("hello")
    screen.page.wait_for_function("() => document.querySelectorAll('.answer .word').length > 5")
    screen.button("Stop").click()
    screen.wait()
    stopped = screen.answer()
    assert stopped
    screen.page.wait_for_timeout(150)
    assert screen.answer() == stopped
    screen.limit(8)
    screen.ask("again")
    assert len(screen.texts("article.answer")) == 2


def test_again_adds_a_version_and_arrows_lead_between_them(screen: Screen) -> None:
    screen.limit(12)
    screen.ask("hello")
    first = screen.answer()
    screen.button("Answer again").click()
    screen.page.wait_for_selector('[aria-label="Version 2 of 2"]')
    screen.wait()
    second = screen.answer()
    screen.button("Version before", "article.answer").click()
    expect(screen.find('[aria-label="Version 1 of 2"]')).to_be_visible()
    assert screen.answer() == first
    screen.page.keyboard.press("Alt+ArrowRight")
    expect(screen.find('[aria-label="Version 2 of 2"]')).to_be_visible()
    assert screen.answer() == second


def test_editing_a_question_branches_and_loses_nothing(screen: Screen) -> None:
    screen.limit(8)
    screen.ask("first question")
    screen.ask("second question")
    screen.find("article.question").first.hover()
    screen.button("Edit", "article.question >> nth=0").click()
    screen.page.get_by_label("Edit the message").fill("another question")
    screen.button("Send as a new branch").click()
    screen.page.wait_for_selector('article.question [aria-label="Version 2 of 2"]')
    screen.wait()
    assert screen.texts(".bubble") == ["another question"]
    screen.find("article.question").hover()
    screen.button("Version before", "article.question").click()
    assert screen.texts(".bubble") == ["first question", "second question"]
    assert screen.find("article.answer").count() == 2


def test_the_arrow_up_edits_the_last_question(screen: Screen) -> None:
    screen.limit(4)
    screen.ask("mistaek")
    screen.find("#message").press("ArrowUp")
    expect(screen.page.get_by_label("Edit the message")).to_be_focused()
    screen.page.keyboard.press("Escape")
    assert screen.texts(".bubble") == ["mistaek"]


def test_an_answer_can_be_written_anew(screen: Screen) -> None:
    screen.limit(4)
    screen.ask("hello")
    screen.button("Edit", "article.answer").click()
    screen.page.get_by_label("Edit the message").fill("What it **should** say")
    screen.button("Keep as a new version").click()
    expect(screen.find("article.answer strong")).to_have_text("should")
    body = screen.ask("go on")
    assert body["messages"][1]["content"] == "What it **should** say"


def test_a_deleted_message_comes_back(screen: Screen) -> None:
    screen.limit(4)
    screen.ask("hello")
    screen.find("article.question").hover()
    screen.button("Delete from here on").click()
    expect(screen.find(".welcome")).to_be_visible()
    screen.button("Undo").click()
    assert screen.texts(".bubble") == ["hello"] and screen.find("article.answer").count() == 1
    screen.button("Answer again").click()
    expect(screen.find('[aria-label="Version 2 of 2"]')).to_be_visible()
    screen.wait()


def test_a_reload_keeps_everything(screen: Screen) -> None:
    screen.limit(12)
    screen.ask("hello")
    before = screen.answer()
    strips = screen.find(".answer .word").first.get_attribute("style")
    screen.page.reload()
    expect(screen.find("article.answer .shares")).to_be_visible()
    assert screen.answer() == before
    expect(screen.find(".answer .word").first).to_have_attribute("style", strips or "")
    screen.button("Settings of this conversation").click()
    expect(screen.page.get_by_label("Longest answer")).to_have_value("12")


def test_a_reload_during_an_answer_keeps_its_beginning(screen: Screen) -> None:
    screen.write("hello")
    screen.page.wait_for_function("() => document.querySelectorAll('.answer .word').length > 3")
    screen.page.evaluate(
        """async () => {
          const kept = () => new Promise((done) => {
            const open = indexedDB.open("moe-gguf");
            open.onsuccess = () => {
              const read = open.result.transaction("conversations").objectStore("conversations").getAll();
              read.onsuccess = () => done(JSON.stringify(read.result));
            };
          });
          while (!/"role":"assistant"[^}]*"text":"[^"]+"|"text":"[^"]+"[^}]*"role":"assistant"/.test(await kept()));
        }"""
    )
    screen.page.reload()
    expect(screen.find("article.answer .note")).to_contain_text("interrupted")
    assert screen.answer()
    screen.limit(4)
    screen.button("Answer again", "article.answer .note").click()
    screen.page.wait_for_selector('[aria-label="Version 2 of 2"]')
    screen.wait()


def test_a_server_that_went_away_is_said_and_tried_again(screen: Screen, server: Server) -> None:
    screen.limit(6)
    screen.ask("hello")
    before = screen.answer()
    server.stop()
    screen.write("are you there?")
    expect(screen.find(".note.error")).to_contain_text("The server does not answer")
    assert screen.texts("article.answer .said")[0] == before
    server.start()
    screen.button("Try again").click()
    screen.wait()
    expect(screen.find(".note.error:visible")).to_have_count(0)
    assert screen.find("article.answer").count() == 2 and screen.answer()
    assert all("Failed to load resource" in complaint for complaint in screen.complaints)
    screen.complaints.clear()


def test_a_server_that_dies_in_an_answer_leaves_its_beginning(screen: Screen, server: Server) -> None:
    screen.write("hello")
    screen.page.wait_for_function("() => document.querySelectorAll('.answer .word').length > 5")
    server.stop()
    try:
        expect(screen.find(".note.error")).to_contain_text("broke off")
        assert screen.answer()
    finally:
        server.start()
    screen.limit(4)
    screen.button("Try again").click()
    screen.page.wait_for_selector('[aria-label="Version 2 of 2"]')
    screen.wait()
    screen.complaints.clear()


def test_what_the_server_refuses_is_shown_as_its_sentence(screen: Screen) -> None:
    screen.ask("x" * 200_000)
    expect(screen.find(".note.error")).to_contain_text("tokens")
    expect(screen.button("Try again")).to_be_visible()
    assert len(screen.complaints) == 1 and "400" in screen.complaints.pop()


def test_conversations_are_several_and_answers_go_on_behind(screen: Screen) -> None:
    screen.limit(150)
    screen.write("the first")
    screen.page.wait_for_selector("article.answer")
    screen.page.keyboard.press("Control+Shift+O")
    expect(screen.find(".welcome")).to_be_visible()
    screen.limit(4)
    screen.ask("the second")
    screen.button("the first").click()
    screen.wait()
    expect(screen.find("article.answer .stats")).to_contain_text("150 tokens")
    assert screen.texts(".bubble") == ["the first"]
