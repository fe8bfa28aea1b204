// One message on the page: a question with its files, or an answer with its speakers.

import { traceOf } from "./answering.js";
import { copyText, el, icon, iconButton, toast } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { showWord } from "./popover.js";
import { colourOf, isMixture, nameOf, shareBar, shareDetails } from "./speakers.js";
import { actions, state } from "./state.js";
import { paint } from "./strips.js";
import { versions } from "./tree.js";

/** Make the arrows between the versions of a message, or nothing when there is one. */
function arrows(conversation, node) {
  const all = versions(conversation, node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const go = (step) => actions.show(all[at + step].id);
  return el("span", { className: "versions", role: "group", "aria-label": "Versions" },
    iconButton("left", "Version before", () => go(-1), { disabled: at === 0 }),
    el("span", { className: "number", "aria-label": `Version ${at + 1} of ${all.length}` }, `${at + 1}/${all.length}`),
    iconButton("right", "Next version", () => go(1), { disabled: at === all.length - 1 }));
}

/** Make a box in which a message is written anew. */
function editor(node, save, close) {
  const area = el("textarea", { value: node.text, rows: Math.min(14, node.text.split("\n").length + 1), "aria-label": "Edit the message" });
  const done = () => { close(); save(area.value); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); done(); }
  });
  const form = el("div", { className: "editor" }, area, el("div", { className: "buttons" },
    el("button", { type: "button", on: { click: close } }, "Cancel"),
    el("button", { type: "button", className: "primary", on: { click: done } }, node.role === "user" ? "Send as a new branch" : "Keep as a new version")));
  queueMicrotask(() => { area.focus(); area.setSelectionRange(area.value.length, area.value.length); });
  return form;
}

const copyButton = (node) => {
  const button = iconButton("copy", "Copy", async () => {
    await copyText(node.text);
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1600);
  });
  return button;
};

/** A question. */
export class QuestionView {
  constructor(conversation, node) {
    Object.assign(this, { conversation, node, editing: false });
    this.element = el("article", { className: "question", "aria-label": "You", data: { id: node.id } });
  }

  update() {
    const { node, conversation } = this;
    if (this.editing) return;
    const files = (node.files ?? []).map(({ name, text }) => el("details", { className: "file" }, el("summary", {}, icon("file"), name), el("pre", { tabIndex: 0 }, text)));
    this.element.replaceChildren(el("h2", { className: "unseen" }, "You"), ...files, el("div", { className: "bubble" }, node.text), el("div", { className: "actions" },
      arrows(conversation, node) ?? "",
      copyButton(node),
      iconButton("edit", "Edit", () => this.edit()),
      iconButton("trash", "Delete from here on", () => actions.removeMessage(node.id))));
  }

  edit() {
    this.editing = true;
    this.element.replaceChildren(editor(this.node, (text) => actions.editQuestion(this.node, text), () => { this.editing = false; this.update(); }));
  }
}

/** An answer. */
export class AnswerView {
  constructor(conversation, node) {
    Object.assign(this, { conversation, node, editing: false, open: false, ready: false });
    this.who = el("h2", { className: "speaker" });
    this.thoughts = el("div", { className: "prose" });
    this.thinking = el("details", { className: "thoughts", hidden: true }, el("summary", {}, "Thoughts"), this.thoughts);
    this.prose = el("div", { className: "prose said", on: { click: (event) => this.clicked(event) } });
    this.note = el("div", { className: "note", hidden: true });
    this.foot = el("div", { className: "foot" });
    this.details = el("div", { hidden: true });
    this.element = el("article", { className: "answer", data: { id: node.id } }, this.who, this.thinking, this.prose, this.note, this.foot, this.details);
    traceOf(node).then(() => { this.ready = true; this.grow(); this.update(); });
  }

  /** How many experts there are: the answer knows before the server has said it. */
  get nExpert() {
    return this.node.shares?.length ?? state.model?.nExpert ?? 0;
  }

  get busy() {
    return state.running.has(this.node.id);
  }

  /** Show text that came. */
  grow() {
    const { node } = this;
    if (this.editing || !this.ready) return;
    this.element.classList.toggle("busy", this.busy);
    this.thinking.hidden = !node.thoughts;
    if (node.thoughts && (this.shownThoughts ?? "") !== node.thoughts) showMarkdown(this.thoughts, (this.shownThoughts = node.thoughts));
    if (this.shownText === node.text) return;
    this.shownText = node.text;
    const trace = state.traces.get(node.id);
    for (const block of showMarkdown(this.prose, node.text)) if (trace.tokens.length) paint(block, trace, this.nExpert);
    if (this.open) this.showDetails();
  }

