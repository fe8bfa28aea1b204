// Keyboard shortcuts of the whole page.

import { focusComposer, isEmpty } from "./composer.js";
import { showKeys } from "./dialogs.js";
import { toggleStrips } from "./header.js";
import { closePopover } from "./popover.js";
import { openSettings } from "./settings.js";
import { startSearch } from "./sidebar.js";
import { actions, isBusy, state } from "./state.js";
import { chosenPath, versions } from "./tree.js";

const lastAnswer = () => chosenPath(state.current).findLast(({ role }) => role === "assistant");

function step(by) {
  const node = lastAnswer();
  const next = node && versions(state.current, node)[versions(state.current, node).indexOf(node) + by];
  if (next) actions.show(next.id);
}

const WITH_CONTROL = {
  k: startSearch,
  ",": () => openSettings(),
  O: () => actions.open(null),
  E: () => { const node = lastAnswer(); if (node && !isBusy(state.current)) actions.again(node); },
  X: () => toggleStrips(),
};

const writing = ({ target }) => target.closest?.("input, textarea, select, [contenteditable]");

function pressed(event) {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey;
  const act = control && !event.altKey ? WITH_CONTROL[event.shiftKey ? event.key.toUpperCase() : event.key] : null;
  if (act) {
    event.preventDefault();
    act();
  } else if (event.altKey && !control && (event.key === "ArrowLeft" || event.key === "ArrowRight") && (!writing(event) || isEmpty())) {
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  } else if (event.key === "Escape") {
    if (document.querySelector(".popover")) closePopover();
    else if (isBusy(state.current)) actions.stop();
    else if (!document.getElementById("settings").hidden) openSettings(false);
  } else if (!control && !event.altKey && !writing(event) && event.key === "/") {
    event.preventDefault();
    focusComposer();
  } else if (!control && !event.altKey && !writing(event) && event.key === "?") showKeys();
}

/** Listen for shortcuts. */
export function startKeys() {
  document.addEventListener("keydown", pressed);
}
