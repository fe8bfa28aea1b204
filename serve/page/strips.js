// A coloured strip under each word: which tokens made it, and which experts made them.

import { gradient } from "./speakers.js";

/** The tokens of an answer with the places of their text: filled while it streams, or from what was kept. */
export class Trace {
  constructor(kept = null) {
    this.tokens = kept?.tokens ?? [];
    this.ends = kept?.ends ?? [];
    this.created = kept?.created ?? Date.now();
  }

  /** Add the tokens of a piece whose text ends at `end`: by their own texts where those add up, else in equal parts. */
  add(tokens, start, end) {
    const lengths = tokens.map(({ t }) => t.length);
    const exact = lengths.reduce((sum, length) => sum + length, 0) === end - start;
    let at = start;
    tokens.forEach(({ l, ...token }, index) => {
      at = exact ? at + lengths[index] : start + Math.round(((end - start) * (index + 1)) / tokens.length);
      this.tokens.push(token);
      this.ends.push(at);
    });
  }

  /** Return [first, last) of the tokens whose text overlaps with [start, end) of the answer. */
  range(start, end) {
    let low = 0;
    for (let high = this.ends.length; low < high;) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= start) low = middle + 1;
      else high = middle;
    }
    let last = low;
    while (last < this.ends.length && (last ? this.ends[last - 1] : 0) < end) last += 1;
    return [low, last];
  }

  /** Return the shares of each expert over some tokens. */
  shares(first, last, nExpert) {
    const sums = new Array(nExpert).fill(0);
    for (const { e, w } of this.tokens.slice(first, last)) e?.forEach((expert, place) => { if (expert < nExpert) sums[expert] += w[place] ?? 0; });
    return sums;
  }

  /** Return what is kept in the browser. */
  kept() {
    return { tokens: this.tokens, ends: this.ends, created: this.created };
  }
}

/** Add up the layers of tokens: [layer][expert]. */
export function addLayers(sums, tokens, nExpert) {
  for (const { l } of tokens) {
    l?.forEach((layer, index) => {
      sums[index] ??= new Array(nExpert).fill(0);
      for (const [expert, weight] of layer) if (expert < nExpert) sums[index][expert] += weight;
    });
  }
}

const [NEAR, FAR] = [160, 4000]; // characters of the source that a short word, or a longer one, may be ahead

/**
 * Wrap the words of a rendered block and paint their strips.
 *
 * Rendered words come in the order of the source, with its marks left out, so each is looked for from where the last
 * one ended; one that is not found near (an entity, part of a formula) gets no strip.
 */
export function paint({ element, source, start }, trace, nExpert) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT, {
    acceptNode: (node) => (node.parentElement.closest(".code-head, .tex, button") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT),
  });
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let from = 0;
  for (const node of nodes) {
    const parts = node.data.split(/(\s+)/);
    if (parts.every((part) => !part.trim())) continue;
    const made = parts.map((part) => {
      if (!part.trim()) return part;
      const at = source.indexOf(part, from);
      if (at < 0 || at - from > (part.length < 4 ? NEAR : FAR)) return part;
      from = at + part.length;
      return word(part, ...trace.range(start + at, start + from), trace, nExpert);
    });
    node.replaceWith(...made.filter((part) => part !== ""));
  }
}

function word(text, first, last, trace, nExpert) {
  const made = document.createElement("span");
  made.className = "word";
  made.textContent = text;
  made.first = first;
  made.last = last;
  if (nExpert > 1) made.style.setProperty("--strip", gradient(trace.shares(first, last, nExpert)));
  return made;
}
