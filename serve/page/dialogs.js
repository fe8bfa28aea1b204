// Questions that need an answer first: the API key; and the list of keyboard shortcuts.

import { el } from "./dom.js";

function show(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.showModal();
  return dialog;
}

/** Ask for the API key. Resolves to it, or to null when the person does not want to. */
export function askKey(why) {
  if (document.querySelector("dialog.key")) return Promise.resolve(null);
  return new Promise((resolve) => {
    const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: false });
    const form = el("form", { method: "dialog" },
      el("h2", { id: "key-title" }, "API key"),
      el("p", {}, `${why} A key is kept in this tab until you close it, and goes to this server only.`),
      el("label", { htmlFor: "key" }, "Key"), field,
      el("div", { className: "buttons" },
        el("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel"),
        el("button", { type: "submit", className: "primary" }, "Use this key")));
    let given = null;
    form.addEventListener("submit", (event) => { event.preventDefault(); given = field.value.trim(); dialog.close(); });
    const dialog = show(el("dialog", { className: "key", "aria-labelledby": "key-title" }, form));
    dialog.addEventListener("close", () => resolve(given || null));
  });
}

const MAC = /Mac|iPhone|iPad/.test(navigator.userAgent);
const CONTROL = MAC ? "⌘" : "Ctrl";
const KEYS = [
  ["Send", "Enter"], ["New line", "Shift Enter"], ["Stop the answer, close what is open", "Esc"],
  ["Edit your last message (in an empty box)", "↑"], ["Answer again", `${CONTROL} Shift E`],
  ["Version before, next version of the last answer", "Alt ←  Alt →"],
  ["Search the conversations", `${CONTROL} K`], ["New conversation", `${CONTROL} Shift O`],
  ["Settings of this conversation", `${CONTROL} ,`], ["Strips on or off", `${CONTROL} Shift X`],
  ["Write a message", "/"], ["This list", "?"],
];

/** Show the shortcuts. */
export function showKeys() {
  if (document.querySelector("dialog.keys")) return;
  const rows = KEYS.map(([what, keys]) => el("div", {}, el("dt", {}, what), el("dd", {}, keys.split(/\s+/).map((key) => el("kbd", {}, key)))));
  const dialog = show(el("dialog", { className: "keys", "aria-labelledby": "keys-title" },
    el("h2", { id: "keys-title" }, "Keyboard"), el("dl", {}, rows),
    el("div", { className: "buttons" }, el("button", { type: "button", className: "primary", on: { click: () => dialog.close() } }, "Close"))));
}
