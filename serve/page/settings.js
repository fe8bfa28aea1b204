// What a conversation asks of the model: a system prompt, how tokens are chosen, and presets of both.

import { el, iconButton, toast } from "./dom.js";
import { actions, state } from "./state.js";
import * as store from "./store.js";
import { plainSettings } from "./tree.js";

// name, label, least, most, step, what it does; what is empty is left to the server
const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the likeliest token; more is freer"],
  ["top_p", "Top p", 0, 1, 0.01, "only the likeliest tokens that make up this part"],
  ["top_k", "Top k", 0, 200, 1, "only this many of the likeliest tokens; 0: all"],
  ["min_p", "Min p", 0, 1, 0.01, "only tokens at least this likely, next to the likeliest"],
  ["repeat_penalty", "Repeat penalty", 1, 2, 0.01, "1 is off"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.05, "0 is off"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.05, "0 is off"],
];
const BUILT_IN = {
  "As the model recommends": {},
  Exact: { temperature: 0 },
  Balanced: { temperature: 0.7, top_p: 0.95, min_p: 0.05 },
  Inventive: { temperature: 1.1, top_p: 1, min_p: 0.05 },
};
const panel = () => document.getElementById("settings");
let own = {};

/** Read the presets that were saved here. */
export async function loadPresets() {
  own = (await store.get("settings", "presets").catch(() => null)) ?? {};
}

/** Open or close the panel. */
export function openSettings(open = panel().hidden) {
  panel().hidden = !open;
  document.body.classList.toggle("with-settings", open);
  document.getElementById("toggle-settings")?.setAttribute("aria-expanded", String(open));
  if (open) {
    showSettings();
    panel().querySelector("textarea").focus();
  } else if (panel().contains(document.activeElement)) document.getElementById("toggle-settings").focus();
}

function change(name, value) {
  const { settings } = state.current;
  if (value === "" || value === undefined || Number.isNaN(value)) delete settings[name];
  else settings[name] = value;
  actions.settingsChanged();
}

/** Show the current conversation's settings. */
export function showSettings() {
  if (panel().hidden) return;
  const { settings } = state.current;
  const system = el("textarea", { id: "system", rows: 6, value: settings.system ?? "", placeholder: "What the model should be and know before the first message", on: { input: () => change("system", system.value) } });
  panel().replaceChildren(
    el("div", { className: "panel-head" }, el("h2", {}, "This conversation"), iconButton("close", "Close the settings", () => openSettings(false))),
    el("div", { className: "panel-body" },
      presetRow(),
      el("div", { className: "field" }, el("label", { htmlFor: "system" }, "System prompt"), system),
      el("h3", {}, "How tokens are chosen"),
      NUMBERS.map((row) => slider(...row)),
      el("div", { className: "two" },
        entry("max_tokens", "Longest answer", "tokens", 1),
        entry("seed", "Seed", "random", 0)),
      stopField(),
      checkbox(),
    ));
}

function presetRow() {
  const choice = el("select", { id: "preset" }, el("option", { value: "" }, "Choose…"),
    el("optgroup", { label: "Built in" }, Object.keys(BUILT_IN).map((name) => el("option", { value: `built-in ${name}` }, name))),
    Object.keys(own).length ? el("optgroup", { label: "Yours" }, Object.keys(own).sort().map((name) => el("option", { value: `own ${name}` }, name))) : "");
  const chosen = () => choice.value.slice(choice.value.indexOf(" ") + 1);
  choice.addEventListener("change", () => {
    if (!choice.value) return;
    const mine = choice.value.startsWith("own");
    const { system, probabilities } = state.current.settings;
    const kept = mine ? {} : { ...(system ? { system } : {}), ...(probabilities === undefined ? {} : { probabilities }) };
    state.current.settings = { ...kept, ...(mine ? own : BUILT_IN)[chosen()] };
    const { value } = choice;
    actions.settingsChanged();
    showSettings();
    document.getElementById("preset").value = value;
    document.getElementById("preset").focus();
    document.getElementById("forget").hidden = !mine;
  });
  const name = el("input", { id: "preset-name", placeholder: "Name for these settings", "aria-label": "Name of the preset", maxLength: 40 });
  const save = async (event) => {
    event.preventDefault();
    if (!name.value.trim()) return name.focus();
    own[name.value.trim()] = plainSettings(state.current.settings);
    await savePresets(`Saved as “${name.value.trim()}”.`);
  };
  const forget = el("button", { type: "button", id: "forget", hidden: true, on: { click: async () => { const gone = chosen(); delete own[gone]; await savePresets(`“${gone}” is deleted.`); } } }, "Delete this preset");
  return el("div", { className: "field" }, el("label", { htmlFor: "preset" }, "Preset"), choice, forget,
    el("form", { className: "row", on: { submit: save } }, name, el("button", { type: "submit" }, "Save")));
}

async function savePresets(said) {
  await store.put("settings", "presets", own);
  showSettings();
  toast(said);
}

function slider(name, label, min, max, step, help) {
  const given = state.current.settings[name];
  const usual = state.model?.defaults?.[name];
  const digits = step < 1 ? 2 : 0;
  const plain = Number.isFinite(usual) ? String(Number(usual.toFixed(digits))) : "";
  const number = el("input", { type: "number", id: name, min, max, step: "any", value: given ?? "", placeholder: plain, "aria-describedby": `${name}-help` });
  const range = el("input", { type: "range", min, max, step, value: given ?? usual ?? min, tabIndex: -1, "aria-hidden": "true" });
  number.addEventListener("input", () => {
    const value = number.value === "" ? "" : Math.min(max, Math.max(min, Number(number.value)));
    range.value = value === "" ? usual ?? min : value;
    change(name, value);
  });
  range.addEventListener("input", () => { number.value = range.value; change(name, Number(range.value)); });
  return el("div", { className: "field slider" }, el("label", { htmlFor: name }, label), number, range, el("p", { className: "faint", id: `${name}-help` }, help));
}

function entry(name, label, placeholder, least) {
  const field = el("input", { type: "number", id: name, min: least, step: 1, value: state.current.settings[name] ?? "", placeholder, inputMode: "numeric" });
  field.addEventListener("input", () => change(name, field.value === "" ? "" : Math.max(least, Math.trunc(Number(field.value)))));
  return el("div", { className: "field" }, el("label", { htmlFor: name }, label), field);
}

function stopField() {
  const field = el("textarea", { id: "stop", rows: 2, value: state.current.settings.stop ?? "", on: { input: () => change("stop", field.value) } });
  return el("div", { className: "field" }, el("label", { htmlFor: "stop" }, "Stop at these texts, one a line"), field);
}

function checkbox() {
  const box = el("input", { type: "checkbox", id: "probabilities", checked: state.current.settings.probabilities !== false, on: { change: () => change("probabilities", box.checked) } });
  return el("div", { className: "check" }, box, el("label", { htmlFor: "probabilities" }, "Keep the probabilities of tokens (click a word to see them)"));
}
