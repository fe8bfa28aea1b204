// Where a message is written: text, attached files, who answers, send and stop.

import { el, icon, iconButton, toast } from "./dom.js";
import { jumpButton } from "./messages.js";
import { colourOf, isMixture } from "./speakers.js";
import { actions, isBusy, state } from "./state.js";

const LARGEST = 1_000_000; // bytes of a file
let files = [];
const drafts = new Map();
const parts = {};

/** Make the composer. */
export function makeComposer() {
  parts.area = el("textarea", { id: "message", rows: 1, placeholder: "Write a message", "aria-label": "Message", enterKeyHint: "send", on: { input: grow, keydown: pressed, paste: pasted } });
  parts.files = el("ul", { className: "attached", "aria-label": "Attached files", hidden: true });
  parts.picker = el("input", { type: "file", multiple: true, hidden: true, tabIndex: -1, on: { change: () => { attach(parts.picker.files); parts.picker.value = ""; } } });
  parts.who = el("select", { id: "who", "aria-label": "Who answers", on: { change: () => { state.only = parts.who.value === "" ? null : Number(parts.who.value); showComposer(); } } });
  parts.whoFrame = el("label", { className: "who-answers", htmlFor: "who" }, el("span", { className: "dot", "aria-hidden": "true" }), parts.who);
  parts.send = el("button", { type: "button", className: "send", on: { click: () => (isBusy(state.current) ? actions.stop() : submit()) } });
  parts.limit = el("span", { className: "faint hint" }, "Enter sends, Shift Enter makes a new line");
  document.getElementById("composer").append(jumpButton(), el("div", { className: "box" }, parts.files, parts.area, el("div", { className: "tools" },
    iconButton("clip", "Attach text files", () => parts.picker.click()), parts.picker, parts.whoFrame, parts.limit, parts.send)));
  document.addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    attach(event.dataTransfer.files);
  });
}

/** Show what can be done now. */
export function showComposer() {
  const busy = isBusy(state.current);
  parts.send.replaceChildren(icon(busy ? "stop" : "send"));
  parts.send.setAttribute("aria-label", busy ? "Stop" : "Send");
  parts.send.title = busy ? "Stop (Esc)" : "Send (Enter)";
  parts.send.disabled = !busy && !parts.area.value.trim() && !files.length;
  parts.whoFrame.hidden = !isMixture();
  if (isMixture() && parts.who.madeFor !== state.model) {
    parts.who.madeFor = state.model;
    parts.who.replaceChildren(el("option", { value: "" }, "All experts"), ...state.model.names.map((name, expert) => el("option", { value: String(expert) }, `All, and ${name} alone`)));
  }
  parts.who.value = state.only === null ? "" : String(state.only);
  parts.whoFrame.classList.toggle("on", state.only !== null);
  if (state.only !== null) parts.whoFrame.style.setProperty("--colour", colourOf(state.only));
}

/** Show the draft of the conversation that is opened now, and keep that of the one before. */
export function changeDraft(before, now) {
  if (before) drafts.set(before.id, { text: parts.area.value, files });
  const draft = drafts.get(now.id) ?? { text: "", files: [] };
  parts.area.value = draft.text;
  files = draft.files;
  showFiles();
  grow();
}

/** Put the cursor where one writes. */
export const focusComposer = () => parts.area.focus();

/** Tell whether nothing is written. */
export const isEmpty = () => !parts.area.value;

function submit() {
  const text = parts.area.value.trim();
  if ((!text && !files.length) || isBusy(state.current)) return;
  const sent = { text, files };
  parts.area.value = "";
  files = [];
  showFiles();
  grow();
  actions.send(sent);
}

function grow() {
  parts.area.style.height = "auto";
  parts.area.style.height = `${Math.min(parts.area.scrollHeight, innerHeight * 0.4)}px`;
  if (state.current) showComposer();
}

const touch = matchMedia("(pointer: coarse)");

function pressed(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && isEmpty()) {
    event.preventDefault();
    actions.editLast();
  }
}

function pasted(event) {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attach(event.clipboardData.files);
}

async function attach(list) {
  for (const file of [...list]) { // a copy: the list empties with the field that it came from
    if (file.size > LARGEST) {
      toast(`${file.name} is larger than 1 MB: a model's context has no room for it.`);
      continue;
    }
    const text = await file.text();
    if (text.includes("\0") || (text.match(/\uFFFD/g)?.length ?? 0) > text.length / 100) toast(`${file.name} is not a text file.`);
    else files.push({ name: file.name, text });
  }
  showFiles();
  grow();
  focusComposer();
}

function showFiles() {
  parts.files.hidden = !files.length;
  parts.files.replaceChildren(...files.map((file) => el("li", {}, icon("file"), el("span", {}, file.name),
    iconButton("close", `Leave ${file.name} out`, () => { files = files.filter((each) => each !== file); showFiles(); grow(); }))));
}
