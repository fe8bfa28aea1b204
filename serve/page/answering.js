// Answers: asked for, streamed into the tree, stopped, asked for again.

import { announce, toast } from "./dom.js";
import { answer, ServerError } from "./api.js";
import { actions, state } from "./state.js";
import * as store from "./store.js";
import { addLayers, Trace } from "./strips.js";
import { addNode, asMessages, pathTo, titleOf } from "./tree.js";

const KEEP_EVERY = 1500; // ms
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "seed"];

/** Keep a conversation in the browser; says so when there is no room. */
export async function keep(conversation) {
  if (state.gone.has(conversation.id)) return;
  conversation.updated = Date.now();
  state.conversations.set(conversation.id, conversation);
  if (!(await store.put("conversations", conversation.id, conversation))) {
    toast("The browser has no room left: this conversation will be gone after a reload. Export it, or delete others.");
  }
}

async function keepTrace(node) {
  const trace = state.traces.get(node.id);
  if (trace?.tokens.length) await store.put("traces", node.id, trace.kept());
}

/** Return an answer's tokens, from the browser's store if need be; without any when they were not kept. */
export async function traceOf(node) {
  if (!state.traces.has(node.id)) {
    const kept = await store.get("traces", node.id).catch(() => undefined);
    if (!state.traces.has(node.id)) state.traces.set(node.id, new Trace(kept));
  }
  return state.traces.get(node.id);
}

/** Send a question; beside the mixture's answer one expert's own when `only` is one. */
export async function send(conversation, parent, { text, files }, only = null) {
  const question = addNode(conversation, parent, { role: "user", text, ...(files?.length ? { files } : {}) });
  conversation.title ||= titleOf(text || files[0].name);
  await askAll(conversation, question, only);
}

/** Ask for the answers of a question. */
export async function askAll(conversation, question, only = null) {
  const asked = [begin(conversation, question)];
  if (only !== null) {
    asked.push(begin(conversation, question, { only }));
    question.pair = asked.map(({ id }) => id);
    question.chosen = question.pair[0];
  }
  await Promise.all(asked.map((node) => stream(conversation, node)));
}

/** Ask again, as a new version beside the answer; an answer that failed without a word is replaced. */
export async function again(conversation, node, remove) {
  const question = conversation.nodes[node.parent];
  const place = question.pair?.indexOf(node.id) ?? -1;
  const { pair } = question;
  if (node.error && !node.text) remove(node.id);
  const made = begin(conversation, question, node.only === undefined ? {} : { only: node.only });
  if (place >= 0) question.pair = pair.map((id, index) => (index === place ? made.id : id));
  await stream(conversation, made);
}

/** Let one expert answer the same question, beside an answer that is there. */
export async function askOne(conversation, node, only) {
  const question = conversation.nodes[node.parent];
  const made = begin(conversation, question, { only });
  question.pair = [node.id, made.id];
  await stream(conversation, made);
}

/** Stop the answers of a conversation that are being written. */
export function stop(conversation) {
  for (const id of Object.keys(conversation.nodes)) state.running.get(id)?.abort();
}

function begin(conversation, question, fields = {}) {
  const names = state.model?.named ? { names: state.model.names } : {};
  const node = addNode(conversation, question.id, { role: "assistant", ...names, ...fields });
  state.running.set(node.id, new AbortController());
  state.traces.set(node.id, new Trace());
  return node;
}

async function stream(conversation, node) {
  const controller = state.running.get(node.id);
  const kept = keep(conversation);
  actions.changed(conversation);
  announce("The model is answering.");
  try {
    await kept;
    await receive(conversation, node, controller.signal);
  } catch (error) {
    if (controller.signal.aborted) node.finish = "stopped";
    else fail(node, error);
  } finally {
    state.running.delete(node.id);
    await Promise.all([keep(conversation), keepTrace(node)]);
    actions.changed(conversation);
    announce(node.error ?? spoken(node));
  }
}

function fail(node, error) {
  if (!(error instanceof ServerError)) console.error(error);
  node.error = error instanceof ServerError ? error.message : "The page could not read the server's answer.";
  if (error.wants === "key") actions.wantKey(error.message);
  if (error.wants === "server") actions.connect(false);
}

const spoken = ({ text, finish }) => (finish === "stopped" ? "Stopped." : text.length < 800 ? `Answer: ${text}` : `The answer is complete: ${text.split(/\s+/).length} words.`);

async function receive(conversation, node, signal) {
  const nExpert = state.model?.nExpert ?? 0;
  const trace = state.traces.get(node.id);
  const begun = performance.now();
  let [first, kept, nTokens] = [0, begun, 0];
  for await (const piece of answer(bodyOf(conversation, node), signal)) {
    if (piece.thoughts) node.thoughts = (node.thoughts ?? "") + piece.thoughts;
    const start = node.text.length;
    node.text += piece.text;
    if (piece.tokens.length) {
      // Tokens of thoughts have no place in the answer's text: they count for the shares only.
      if (piece.text) trace.add(piece.tokens, start, node.text.length);
      if (nExpert > 1) addShares(node, piece.tokens, nExpert);
      nTokens += piece.tokens.length;
    } else if (piece.text || piece.thoughts) nTokens += 1;
    if (piece.layers) node.layers = piece.layers;
    if (piece.finish) node.finish = piece.finish;
    const now = performance.now();
    if (nTokens && !first) first = now;
    if (piece.usage) nTokens = piece.usage.completion_tokens ?? nTokens;
    node.stats = { tokens: nTokens, seconds: (now - (first || now)) / 1000, wait: ((first || now) - begun) / 1000 };
    actions.grew(conversation, node);
    if (now - kept > KEEP_EVERY) {
      kept = now;
      keep(conversation);
      keepTrace(node);
    }
  }
  node.finish ??= "stop";
}

function addShares(node, tokens, nExpert) {
  node.shares ??= new Array(nExpert).fill(0);
  for (const { e, w } of tokens) e?.forEach((expert, place) => { if (expert < nExpert) node.shares[expert] += w[place] ?? 0; });
  if (tokens.some(({ l }) => l)) addLayers((node.layers ??= []), tokens, nExpert);
}

function bodyOf({ settings, ...conversation }, node) {
  const body = { messages: asMessages(pathTo(conversation, node.parent), settings.system) };
  if (state.modelId) body.model = state.modelId;
  for (const name of SAMPLING) if (typeof settings[name] === "number") body[name] = settings[name];
  const stops = String(settings.stop ?? "").split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (settings.probabilities !== false) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if ((state.model?.nExpert ?? 0) > 1) body.x_experts = "layers";
  if (node.only !== undefined) body.x_only_expert = node.only;
  return body;
}
