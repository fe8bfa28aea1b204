"""Nothing that a model or a file says runs, is loaded, or leads away unasked."""

import json

from playwright.sync_api import expect

from .screen import Screen

SCRIPT = "<script>document.title='run'</script>"
IMAGE = "<img src=x onerror=\"document.title='run'\">"
HOSTILE = [
    SCRIPT,
    IMAGE,
    "<svg onload=\"document.title='run'\"><a xlink:href=\"javascript:document.title='run'\">x</a></svg>",
    "<iframe srcdoc=\"<script>parent.document.title='run'</script>\"></iframe>",
    "[click](javascript:document.title='run') <javascript:document.title='run'>",
    "[click](data:text/html,<script>1</script>) [file](file:///etc/passwd) [v](vbscript:x)",
    "![picture](http://127.0.0.1:1/seen.png) ![](javascript:document.title='run')",
    "```html\n<script>document.title='run'</script>\n```",
    "``` \" onmouseover=document.title='run' x=\"\ncode\n```",
    "$\\href{javascript:document.title='run'}{x}$ $\\htmlData{x=y}{z}$ $\\includegraphics{http://127.0.0.1:1/x.png}$",
    "<style>*{display:none}</style><base href='http://127.0.0.1:1/'><form action=x><input name=key></form>",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
]
OURS = '{"format": "moe-gguf conversations", "conversations": [%s]}'
BROKEN = [
    "no JSON",
    "[]",
    "{}",
    '{"messages": "x"}',
    OURS % "{}",
    OURS % '{"root": "a", "nodes": {"a": {"children": ["a"]}}}',
    OURS % '{"root": "a", "nodes": {"a": {"children": ["b", "b"]}, "b": {"role": "user", "children": []}}}',
    OURS % '{"root": "a", "nodes": {"a": {"children": ["b"]}, "b": {"role": "system", "children": []}}}',
]


def see_that_nothing_ran(screen: Screen, requests: list[str], own: str) -> None:
    screen.page.wait_for_timeout(100)
    assert "run" not in screen.page.title().split()
    assert [url for url in requests if not url.startswith((own, "blob:"))] == []
    assert screen.find("#messages :is(script, img, iframe, form, input, style, base, object, embed)").count() == 0
    links = screen.find(".prose a").evaluate_all("links => links.map((a) => [a.href, a.target, a.rel])")
    for href, target, rel in links:
        assert href.startswith(("http:", "https:", "mailto:")) or not href, href
        assert target == "_blank" and "noopener" in rel
    handlers = "nodes => nodes.flatMap((node) => [...node.attributes]).filter(({name}) => name.startsWith('on')).length"
    assert screen.find("#messages *").evaluate_all(handlers) == 0


def test_hostile_answers_of_a_file_stay_text(screen: Screen) -> None:
    requests: list[str] = []
    own = screen.page.url.split("#")[0]
    screen.page.on("request", lambda request: requests.append(request.url))
    screen.bring([message for text in HOSTILE for message in (("user", text), ("assistant", text))])
    see_that_nothing_ran(screen, requests, own)
    shown = screen.texts("article.answer .said")
    assert SCRIPT in shown[0] and IMAGE in shown[1]
    screen.page.reload()
    screen.page.wait_for_selector("article.answer")
    see_that_nothing_ran(screen, requests, own)


def test_hostile_text_that_streams_stays_text(screen: Screen) -> None:
    requests: list[str] = []
    own = screen.page.url.split("#")[0]
    screen.page.on("request", lambda request: requests.append(request.url))
    said = f"{SCRIPT} {IMAGE} [click](javascript:document.title=1)"

    def force(route) -> None:
        body = {
            **route.request.post_data_json,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": said}}},
        }
        route.continue_(post_data=json.dumps(body))

    screen.page.route("**/v1/chat/completions", force)
    screen.ask("say it")
    assert "<script>" in screen.answer() and "onerror=" in screen.answer()
    see_that_nothing_ran(screen, requests, own)


def test_an_edited_answer_and_a_title_stay_text(screen: Screen) -> None:
    screen.bring([("user", SCRIPT + IMAGE), ("assistant", "fine")])
    screen.button("Edit", "article.answer").click()
    screen.page.get_by_label("Edit the message").fill(IMAGE)
    screen.button("Keep as a new version").click()
    expect(screen.find("article.answer .said")).to_have_text(IMAGE)
    assert "<script" in (screen.find("#sidebar .current .title").text_content() or "")
    see_that_nothing_ran(screen, [], "")


def test_the_policy_stops_what_would_slip_through(screen: Screen) -> None:
    refused = screen.page.evaluate(
        """() => {
          const tried = [
            () => { document.body.innerHTML = "<b>x</b>"; },
            () => { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); },
            () => { document.createElement("script").textContent = "1"; },
            () => { setTimeout("1"); },
            () => { trustedTypes.createPolicy("mine", {}); },
          ];
          return tried.map((act) => { try { act(); return "ran"; } catch (error) { return error.constructor.name; } });
        }"""
    )
    assert "ran" not in refused
    screen.complaints.clear()


def test_files_that_hold_no_conversations_are_refused(screen: Screen) -> None:
    for number, content in enumerate(BROKEN):
        name = f"{number}.json"
        screen.give_file("Import", {"name": name, "mimeType": "application/json", "buffer": content.encode()})
        expect(screen.find("#toasts")).to_contain_text(f"{name} holds no conversations")
    expect(screen.find(".welcome")).to_be_visible()
    expect(screen.find("#sidebar li")).to_have_count(0)
