// The server, as the page sees it: what the model is, and answers piece by piece.

let key = null;
try { key = sessionStorage.getItem("key"); } catch { /* asked for again after a reload */ }

/** A failure, as a sentence for the person; `wants` is what would help: a "key", or the "server" itself. */
export class ServerError extends Error {
  constructor(sentence, wants = null) {
    super(sentence);
    this.wants = wants;
  }
}

/** Use an API key until the tab is closed. */
export function useKey(given) {
  key = given;
  try { sessionStorage.setItem("key", given); } catch { /* it lives as long as the page */ }
}

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is moe-gguf serve still running?", "server");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let said = "";
  try {
    const { error } = await response.json();
    said = typeof error === "string" ? error : error?.message ?? "";
  } catch { /* no sentence came with it */ }
  if (response.status === 401 || response.status === 403) return new ServerError(sentence(said) || "The server wants an API key.", "key");
  if (response.status === 429 || response.status === 503) {
    const wait = response.headers.get("Retry-After");
    return new ServerError(`${sentence(said) || "The server is busy."} ${wait ? `Try again in ${wait} s.` : "Try again in a moment."}`);
  }
  return new ServerError(sentence(said) || `The server answered ${response.status} ${response.statusText}.`);
}

/** Make a sentence of what a server says: a capital letter, a full stop. */
export function sentence(said) {
  const line = String(said ?? "").trim().slice(0, 600);
  return line && line[0].toUpperCase() + line.slice(1) + (/[.!?…]$/.test(line) ? "" : ".");
}

/** Return what the model is: {name, nExpert, nExpertUsed, nLayer, names, nParams, nParamsActive, nContext, defaults}. */
export async function describe(model = null) {
  const props = await (await ask(model ? `props?model=${encodeURIComponent(model)}` : "props")).json();
  const own = props.x_model ?? {};
  const generation = props.default_generation_settings ?? {};
  const nExpert = own.n_expert ?? 0;
  const names = Array.isArray(own.expert_names) && own.expert_names.length === nExpert ? own.expert_names : null;
  return {
    name: own.name ?? props.model_alias ?? "the model",
    nExpert, nExpertUsed: own.n_expert_used ?? 0, nLayer: own.n_layer ?? 0,
    names: names ?? Array.from({ length: nExpert }, (_, e) => `Expert ${e}`), named: Boolean(names),
    nParams: own.n_params, nParamsActive: own.n_params_active,
    nContext: own.n_ctx ?? generation.n_ctx, defaults: generation.params ?? {},
  };
}

/** Return the ids of the models that the server has. */
export async function models() {
  const { data } = await (await ask("v1/models")).json();
  return (data ?? []).map(({ id }) => id);
}

/**
 * Ask for an answer and yield its pieces: {text, thoughts, tokens, finish, usage, layers}.
 * A token: {t: text, p: log probability, top: [[text, log probability]], e: experts, w: weights, l: layers}.
 */
export async function* answer(body, signal) {
  const response = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(sentence(chunk.error.message) || "The server broke off.");
    yield piece(chunk);
  }
  throw new ServerError("The connection broke off before the answer was complete.", "server");
}

function piece(chunk) {
  const choice = chunk.choices?.[0];
  return {
    text: choice?.delta?.content ?? "",
    thoughts: choice?.delta?.reasoning_content ?? "",
    tokens: tokensOf(choice?.logprobs?.content ?? [], chunk.x_experts ?? []),
    layers: chunk.x_experts_layers ?? null,
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

function tokensOf(probabilities, spoken) {
  return Array.from({ length: Math.max(probabilities.length, spoken.length) }, (_, index) => {
    const [likely, routed] = [probabilities[index], spoken[index]];
    const token = { t: likely?.token ?? (typeof routed?.token === "string" ? routed.token : "") };
    if (likely) Object.assign(token, { p: likely.logprob, top: (likely.top_logprobs ?? []).map(({ token: t, logprob }) => [t, logprob]) });
    if (routed) Object.assign(token, { e: routed.experts ?? [], w: routed.weights ?? [], l: routed.layers });
    return token;
  });
}

/** Yield the data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The connection to the server broke off.", "server");
      }
      if (read.done) return;
      const lines = (held + read.value).split(/\r?\n/);
      held = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
