"""What the browser keeps: conversations, settings, presets, files in and out, and what happens when room runs out."""

from pathlib import Path

from playwright.sync_api import expect

from .screen import Screen

FULL = """(times) => {
  const put = IDBObjectStore.prototype.put;
  let left = times;
  IDBObjectStore.prototype.put = function (...given) {
    if (this.name === "conversations" && left > 0) { left -= 1; throw new DOMException("full", "QuotaExceededError"); }
    return put.apply(this, given);
  };
}"""
COUNT_TRACES = """() => new Promise((done) => {
  const open = indexedDB.open("moe-gguf");
  open.onsuccess = () => {
    const count = open.result.transaction("traces").objectStore("traces").count();
    count.onsuccess = () => done(count.result);
  };
})"""


def test_an_exported_file_brings_everything_back(screen: Screen, tmp_path: Path) -> None:
    screen.limit(10)
    screen.ask("hello")
    screen.button("Answer again").click()
    screen.page.wait_for_selector('[aria-label="Version 2 of 2"]')
    screen.wait()
    said, style = screen.answer(), screen.find(".answer .word").first.get_attribute("style")
    exported = screen.export(tmp_path / "all.json")
    screen.find("#sidebar li.current").hover()
    screen.button("Delete hello").click()
    expect(screen.find(".welcome")).to_be_visible()
    content = (tmp_path / "all.json").read_bytes()
    screen.give_file("Import", {"name": "all.json", "mimeType": "application/json", "buffer": content})
    expect(screen.find('[aria-label="Version 2 of 2"]')).to_be_visible()
    assert screen.answer() == said
    assert screen.find(".answer .word").first.get_attribute("style") == style
    again = screen.export(tmp_path / "again.json")
    texts = [
        sorted(node["text"] for conversation in each["conversations"] for node in conversation["nodes"].values())
        for each in (exported, again)
    ]
    assert texts[0] == texts[1] and len(exported["traces"]) == len(again["traces"]) == 2


def test_a_deleted_conversation_comes_back(screen: Screen) -> None:
    screen.bring([("user", "keep me"), ("assistant", "yes")])
    screen.find("#sidebar li.current").hover()
    screen.button("Delete keep me").click()
    expect(screen.find("#sidebar li")).to_have_count(0)
    screen.button("Undo").click()
    expect(screen.find(".bubble")).to_have_text("keep me")


def test_a_conversation_that_is_deleted_while_it_answers_stays_deleted(screen: Screen) -> None:
    screen.write("hello")
    screen.page.wait_for_function("() => document.querySelectorAll('.answer .word').length > 3")
    screen.find("#sidebar li.current").hover()
    screen.button("Delete hello").click()
    expect(screen.find(".welcome")).to_be_visible()
    screen.page.reload()
    screen.page.wait_for_selector(".welcome .lead")
    expect(screen.find("#sidebar li")).to_have_count(0)


def test_titles_are_changed(screen: Screen) -> None:
    screen.bring([("user", "keep me"), ("assistant", "yes")])
    screen.find("#sidebar li.current").hover()
    screen.button("Rename keep me").click()
    screen.page.get_by_label("Title").fill("A better title")
    screen.page.keyboard.press("Enter")
    expect(screen.find("#sidebar .title")).to_have_text("A better title")
    screen.page.reload()
    expect(screen.find("#sidebar .title")).to_have_text("A better title")


def test_the_search_finds_words_of_other_branches_and_opens_them(screen: Screen) -> None:
    screen.bring([("user", "about whales"), ("assistant", "They sing.")])
    screen.button("Edit", "article.answer").click()
    screen.page.get_by_label("Edit the message").fill("They dive.")
    screen.button("Keep as a new version").click()
    screen.bring([("user", "about kettles"), ("assistant", "They boil.")])
    screen.page.keyboard.press("Control+k")
    expect(screen.find("#search")).to_be_focused()
    screen.page.keyboard.type("SING")
    expect(screen.find("#sidebar .title")).to_have_text("about whales")
    expect(screen.find("#sidebar mark")).to_have_text("sing")
    screen.page.keyboard.press("Enter")
    expect(screen.find("article.answer .said")).to_have_text("They sing.")


def test_a_second_tab_sees_what_the_first_one_kept(screen: Screen) -> None:
    other = screen.page.context.new_page()
    other.goto(screen.page.url)
    other.wait_for_selector(".welcome .lead")
    screen.bring([("user", "keep me"), ("assistant", "yes")])
    other.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    other.get_by_role("button", name="keep me", exact=True).click()
    expect(other.locator(".bubble")).to_have_text("keep me")


def test_settings_belong_to_a_conversation_and_are_sent(screen: Screen) -> None:
    screen.button("Settings of this conversation").click()
    screen.page.get_by_label("System prompt").fill("Be brief.")
    for label, value in (("Temperature", "0.25"), ("Top k", "7"), ("Longest answer", "5"), ("Seed", "42")):
        screen.page.get_by_label(label).fill(value)
    screen.page.get_by_label("Stop at these texts").fill("zzz\nyyy")
    screen.page.get_by_label("Name of the preset").fill("Mine")
    screen.button("Save").click()
    body = screen.ask("hello")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [body[key] for key in ("temperature", "top_k", "max_tokens", "seed")] == [0.25, 7, 5, 42]
    assert body["stop"] == ["zzz", "yyy"] and "top_p" not in body
    screen.button("New conversation").click()
    expect(screen.page.get_by_label("System prompt")).to_have_value("")
    screen.page.get_by_label("Preset", exact=True).select_option("own Mine")
    expect(screen.page.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(screen.page.get_by_label("Temperature")).to_have_value("0.25")
    screen.page.get_by_label("Preset", exact=True).select_option("built-in Exact")
    expect(screen.page.get_by_label("Temperature")).to_have_value("0")
    expect(screen.page.get_by_label("Top k")).to_have_value("")


def test_text_files_go_with_the_question(screen: Screen) -> None:
    screen.limit(4)
    notes = {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"a ```fence``` b\n"}
    screen.give_file("Attach text files", notes, {"name": "x.bin", "mimeType": "x/x", "buffer": b"\0\1\2"})
    expect(screen.find("#toasts")).to_contain_text("x.bin is not a text file")
    expect(screen.find(".attached li")).to_have_count(1)
    body = screen.ask("what is it?")
    content = body["messages"][0]["content"]
    assert content == "notes.md:\n````\na ```fence``` b\n````\n\nwhat is it?"
    screen.find(".file summary").click()
    expect(screen.find(".file pre")).to_have_text("a ```fence``` b")


def test_old_tokens_go_first_when_room_runs_out(screen: Screen) -> None:
    screen.limit(4)
    screen.ask("hello")
    screen.ask("and again")
    assert screen.page.evaluate(COUNT_TRACES) == 2
    screen.page.evaluate(FULL, 1)
    screen.ask("once more")
    assert screen.page.evaluate(COUNT_TRACES) == 2
    screen.page.reload()
    expect(screen.find("article.answer")).to_have_count(3)


def test_it_is_said_when_there_is_no_room_at_all(screen: Screen) -> None:
    screen.limit(4)
    screen.page.evaluate(FULL, 1000)
    screen.ask("hello")
    expect(screen.find("#toasts")).to_contain_text("no room left")
    assert screen.answer()
