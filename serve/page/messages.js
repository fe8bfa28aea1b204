// The messages of the current conversation, in order; views stay as long as their message is shown.

import { el, icon } from "./dom.js";
import { AnswerView, QuestionView } from "./message-view.js";
import { closePopover } from "./popover.js";
import { legend, isMixture } from "./speakers.js";
import { actions, state } from "./state.js";
import { chosenPath, sideBySide } from "./tree.js";

const NEAR = 90; // px from the end: whoever is there goes along with the text
let views = new Map();
let shown = null;
const waiting = new Set();
const scroll = () => document.getElementById("scroll");

const nearEnd = () => scroll().scrollHeight - scroll().scrollTop - scroll().clientHeight < NEAR;

/** Show the current conversation as it is now. */
export function showMessages() {
  const { current } = state;
  const other = shown !== current;
  if (other) {
    views = new Map();
    shown = current;
    closePopover(false);
  }
  const follow = other || nearEnd();
  const path = chosenPath(current);
  const used = new Set();
  const parts = path.length ? path.flatMap((node) => partOf(current, node, used)) : [welcome()];
  for (const id of views.keys()) if (!used.has(id)) views.delete(id);
  place(document.getElementById("messages"), parts);
  if (follow) toEnd();
  showJump();
}

function partOf(conversation, node, used) {
  const pair = node.role === "assistant" ? sideBySide(conversation, conversation.nodes[node.parent]) : null;
  if (!pair) return [viewOf(conversation, node, used, false)];
  const columns = pair.map((each) => viewOf(conversation, each, used, true));
  const id = `pair ${pair.map((each) => each.id).join(" ")}`;
  used.add(id);
  if (!views.has(id)) views.set(id, { element: el("div", { className: "pair", role: "group", "aria-label": "Two answers side by side" }) });
  place(views.get(id).element, columns);
  return [views.get(id).element];
}

function viewOf(conversation, node, used, paired) {
  used.add(node.id);
  // What was undone or read anew has the same id, and is another object.
  if (views.get(node.id)?.node !== node) views.set(node.id, node.role === "user" ? new QuestionView(conversation, node) : new AnswerView(conversation, node));
  const view = views.get(node.id);
  view.paired = paired;
  view.update();
  view.element.classList.toggle("aside", paired && conversation.nodes[node.parent].chosen !== node.id);
  return view.element;
}

/** Make these the children of an element, without touching those that are in place. */
function place(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** Show text that came, at most once a frame. */
export function grew(conversation, node) {
  if (conversation !== state.current) return;
  if (!waiting.size) requestAnimationFrame(showGrowth);
  waiting.add(node.id);
}

function showGrowth() {
  const follow = nearEnd();
  for (const id of waiting) {
    const view = views.get(id);
    view?.grow?.();
    if (view && !view.shownShares && view.node.shares) { view.shownShares = true; view.update(); }
    const bar = view?.element.querySelector(".shares");
    if (bar && performance.now() - (view.barAt ?? 0) > 400) { view.barAt = performance.now(); view.update(); }
  }
  waiting.clear();
  if (follow) toEnd();
  showJump();
}

/** Scroll to the end. */
export function toEnd() {
  scroll().scrollTop = scroll().scrollHeight;
}

/** Scroll to a message and mark it for a moment. */
export function toMessage(id) {
  const found = views.get(id)?.element;
  found?.scrollIntoView({ block: "center" });
  found?.classList.add("found");
  setTimeout(() => found?.classList.remove("found"), 1600);
}

/** Return the view of a message. */
export const viewOfMessage = (id) => views.get(id);

/** Show or hide the button that leads to the end. */
export function showJump() {
  document.getElementById("jump").hidden = nearEnd() || !chosenPath(state.current).length;
}

const EXAMPLES = [
  "Write a Python function that returns the primes below n.",
  "Explain to a child why the sky is blue.",
  "Erzähl mir in drei Sätzen von einem alten Leuchtturm.",
  "How do I descale a kettle? Answer in numbered steps.",
];

function count(n) {
  const [size, unit] = n >= 1e9 ? [1e9, "B"] : n >= 1e6 ? [1e6, "M"] : [1e3, "K"];
  return `${(n / size).toPrecision(3).replace(/\.0+$/, "")}\u00a0${unit}`;
}

/** Return what the model is, in one line. */
export function inOneLine({ nExpert, nExpertUsed, nParams, nParamsActive }) {
  if (nExpert < 2) return nParams ? `${count(nParams)} parameters, all of them used for each token.` : "";
  const used = nParams ? `: ${count(nParamsActive)} of ${count(nParams)} parameters at work at a time` : "";
  return `${nExpert} experts, ${nExpertUsed} per token${used}.`;
}

function welcome() {
  const { model } = state;
  const parts = [el("h1", {}, model?.name ?? "moe-gguf")];
  if (model) parts.push(el("p", { className: "lead" }, inOneLine(model)));
  if (isMixture()) parts.push(el("p", { className: "faint" }, "The colour under each word shows who said it. Click a word, or the bar below an answer, for more."), legend());
  parts.push(el("ul", { className: "examples", "aria-label": "Examples" }, EXAMPLES.map((text) => el("li", {}, el("button", { type: "button", on: { click: () => actions.send({ text, files: [] }) } }, text)))));
  return el("section", { className: "welcome" }, parts);
}

/** Make the button that leads to the end. */
export function jumpButton() {
  return el("button", { type: "button", id: "jump", hidden: true, "aria-label": "To the end", title: "To the end", on: { click: () => { toEnd(); showJump(); } } }, icon("down"));
}
