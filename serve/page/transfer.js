// Conversations to a file and back.

import { el } from "./dom.js";
import { state } from "./state.js";
import * as store from "./store.js";
import { checkedConversation, fromMessages } from "./tree.js";

const FORMAT = "moe-gguf conversations";

/** Save conversations, with the tokens of their answers, as a JSON file. */
export async function exportConversations(conversations, name = "conversations") {
  const traces = {};
  for (const { nodes } of conversations) {
    for (const id of Object.keys(nodes)) {
      const kept = state.traces.get(id)?.kept() ?? (await store.get("traces", id));
      if (kept?.tokens.length) traces[id] = kept;
    }
  }
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations, traces }, null, 1);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: address, download: `${name.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Read conversations from a file's text: ours, or messages as `moe-gguf chat` saves them. Returns how many came. */
export async function importConversations(text) {
  const document = JSON.parse(text);
  const messages = Array.isArray(document) ? document : document?.messages;
  const found = [];
  if (Array.isArray(messages)) found.push({ conversation: fromMessages(messages), names: new Map() });
  else if (document?.format === FORMAT && Array.isArray(document.conversations)) found.push(...document.conversations.map(checkedConversation));
  if (!found.length || found.some((each) => !each?.conversation)) throw new TypeError("no conversations");
  for (const { conversation, names } of found) {
    state.conversations.set(conversation.id, conversation);
    await store.put("conversations", conversation.id, conversation);
    for (const [old, now] of names) {
      const kept = checkedTrace(document.traces?.[old]);
      if (kept) await store.put("traces", now, kept);
    }
  }
  return found.map(({ conversation }) => conversation);
}

const isToken = (token) => typeof token?.t === "string" && [token.e, token.w].every((list) => list === undefined || (Array.isArray(list) && list.every(Number.isFinite)))
  && (token.p === undefined || Number.isFinite(token.p)) && (token.top === undefined || (Array.isArray(token.top) && token.top.every((pair) => typeof pair?.[0] === "string" && Number.isFinite(pair[1]))));

function checkedTrace(kept) {
  if (!Array.isArray(kept?.tokens) || !Array.isArray(kept.ends) || kept.tokens.length !== kept.ends.length) return null;
  if (!kept.tokens.every(isToken) || !kept.ends.every(Number.isFinite)) return null;
  return { tokens: kept.tokens, ends: kept.ends, created: Number.isFinite(kept.created) ? kept.created : Date.now() };
}
