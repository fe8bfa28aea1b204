// The conversations that this browser keeps: searched, opened, renamed, deleted, saved to a file and read from one.

import { el, icon, iconButton, toast } from "./dom.js";
import { showKeys } from "./dialogs.js";
import { actions, preference, state } from "./state.js";
import { chosenPath } from "./tree.js";
import { exportConversations, importConversations } from "./transfer.js";

const parts = {};
const narrow = matchMedia("(max-width: 820px)");

/** Make the sidebar. */
export function makeSidebar() {
  parts.search = el("input", { type: "search", id: "search", placeholder: "Search", "aria-label": "Search the conversations", autocomplete: "off", on: { input: showList, keydown: searched } });
  parts.list = el("div", { className: "list" });
  const picker = el("input", { type: "file", accept: ".json,application/json", hidden: true, tabIndex: -1, on: { change: () => { readFile(picker.files[0]); picker.value = ""; } } });
  document.getElementById("sidebar").append(
    el("div", { className: "brand" }, el("span", { className: "mark", "aria-hidden": "true" }, el("i"), el("i"), el("i")), el("strong", {}, "moe-gguf"), iconButton("close", "Close the conversations", () => openSidebar(false), { id: "close-sidebar" })),
    el("button", { type: "button", className: "new", on: { click: () => actions.open(null) } }, icon("plus"), "New conversation"),
    el("div", { className: "search" }, icon("search"), parts.search),
    parts.list,
    el("div", { className: "below" }, picker,
      el("button", { type: "button", on: { click: () => exportConversations([...state.conversations.values()]) } }, "Export all"),
      el("button", { type: "button", on: { click: () => picker.click() } }, "Import"),
      iconButton("keyboard", "Keyboard shortcuts", showKeys)));
  document.getElementById("scrim").addEventListener("click", () => openSidebar(false));
  narrow.addEventListener("change", () => openSidebar(!narrow.matches && preference("sidebar") !== "closed"));
  openSidebar(!narrow.matches && preference("sidebar") !== "closed");
}

/** Open or close the sidebar; on a phone it lies over the conversation. */
export function openSidebar(open = !document.body.classList.contains("with-sidebar")) {
  document.body.classList.toggle("with-sidebar", open);
  document.getElementById("sidebar").inert = !open;
  document.getElementById("chat").inert = open && narrow.matches;
  document.getElementById("scrim").hidden = !(open && narrow.matches);
  document.getElementById("toggle-sidebar")?.setAttribute("aria-expanded", String(open));
  if (!narrow.matches) preference("sidebar", open ? "open" : "closed");
}

/** Open the sidebar for a search. */
export function startSearch() {
  openSidebar(true);
  parts.search.focus();
  parts.search.select();
}

/** After a conversation was opened: on a phone the sidebar goes. */
export const leaveSidebar = () => narrow.matches && openSidebar(false);

function searched(event) {
  if (event.key === "Escape" && parts.search.value) {
    event.stopPropagation();
    parts.search.value = "";
    showList();
  } else if (event.key === "Enter") parts.list.querySelector("button.open")?.click();
}

/** Show the conversations, newest first, or those that have the words that are looked for. */
export function showList() {
  const wanted = parts.search.value.trim().toLowerCase();
  const newest = [...state.conversations.values()].sort((a, b) => b.updated - a.updated);
  if (wanted) {
    const hits = newest.map((conversation) => hit(conversation, wanted)).filter(Boolean);
    parts.list.replaceChildren(el("p", { className: "group", role: "status" }, hits.length === 1 ? "1 conversation" : `${hits.length} conversations`), el("ul", {}, hits));
    return;
  }
  const groups = new Map();
  for (const conversation of newest) {
    const age = ageOf(conversation.updated);
    groups.set(age, [...(groups.get(age) ?? []), row(conversation)]);
  }
  if (!groups.size) return parts.list.replaceChildren(el("p", { className: "faint empty" }, "Conversations are kept in this browser only."));
  parts.list.replaceChildren(...[...groups].flatMap(([age, rows]) => [el("h2", { className: "group" }, age), el("ul", {}, rows)]));
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - time) / 86_400_000);
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days <= 7 ? "This week" : days <= 31 ? "This month" : "Earlier";
}

function row(conversation, below = null, message = null) {
  const current = conversation.id === state.current?.id;
  const title = conversation.title || "Untitled";
  const open = el("button", { type: "button", className: "open", "aria-current": current ? "true" : null, on: { click: () => actions.open(conversation.id, message) } }, el("span", { className: "title" }, title), below ?? "");
  const item = el("li", { className: current ? "current" : "" }, open, el("span", { className: "row-actions" },
    iconButton("edit", `Rename ${title}`, () => rename(conversation, item)),
    iconButton("down", `Export ${title}`, () => exportConversations([conversation], title)),
    iconButton("trash", `Delete ${title}`, () => actions.removeConversation(conversation))));
  return item;
}

function hit(conversation, wanted) {
  const path = new Set(chosenPath(conversation).map(({ id }) => id));
  const nodes = Object.values(conversation.nodes).sort((a, b) => path.has(b.id) - path.has(a.id));
  const node = nodes.find(({ text }) => text.toLowerCase().includes(wanted));
  if (!node && !conversation.title.toLowerCase().includes(wanted)) return null;
  if (!node) return row(conversation);
  const at = node.text.toLowerCase().indexOf(wanted);
  const from = Math.max(0, at - 24);
  return row(conversation, el("span", { className: "snippet" }, (from ? "…" : "") + node.text.slice(from, at), el("mark", {}, node.text.slice(at, at + wanted.length)), node.text.slice(at + wanted.length, at + wanted.length + 50)), node.id);
}

function rename(conversation, item) {
  const field = el("input", { value: conversation.title, className: "rename", "aria-label": "Title", maxLength: 120 });
  let open = true;
  const done = (save) => {
    if (!open) return;
    open = false;
    if (save && field.value.trim()) actions.rename(conversation, field.value.trim());
    else showList();
  };
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") done(true); else if (event.key === "Escape") { event.stopPropagation(); done(false); } });
  field.addEventListener("blur", () => done(true));
  item.replaceChildren(field);
  field.select();
}

async function readFile(file) {
  try {
    const came = await importConversations(await file.text());
    showList();
    actions.open(came[0].id);
    toast(came.length === 1 ? "1 conversation came in." : `${came.length} conversations came in.`);
  } catch {
    toast(`${file.name} holds no conversations of this page and none of moe-gguf chat.`);
  }
}
