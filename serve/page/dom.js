// Elements and icons, made without any markup from strings.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: properties by name, `data` and `style` as objects, `on` for listeners, aria-… and others as attributes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) made.addEventListener(event, heard);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "style") for (const [key, set] of Object.entries(value)) made.style.setProperty(key, set);
    else if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const PATHS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  redo: "M20 11a8 8 0 1 0-2.3 6.2M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1.1 1.1M17.3 17.3l1.1 1.1M5.6 18.4l1.1-1.1M17.3 6.7l1.1-1.1",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  clip: "M8 12.5l6-6a3 3 0 0 1 4.2 4.2l-8 8a5 5 0 0 1-7-7l7.5-7.6",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12M15.5 15.5L20 20",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  down: "M12 5v13M6 12.5l6 6 6-6",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  fork: "M7 5v6a4 4 0 0 0 4 4h6M14 12l3 3-3 3M7 11v8",
  file: "M7 4h7l4 4v12H7zM14 4v4h4",
  keyboard: "M3 7h18v10H3zM7 14h10M7 10.5h.01M12 10.5h.01M17 10.5h.01",
  share: "M5 19V9M12 19V5M19 19v-7",
};

/** Make an icon that screen readers pass over. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Make an element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Make a button with an icon and a name that is spoken, and shown when the pointer rests on it. */
export function iconButton(name, label, act, properties = {}) {
  return el("button", { type: "button", className: "icon-button", title: label, "aria-label": label, on: { click: act }, ...properties }, icon(name));
}

/** Say something to who listens to the page, once. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Show a line at the bottom for a while; with `act`, a button that undoes or goes on. */
export function toast(text, action = null, act = null, seconds = 6) {
  const line = el("div", { className: "toast" }, el("span", {}, text));
  if (action) line.append(el("button", { type: "button", on: { click: () => { line.remove(); act(); } } }, action));
  document.getElementById("toasts").append(line);
  setTimeout(() => line.remove(), seconds * 1000);
}

/** Put text on the clipboard; where the browser's way is closed (no HTTPS), the old way. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
