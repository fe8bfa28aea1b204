// TeX in Markdown: $…$ and \(…\) in a line, $$…$$ and \[…\] as a block; KaTeX is loaded when there is some.

let katex = null;

/** Teach a markdown-it about mathematics: elements `.tex` that hold the TeX as text until `typeset` replaces it. */
export function mathematics(md) {
  md.inline.ruler.before("escape", "tex", inline);
  md.block.ruler.before("fence", "tex_block", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
  md.renderer.rules.tex = (tokens, index) => `<span class="tex">${md.utils.escapeHtml(tokens[index].content)}</span>`;
  md.renderer.rules.tex_block = (tokens, index) => `<div class="tex tex-block">${md.utils.escapeHtml(tokens[index].content)}</div>\n`;
}

const INLINE = [["$$", "$$"], ["\\[", "\\]"], ["\\(", "\\)"], ["$", "$"]];

function inline(state, silent) {
  const { src, pos } = state;
  const [open, close] = INLINE.find(([mark]) => src.startsWith(mark, pos)) ?? [];
  if (!open) return false;
  const end = endOf(src, pos + open.length, close);
  if (end < 0) return false;
  const content = src.slice(pos + open.length, end);
  // "$5 and $6" is money: a formula begins and ends with a mark that touches it, and no digit follows.
  if (open === "$" && (/^\s|\s$|\n\s*\n/.test(content) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!content.trim()) return false;
  if (!silent) Object.assign(state.push("tex", "span", 0), { content, markup: open });
  state.pos = end + close.length;
  return true;
}

function endOf(src, from, close) {
  for (let at = src.indexOf(close, from); at >= 0; at = src.indexOf(close, at + 1)) {
    if (close.startsWith("\\") || src[at - 1] !== "\\") return at;
  }
  return -1;
}

const BLOCKS = { $$: "$$", "\\[": "\\]" };

function block(state, start, last, silent) {
  const first = line(state, start);
  const close = BLOCKS[first.slice(0, 2)];
  if (!close || state.sCount[start] - state.blkIndent >= 4) return false;
  const lines = [];
  for (let at = start; at < last; at += 1) {
    if (at > start && state.sCount[at] < state.blkIndent) return false;
    const text = at === start ? first.slice(2) : line(state, at);
    const end = text.indexOf(close);
    if (end >= 0 && text.slice(end + 2).trim()) return false;
    lines.push(end < 0 ? text : text.slice(0, end));
    if (end < 0) continue;
    if (silent) return true;
    state.line = at + 1;
    Object.assign(state.push("tex_block", "div", 0), { content: lines.join("\n"), map: [start, at + 1], block: true });
    return true;
  }
  return false;
}

const line = (state, at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]);

/** Replace the TeX below an element by formulas; what is no TeX stays as it was written. */
export async function typeset(root) {
  const waiting = [...root.querySelectorAll(".tex:not([data-set])")];
  if (!waiting.length) return;
  if (!katex) {
    await import("./vendor/katex.js");
    katex = globalThis.katex;
  }
  for (const place of waiting) {
    const displayMode = place.classList.contains("tex-block");
    const source = place.textContent;
    place.dataset.set = "";
    try {
      katex.render(source, place, { displayMode, throwOnError: true, trust: false, maxExpand: 500, maxSize: 40 });
      if (displayMode) place.tabIndex = 0;
    } catch {
      place.textContent = source;
      place.classList.add("tex-wrong");
    }
  }
}