  /** Show all else. */
  update() {
    const { node } = this;
    const alone = node.only === undefined ? null : nameOf(node.only, node.names);
    this.element.setAttribute("aria-label", alone ? `Answer of ${alone} alone` : "Answer");
    this.element.setAttribute("aria-busy", String(this.busy));
    this.who.replaceChildren(...(alone ? [el("span", { className: "dot", style: { "--colour": colourOf(node.only) } }), `Only ${alone}`] : [this.paired ? "All experts" : state.model?.name ?? "Answer"]));
    this.who.classList.toggle("unseen", !alone && !this.paired);
    this.grow();
    this.showNote();
    if (!this.editing) this.foot.replaceChildren(...this.footer());
    this.showDetails();
  }

  showNote() {
    const { node, busy } = this;
    const [said, retry] = node.error ? [node.error, "Try again"]
      : !busy && !node.finish ? ["This answer was interrupted.", "Answer again"]
      : node.finish === "length" ? ["The answer ended at its limit of tokens.", null]
      : node.finish === "stopped" && !node.text ? ["Stopped before the first word.", "Answer again"] : [null, null];
    this.note.hidden = !said;
    this.note.classList.toggle("error", Boolean(node.error));
    this.note.replaceChildren(el("span", {}, said ?? ""), retry ? el("button", { type: "button", on: { click: () => actions.again(node) } }, retry) : "");
  }

  footer() {
    const { node, conversation } = this;
    const parts = [];
    if (node.shares?.length > 1 && node.shares.some(Boolean)) parts.push(shareBar(node, this.open, () => this.toggle()));
    if (this.busy) return [...parts, el("span", { className: "faint pulse" }, node.text ? "" : "Reading…")];
    if (node.error && !node.text) return [arrows(conversation, node) ?? ""];
    const actionsOfAnswer = el("div", { className: "actions" },
      arrows(conversation, node) ?? "", copyButton(node), iconButton("redo", "Answer again", () => actions.again(node)), iconButton("edit", "Edit", () => this.edit()),
      state.traces.get(node.id)?.tokens.length ? iconButton("share", "Token probabilities, word by word", () => this.inspect()) : "",
      isMixture() && node.only === undefined ? this.oneExpert() : "",
      this.paired && conversation.nodes[node.parent].chosen !== node.id ? el("button", { type: "button", className: "quiet", on: { click: () => actions.show(node.id) } }, "Go on with this one") : "");
    if (this.paired && conversation.nodes[node.parent].chosen === node.id) actionsOfAnswer.append(el("span", { className: "faint chosen" }, icon("check"), "goes on"));
    parts.push(actionsOfAnswer);
    if (node.stats?.tokens > 1) {
      const speed = node.stats.seconds > 0.05 ? `, ${((node.stats.tokens - 1) / node.stats.seconds).toPrecision(3)}/s` : "";
      parts.push(el("span", { className: "faint stats" }, `${node.stats.tokens} tokens${speed}`));
    }
    return parts;
  }

  /** Make the choice of an expert that answers the same question alone. */
  oneExpert() {
    const choice = el("select", { title: "Let one expert answer alone, side by side", "aria-label": "Let one expert answer alone, side by side" },
      el("option", { value: "" }, "One expert…"), state.model.names.map((name, expert) => el("option", { value: String(expert) }, name)));
    choice.addEventListener("change", () => choice.value !== "" && actions.askOne(this.node, Number(choice.value)));
    return el("span", { className: "one-expert" }, icon("fork"), choice);
  }

  toggle() {
    this.open = !this.open;
    this.update();
    this.foot.querySelector(".shares")?.focus();
  }

  showDetails() {
    this.details.hidden = !this.open || !this.node.shares;
    this.details.replaceChildren(...(this.details.hidden ? [] : [shareDetails(this.node)]));
  }

  clicked(event) {
    const word = event.target.closest(".word");
    if (word && !event.target.closest("a") && getSelection().isCollapsed) this.inspect(word);
  }

  inspect(word = null) {
    const words = [...this.prose.querySelectorAll(".word")];
    if (!words.length) return toast("The tokens of this answer are no longer kept.");
    showWord(word ?? words[0], words, state.traces.get(this.node.id), this.nExpert, this.node.names);
  }

  edit() {
    this.editing = true;
    this.prose.replaceChildren(editor(this.node, (text) => actions.editAnswer(this.node, text), () => {
      this.editing = false;
      this.shownText = null;
      this.prose.replaceChildren();
      this.update();
    }));
    this.foot.replaceChildren();
  }
}
