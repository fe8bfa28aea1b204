// What the browser keeps: conversations, and beside them the tokens of each answer, which are large and can be spared.
//
// Where there is no IndexedDB (private windows of some browsers), all lives as long as the page does.

let database = null;
const memory = { conversations: new Map(), traces: new Map(), settings: new Map() };
const STORES = Object.keys(memory);

const finished = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** Open what is kept. Returns whether it will outlive the page. */
export async function openStore() {
  try {
    const request = indexedDB.open("moe-gguf", 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name));
    database = await finished(request);
    database.onversionchange = () => database.close();
    navigator.storage?.persist?.().catch(() => {});
    return true;
  } catch {
    return false;
  }
}

const at = (name, mode) => database.transaction(name, mode).objectStore(name);

/** Return what is kept under a key, or undefined. */
export async function get(name, key) {
  return database ? finished(at(name, "readonly").get(key)) : memory[name].get(key);
}

/** Return all values of a store. */
export async function all(name) {
  return database ? finished(at(name, "readonly").getAll()) : [...memory[name].values()];
}

/** Forget keys. */
export async function remove(name, keys) {
  if (!database) return keys.forEach((key) => memory[name].delete(key));
  await complete(name, (store) => keys.forEach((key) => store.delete(key)));
}

/**
 * Keep a value. When the browser's room is used up, the tokens of old answers go first, and texts stay.
 * Returns false when there is no room even so.
 */
export async function put(name, key, value) {
  if (!database) return Boolean(memory[name].set(key, structuredClone(value)));
  for (let attempt = 0; attempt < 4; attempt += 1) {
    try {
      await complete(name, (store) => store.put(value, key));
      return true;
    } catch (error) {
      if (error?.name !== "QuotaExceededError" || !(await spareTraces())) return false;
    }
  }
  return false;
}

function complete(name, act) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(name, "readwrite");
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
    act(transaction.objectStore(name));
  });
}

/** Forget the older half of the answers' tokens. Returns whether there were any. */
async function spareTraces() {
  const [keys, traces] = await Promise.all([finished(at("traces", "readonly").getAllKeys()), all("traces")]);
  const order = keys.map((key, index) => [traces[index].created ?? 0, key]).sort((a, b) => a[0] - b[0]);
  if (!order.length) return false;
  await remove("traces", order.slice(0, Math.ceil(order.length / 2)).map(([, key]) => key));
  return true;
}
