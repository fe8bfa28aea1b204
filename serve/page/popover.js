// A word that was clicked: its tokens, how likely they were, what else could have stood there, and who said it.

import { el, iconButton } from "./dom.js";
import { gradient, inWords } from "./speakers.js";

let open = null;

/** Close what is open; the focus goes back to where it was. */
export function closePopover(refocus = true) {
  if (!open) return;
  const { element, word, before, forget } = open;
  open = null;
  forget();
  word.classList.remove("asked");
  element.remove();
  if (refocus && before?.isConnected) before.focus({ preventScroll: true });
}

/** Show a word's tokens. `words` are all words of the answer, for the arrows. */
export function showWord(word, words, trace, nExpert, names) {
  const before = open?.before ?? document.activeElement;
  closePopover(false);
  const place = words.indexOf(word);
  const go = (step) => words[place + step] && showWord(words[place + step], words, trace, nExpert, names);
  const tokens = trace.tokens.slice(word.first, word.last);
  const element = el("div", { className: "popover", role: "dialog", "aria-label": `Tokens of “${word.textContent}”`, tabIndex: -1 },
    el("div", { className: "popover-head" },
      iconButton("left", "Word before", () => go(-1), { disabled: place <= 0 }),
      el("strong", {}, word.textContent),
      iconButton("right", "Next word", () => go(1), { disabled: place >= words.length - 1 }),
      iconButton("close", "Close", () => closePopover())),
    nExpert > 1 ? speakers(trace.shares(word.first, word.last, nExpert), names) : "",
    tokens.map((token) => tokenRows(token)));
  element.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
    else if (event.key === "Escape") closePopover();
    else return;
    event.stopPropagation();
    event.preventDefault();
  });
  word.classList.add("asked");
  document.body.append(element);
  beside(element, word);
  const outside = (event) => { if (!element.contains(event.target)) closePopover(false); };
  const scrolled = () => beside(element, word);
  document.addEventListener("pointerdown", outside, true);
  document.addEventListener("scroll", scrolled, true);
  open = { element, word, before, forget: () => { document.removeEventListener("pointerdown", outside, true); document.removeEventListener("scroll", scrolled, true); } };
  element.focus({ preventScroll: true });
}

function beside(element, word) {
  const [at, width, height] = [word.getBoundingClientRect(), element.offsetWidth, element.offsetHeight];
  const left = Math.max(8, Math.min(at.left + at.width / 2 - width / 2, innerWidth - width - 8));
  const below = at.bottom + 8 + height < innerHeight;
  element.style.left = `${left}px`;
  element.style.top = `${Math.max(8, below ? at.bottom + 8 : at.top - height - 8)}px`;
}

/** Write a token so that its blanks and line ends can be seen. */
const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";

function tokenRows({ t, p, top }) {
  if (p === undefined) return el("p", { className: "faint" }, "Probabilities were not asked for; they are switched on in the conversation's settings.");
  const rows = [...(top ?? [])];
  if (!rows.some(([text]) => text === t)) rows.push([t, p]);
  return el("ol", { className: "candidates", "aria-label": `Token ${visible(t)}: ${percent(p)}` }, rows.map(([text, logprob]) =>
    el("li", { className: text === t ? "taken" : "", "aria-current": text === t ? "true" : null },
      el("code", {}, visible(text)),
      el("span", { className: "track" }, el("span", { className: "fill", style: { width: `${(Math.exp(logprob) * 100).toFixed(1)}%` } })),
      el("span", { className: "number" }, percent(logprob)))));
}

function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return value >= 99.95 ? "100 %" : value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
}

function speakers(shares, names) {
  return el("div", { className: "popover-speakers" }, el("span", { className: "bar", style: { "background-image": gradient(shares) } }), el("p", {}, inWords(shares, names) || "No expert was recorded."));
}
