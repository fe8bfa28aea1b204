// The page: what is kept is opened, the server asked what it is, and the parts put together.

import { again, askAll, askOne, keep, send, stop } from "./answering.js";
import { describe, models, ServerError, useKey } from "./api.js";
import { changeDraft, focusComposer, makeComposer, showComposer } from "./composer.js";
import { askKey } from "./dialogs.js";
import { toast } from "./dom.js";
import { showBanner, showHeader, startLook } from "./header.js";
import { startKeys } from "./keys.js";
import { grew, showJump, showMessages, toEnd, toMessage } from "./messages.js";
import { loadPresets, openSettings, showSettings } from "./settings.js";
import { leaveSidebar, makeSidebar, showList } from "./sidebar.js";
import { useModel } from "./speakers.js";
import { actions, isBusy, preference, state } from "./state.js";
import * as store from "./store.js";
import { addNode, choose, chosenPath, newConversation, removeNode } from "./tree.js";

const ASK_AGAIN = 3000; // ms between looks for a server that does not answer
const FORGET_AFTER = 8000; // ms: longer than "Undo" is shown
let settingsTimer = 0;

function showAll() {
  showHeader();
  showMessages();
  showComposer();
  showList();
  document.title = state.current.title ? `${state.current.title} · moe-gguf` : state.model?.name ?? "moe-gguf";
}

function open(id, message = null) {
  const next = (id && state.conversations.get(id)) || newConversation();
  const before = state.current;
  if (message && next.nodes[message]) choose(next, message);
  state.current = next;
  if (before !== next) changeDraft(before, next);
  history.replaceState(null, "", id ? `#${next.id}` : location.pathname + location.search);
  showAll();
  showSettings();
  leaveSidebar();
  if (message) toMessage(message);
  else if (!matchMedia("(pointer: coarse)").matches) focusComposer();
}

/** Change the tree, show it and keep it. */
function altered(conversation) {
  showAll();
  return keep(conversation);
}

Object.assign(actions, {
  open,
  grew,
  changed: (conversation) => (conversation === state.current ? showAll() : showList()),
  async send(written) {
    const { current } = state;
    if (isBusy(current)) return;
    const parent = chosenPath(current).at(-1)?.id ?? current.root;
    history.replaceState(null, "", `#${current.id}`);
    const sent = send(current, parent, written, state.only);
    toEnd();
    await sent;
  },
  stop: () => stop(state.current),
  again: (node) => again(state.current, node, (id) => forget(removeNode(state.current, id))),
  askOne: (node, only) => askOne(state.current, node, only),
  show(id) {
    choose(state.current, id);
    altered(state.current);
    document.querySelector(`[data-id="${id}"] .versions button:not(:disabled)`)?.focus({ preventScroll: true });
  },
  async editQuestion(node, text) {
    const { current } = state;
    if (!text.trim() && !node.files) return;
    const only = node.pair?.map((id) => current.nodes[id]?.only).find((expert) => expert !== undefined) ?? null;
    const question = addNode(current, node.parent, { role: "user", text: text.trim(), ...(node.files ? { files: node.files } : {}) });
    await askAll(current, question, only);
  },
  editAnswer(node, text) {
    addNode(state.current, node.parent, { role: "assistant", text, finish: "edited" });
    altered(state.current);
    focusComposer();
  },
  editLast() {
    const questions = document.querySelectorAll("article.question");
    questions[questions.length - 1]?.querySelector('button[aria-label="Edit"]').click();
  },
  removeMessage(id) {
    const { current } = state;
    const before = structuredClone(current.nodes);
    stop(current);
    const gone = removeNode(current, id);
    altered(current);
    const traces = setTimeout(() => forget(gone), FORGET_AFTER);
    toast("The message and what followed are deleted.", "Undo", () => { clearTimeout(traces); current.nodes = before; altered(current); });
  },
  async removeConversation(conversation) {
    state.gone.add(conversation.id);
    stop(conversation);
    state.conversations.delete(conversation.id);
    await store.remove("conversations", [conversation.id]);
    if (conversation === state.current) open(null);
    else showList();
    const traces = setTimeout(() => forget(Object.keys(conversation.nodes)), FORGET_AFTER);
    toast(`“${conversation.title || "Untitled"}” is deleted.`, "Undo", () => { clearTimeout(traces); state.gone.delete(conversation.id); keep(conversation).then(() => open(conversation.id)); });
  },
  rename(conversation, title) {
    conversation.title = title;
    altered(conversation);
  },
  settingsChanged() {
    const { current } = state;
    clearTimeout(settingsTimer);
    if (chosenPath(current).length) settingsTimer = setTimeout(() => keep(current), 400);
  },
  chooseModel(id) {
    state.modelId = id;
    preference("model", id);
    toast(`${id} answers from now on; it may have to be loaded first.`);
    connect();
  },
  async wantKey(why) {
    const key = await askKey(why);
    if (key) { useKey(key); connect(); }
    else showBanner(why, "Enter a key", () => actions.wantKey(why));
  },
});

const forget = (ids) => { ids.forEach((id) => state.traces.delete(id)); return store.remove("traces", ids); };

/** Ask the server what the model is; goes on asking while it does not answer. With `aloud` that is said at the top. */
async function connect(aloud = true) {
  try {
    state.modelIds = await models();
    if (!state.modelIds.includes(state.modelId)) state.modelId = state.modelIds.includes(preference("model")) ? preference("model") : state.modelIds[0] ?? null;
    state.model = await describe(state.modelIds.length > 1 ? state.modelId : null);
    useModel(state.model);
    if (state.only >= state.model.nExpert) state.only = null;
    showBanner();
    showAll();
    showSettings();
  } catch (error) {
    const said = error instanceof ServerError ? error.message : "The server's answer could not be read: it is perhaps not moe-gguf serve.";
    if (error.wants === "key") return actions.wantKey(said);
    if (aloud) showBanner(said, "Try now", () => connect());
    clearTimeout(connect.timer);
    connect.timer = setTimeout(connect, ASK_AGAIN, aloud);
  }
}

/** Take over what another tab has kept since. */
async function refresh() {
  if (document.hidden) return;
  for (const kept of await store.all("conversations")) {
    const known = state.conversations.get(kept.id);
    if (known && (known.updated >= kept.updated || isBusy(known))) continue;
    state.conversations.set(kept.id, kept);
    if (kept.id === state.current.id) state.current = kept;
  }
  showAll();
}

async function start() {
  startLook();
  const lasting = await store.openStore();
  for (const conversation of await store.all("conversations")) state.conversations.set(conversation.id, conversation);
  await loadPresets();
  state.current = newConversation();
  makeSidebar();
  makeComposer();
  startKeys();
  document.getElementById("scroll").addEventListener("scroll", showJump, { passive: true });
  document.addEventListener("visibilitychange", refresh);
  window.addEventListener("hashchange", () => { const id = location.hash.slice(1); if (id !== state.current.id && state.conversations.has(id)) open(id); });
  const wanted = location.hash.slice(1);
  open(state.conversations.has(wanted) ? wanted : null);
  if (!lasting) toast("This browser keeps nothing here: conversations last until the page is closed.");
  document.body.dataset.ready = "";
  await connect();
}

actions.connect = connect;
start();
