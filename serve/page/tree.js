// A conversation is a tree of messages: editing or asking again adds a branch, and nothing is lost.
//
// conversation: {id, title, created, updated, settings, nodes: {id: node}, root}
// node: {id, parent, role, text, children: [id], chosen: id | null, created} and, where they apply,
//   files: [{name, text}]    what was attached to a question
//   thoughts, only: expert, names: [string], finish, error, shares: [number], layers: [[number]], stats: {tokens, seconds}   of an answer
//   pair: [id, id]           of a question: two of its answers that stand side by side

const fresh = () => (crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join(""));

/** Begin a conversation with the given settings. */
export function newConversation(settings = {}) {
  const now = Date.now();
  const root = { id: "root", parent: null, role: "root", text: "", children: [], chosen: null, created: now };
  return { id: fresh(), title: "", created: now, updated: now, settings: { ...settings }, nodes: { root }, root: "root" };
}

/** Add a message below another one and choose it. */
export function addNode(conversation, parent, fields) {
  const node = { id: fresh(), parent, children: [], chosen: null, created: Date.now(), text: "", ...fields };
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  conversation.nodes[parent].chosen = node.id;
  return node;
}

/** Return the messages from the first one to the end of the branch that is chosen. */
export function chosenPath(conversation) {
  const path = [];
  let node = conversation.nodes[conversation.root];
  while (node.chosen && conversation.nodes[node.chosen]) {
    node = conversation.nodes[node.chosen];
    path.push(node);
  }
  return path;
}

/** Return the messages from the first one down to this one. */
export function pathTo(conversation, id) {
  const path = [];
  for (let node = conversation.nodes[id]; node && node.role !== "root"; node = conversation.nodes[node.parent]) path.unshift(node);
  return path;
}

/** Return all versions of a message, oldest first. */
export function versions(conversation, node) {
  return conversation.nodes[node.parent].children.map((id) => conversation.nodes[id]);
}

/** Choose the branch that a message lies on. */
export function choose(conversation, id) {
  for (let node = conversation.nodes[id]; node.parent; node = conversation.nodes[node.parent]) conversation.nodes[node.parent].chosen = node.id;
}

/** Take a message and all below it away. Returns the ids that went. */
export function removeNode(conversation, id) {
  const { parent } = conversation.nodes[id];
  const gone = [];
  const waiting = [id];
  while (waiting.length) {
    const next = waiting.pop();
    gone.push(next);
    waiting.push(...conversation.nodes[next].children);
    delete conversation.nodes[next];
  }
  const above = conversation.nodes[parent];
  above.children = above.children.filter((child) => child !== id);
  if (above.chosen === id) above.chosen = above.children.at(-1) ?? null;
  if (above.pair?.includes(id)) delete above.pair;
  return gone;
}

/** Return the answers of a question that stand side by side, when the chosen one is among them. */
export function sideBySide(conversation, question) {
  const pair = question.pair?.map((id) => conversation.nodes[id]).filter(Boolean) ?? [];
  return pair.length === 2 && question.pair.includes(question.chosen) ? pair : null;
}

/** Return the messages for the API: the system prompt first, attached files before the question's own words. */
export function asMessages(path, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, files } of path) messages.push({ role, content: withFiles(text, files) });
  return messages;
}

/** Return a question with its attached files, fenced by more backticks than any of them has in a row. */
export function withFiles(text, files = []) {
  const parts = files.map(({ name, text: content }) => {
    const longest = Math.max(2, ...(content.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${content.replace(/\n$/, "")}\n${fence}`;
  });
  return [...parts, text].filter(Boolean).join("\n\n");
}

/** Return a title for a conversation out of its first question. */
export function titleOf(text) {
  const line = text.replace(/[#*_`>]/g, "").replace(/\s+/g, " ").trim();
  return line.length > 60 ? `${line.slice(0, 57).replace(/\s+\S*$/, "")}…` : line;
}

/** Check a conversation from a file and return it as ours, or null: only known fields of the right types are taken. */
export function checkedConversation(given) {
  if (!given || typeof given !== "object" || !given.nodes || typeof given.nodes !== "object") return null;
  const made = newConversation(plainSettings(given.settings));
  made.title = text(given.title);
  made.created = number(given.created) ?? made.created;
  made.updated = number(given.updated) ?? made.updated;
  const names = new Map([[given.root, "root"]]);
  const order = [given.root];
  for (let at = 0; at < order.length; at += 1) {
    const source = given.nodes[order[at]];
    if (!source || !Array.isArray(source.children)) return null;
    for (const child of source.children) {
      const from = given.nodes[child];
      if (!from || names.has(child) || !["user", "assistant"].includes(from.role)) return null;
      names.set(child, addNode(made, names.get(order[at]), checkedFields(from)).id);
      order.push(child);
    }
  }
  for (const [old, now] of names) {
    const from = given.nodes[old];
    if (names.has(from.chosen)) made.nodes[now].chosen = names.get(from.chosen);
    if (Array.isArray(from.pair) && from.pair.length === 2 && from.pair.every((id) => names.has(id))) made.nodes[now].pair = from.pair.map((id) => names.get(id));
  }
  return { conversation: made, names };
}

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : undefined);
const numbers = (value) => (Array.isArray(value) && value.every(Number.isFinite) ? value : undefined);

function checkedFields(from) {
  const files = Array.isArray(from.files) ? from.files.map((file) => ({ name: text(file?.name), text: text(file?.text) })) : undefined;
  const fields = {
    role: from.role, text: text(from.text), created: number(from.created) ?? Date.now(), files,
    thoughts: text(from.thoughts) || undefined, only: Number.isInteger(from.only) ? from.only : undefined, finish: text(from.finish) || undefined,
    names: Array.isArray(from.names) && from.names.every((name) => typeof name === "string") ? from.names : undefined,
    shares: numbers(from.shares), layers: Array.isArray(from.layers) && from.layers.every(numbers) ? from.layers : undefined,
    stats: from.stats && Number.isFinite(from.stats.tokens) ? { tokens: from.stats.tokens, seconds: number(from.stats.seconds) ?? 0 } : undefined,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** Return the settings of a conversation that are plain values. */
export function plainSettings(given) {
  const plain = Object.entries(given ?? {}).filter(([name, value]) => /^[a-z_]{1,30}$/.test(name) && ["string", "number", "boolean"].includes(typeof value));
  return Object.fromEntries(plain);
}

/** Make a conversation of messages as `moe-gguf chat` saves them. */
export function fromMessages(messages) {
  const made = newConversation();
  let parent = "root";
  for (const message of messages) {
    const content = typeof message?.content === "string" ? message.content : "";
    if (message?.role === "system") made.settings.system = content;
    else if (message?.role === "user" || message?.role === "assistant") parent = addNode(made, parent, { role: message.role, text: content }).id;
  }
  made.title = titleOf(chosenPath(made)[0]?.text ?? "");
  return parent === "root" ? null : made;
}
