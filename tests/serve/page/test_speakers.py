"""Who is speaking: strips, shares, layers, tokens, and one expert beside all of them."""

from playwright.sync_api import expect

from .screen import Screen


def test_each_word_has_a_strip_of_its_experts(screen: Screen) -> None:
    screen.limit(60)
    screen.ask("hello")
    words = screen.find("article.answer .word")
    strips = words.evaluate_all("words => words.map((word) => getComputedStyle(word).backgroundImage)")
    assert len(strips) > 3 and all(strip.startswith("linear-gradient") for strip in strips)
    said = " ".join(screen.answer().split())
    assert " ".join(words.all_inner_texts()) == said
    screen.button("Strips").click()
    assert words.first.evaluate("word => getComputedStyle(word).backgroundImage") == "none"


def test_shares_per_answer_and_per_layer_open_on_a_click(screen: Screen) -> None:
    screen.limit(30)
    screen.ask("hello")
    screen.find("article.answer .shares").click()
    percents = [float(text.split()[-2]) for text in screen.texts(".details .rows li")]
    assert percents == sorted(percents, reverse=True)
    assert abs(sum(percents) - 100) < 1
    assert screen.find(".details .layers g").count() == 2
    titles = screen.find(".details .layers title").all_text_contents()
    assert titles[0].startswith("Layer 0: Expert ")
    expect(screen.find("article.answer .shares")).to_have_attribute("aria-expanded", "true")


def test_a_click_on_a_word_shows_its_tokens_and_what_else_was_likely(screen: Screen) -> None:
    screen.limit(30)
    screen.ask("hello")
    word = screen.find("article.answer .word").nth(1)
    word.click()
    popover = screen.find(".popover")
    expect(popover).to_be_focused()
    tokens = popover.locator(".candidates")
    taken = "".join(tokens.locator(".taken code").all_inner_texts()).replace("␣", "")
    assert taken == word.inner_text()
    assert popover.locator("li").count() >= 5 * tokens.count()
    screen.page.keyboard.press("ArrowRight")
    expect(popover.locator("strong")).to_have_text(screen.find("article.answer .word").nth(2).inner_text())
    screen.page.keyboard.press("Escape")
    expect(popover).to_have_count(0)


def test_tokens_are_reached_by_keyboard(screen: Screen) -> None:
    screen.limit(12)
    screen.ask("hello")
    screen.button("Token probabilities, word by word").press("Enter")
    expect(screen.find(".popover strong")).to_have_text(screen.find("article.answer .word").first.inner_text())
    screen.page.keyboard.press("Escape")
    expect(screen.button("Token probabilities, word by word")).to_be_focused()


def test_without_probabilities_strips_stay(screen: Screen) -> None:
    screen.button("Settings of this conversation").click()
    screen.page.get_by_label("Keep the probabilities").uncheck()
    screen.button("Close the settings").click()
    screen.limit(12)
    body = screen.ask("hello")
    assert "logprobs" not in body
    screen.find("article.answer .word").first.click()
    expect(screen.find(".popover")).to_contain_text("were not asked for")
    expect(screen.find(".popover .popover-speakers")).to_contain_text("%")


def test_one_expert_answers_beside_all_of_them(screen: Screen) -> None:
    screen.limit(20)
    screen.page.get_by_label("Who answers").select_option("2")
    screen.ask("hello")
    assert screen.texts(".pair .speaker") == ["All experts", "Only Expert 2"]
    assert screen.texts(".pair .shares")[1].split() == ["Expert", "2", "100", "%"]
    only = screen.find(".pair .answer").nth(1)
    strip = only.locator(".word").first.get_attribute("style") or ""
    assert "--expert-2" in strip and "--expert-0" not in strip
    first, second = screen.texts(".pair .said")
    only.hover()
    screen.button("Go on with this one").click()
    screen.page.get_by_label("Who answers").select_option("")
    body = screen.ask("go on")
    assert " ".join(body["messages"][1]["content"].split()) == " ".join(second.split())
    assert screen.texts(".pair .said") == [first, second]


def test_an_expert_is_asked_after_the_answer(screen: Screen) -> None:
    screen.limit(12)
    screen.ask("hello")
    screen.page.get_by_label("Let one expert answer alone, side by side").select_option("1")
    expect(screen.find(".pair .answer")).to_have_count(2)
    screen.wait()
    assert screen.texts(".pair .speaker") == ["All experts", "Only Expert 1"]
    screen.page.reload()
    expect(screen.find(".pair .answer")).to_have_count(2)
