// The line at the top: which model answers, strips on or off, the theme, the way to the settings.

import { el, icon, iconButton } from "./dom.js";
import { openSettings } from "./settings.js";
import { openSidebar } from "./sidebar.js";
import { isMixture, legend } from "./speakers.js";
import { actions, preference, state } from "./state.js";

/** Show the header. */
export function showHeader() {
  const { model, modelIds } = state;
  const name = modelIds.length > 1
    ? el("select", { id: "model", "aria-label": "Model", on: { change: (event) => actions.chooseModel(event.target.value) } }, modelIds.map((id) => el("option", { value: id, selected: id === state.modelId }, id)))
    : el("span", { className: "model" }, model?.name ?? "");
  const strips = document.documentElement.dataset.strips !== "off";
  const parts = [iconButton("menu", "Conversations", () => openSidebar(), { id: "toggle-sidebar", "aria-expanded": String(document.body.classList.contains("with-sidebar")), "aria-controls": "sidebar" }), name];
  if (isMixture()) {
    parts.push(legend(), el("button", { type: "button", className: "strips-toggle", "aria-pressed": String(strips), title: "Strips under the words (Ctrl Shift X)", on: { click: toggleStrips } }, el("span", { className: "sample", "aria-hidden": "true" }), el("span", {}, "Strips")));
  } else parts.push(el("span", { className: "spring" }));
  const dark = document.documentElement.dataset.theme === "dark";
  parts.push(iconButton(dark ? "sun" : "moon", dark ? "Light theme" : "Dark theme", () => { setTheme(dark ? "light" : "dark"); document.getElementById("theme").focus(); }, { id: "theme" }),
    iconButton("sliders", "Settings of this conversation", () => openSettings(), { id: "toggle-settings", "aria-expanded": String(document.body.classList.contains("with-settings")), "aria-controls": "settings" }));
  document.getElementById("top").replaceChildren(...parts);
}

/** Switch the strips on or off. */
export function toggleStrips() {
  const off = document.documentElement.dataset.strips !== "off";
  document.documentElement.dataset.strips = off ? "off" : "on";
  preference("strips", off ? "off" : "on");
  showHeader();
  document.querySelector(".strips-toggle")?.focus();
}

function setTheme(theme, chosen = true) {
  document.documentElement.dataset.theme = theme;
  if (chosen) preference("theme", theme);
  showHeader();
}

/** Begin with what was chosen in this browser, and follow the system's theme until one is. */
export function startLook() {
  document.documentElement.dataset.strips = preference("strips") ?? "on";
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => preference("theme") ?? setTheme(matches ? "dark" : "light", false));
}

/** Show a line above the messages, with a button; or take it away. */
export function showBanner(text = null, action = null, act = null) {
  const banner = document.getElementById("banner");
  banner.hidden = !text;
  banner.replaceChildren(...(text ? [icon("redo"), el("span", {}, text), el("button", { type: "button", on: { click: act } }, action)] : []));
}
