// What the page knows now, in one place. Views read it and call `actions`; app.js and answering.js fill them in.

export const state = {
  model: null, // what describe() returned
  modelIds: [],
  modelId: null,
  conversations: new Map(),
  current: null, // a conversation; kept from its first message on
  running: new Map(), // id of an answer → AbortController
  traces: new Map(), // id of an answer → Trace
  gone: new Set(), // ids of conversations that were deleted; what still ends in them is not kept
  only: null, // the expert that answers alone beside the mixture, or null
};

export const actions = {};

/** Read or set a preference of this browser, a string. */
export function preference(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return value ?? null;
  }
}

/** Tell whether an answer of the conversation is being written. */
export const isBusy = (conversation) => Object.keys(conversation.nodes).some((id) => state.running.has(id));
