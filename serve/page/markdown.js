// Markdown of a model, a stranger's text, to elements: no markup of its own, no script, nothing loaded from elsewhere.
//
// An answer grows while it is shown: it is cut into blocks, and only blocks that changed are made anew.

import markdownIt from "./vendor/markdown-it.js";
import "./vendor/dompurify.js";
import hljs from "./vendor/highlight.js";
import { copyText, el, icon } from "./dom.js";
import { mathematics, typeset } from "./mathematics.js";

const LARGE = 40_000;
const purify = globalThis.DOMPurify;
const md = markdownIt({ html: false, linkify: true, typographer: false, breaks: false, highlight });
md.use(mathematics);
md.validateLink = (url) => /^(https?:|mailto:)/i.test(url.trim());
md.normalizeLinkText = (text) => text;
// A picture would tell its host who reads the answer: it is a link here.
md.renderer.rules.image = (tokens, index) => {
  const token = tokens[index];
  const address = md.utils.escapeHtml(token.attrGet("src") ?? "");
  return `<a href="${address}">${md.utils.escapeHtml(token.content || address)}</a>`;
};

const ALLOWED = {
  ALLOWED_TAGS: ["a", "p", "br", "hr", "em", "strong", "s", "code", "pre", "span", "div", "ul", "ol", "li", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"],
  ALLOWED_ATTR: ["href", "title", "class", "start", "data-language", "data-align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

function highlight(code, language) {
  if (code.length > LARGE || !hljs.getLanguage(language)) return "";
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

const fence = md.renderer.rules.fence;
md.renderer.rules.fence = (tokens, index, options, env, self) => {
  const language = tokens[index].info.trim().split(/\s+/)[0];
  return `<div class="code" data-language="${md.utils.escapeHtml(language)}">${fence(tokens, index, options, env, self)}</div>`;
};
// markdown-it says how a column is aligned by a style attribute; styles in markup are not allowed here.
for (const rule of ["th_open", "td_open"]) {
  md.renderer.rules[rule] = (tokens, index, options, env, self) => {
    const style = tokens[index].attrGet("style");
    if (style) tokens[index].attrs = [["data-align", style.split(":")[1]]];
    return self.renderToken(tokens, index, options);
  };
}

/** Show Markdown in an element, keeping the blocks that are as before. Returns [{element, source, start}] of new ones. */
export function showMarkdown(root, source) {
  const made = [];
  let place = root.firstElementChild;
  for (const { key, render, text, start } of blocks(source)) {
    if (place?.madeOf === key) {
      place = place.nextElementSibling;
      continue;
    }
    const block = el("div", { className: "block" }, purify.sanitize(render(), ALLOWED));
    block.madeOf = key;
    dress(block);
    if (place) place.replaceWith(block);
    else root.append(block);
    place = block.nextElementSibling;
    made.push({ element: block, source: text, start });
  }
  while (place) {
    const next = place.nextElementSibling;
    place.remove();
    place = next;
  }
  return made;
}

/**
 * Yield the top-level blocks of a text: what makes their HTML, the source that they are made of, and where it starts.
 * Blocks of the same key look the same: it has their source, and all that links by name may refer to.
 */
function* blocks(source) {
  const env = {};
  const tokens = md.parse(source, env);
  const references = JSON.stringify(env.references ?? {});
  const starts = [0];
  for (let at = source.indexOf("\n"); at >= 0; at = source.indexOf("\n", at + 1)) starts.push(at + 1);
  for (let from = 0, depth = 0, index = 0; index < tokens.length; index += 1) {
    depth += tokens[index].nesting;
    if (depth) continue;
    const part = tokens.slice(from, index + 1);
    const [first, end] = part[0].map ?? [0, starts.length];
    const start = starts[first] ?? 0;
    const text = source.slice(start, starts[end] ?? source.length);
    yield { key: `${part[0].type} ${start} ${references} ${text}`, render: () => md.renderer.render(part, md.options, env), text, start };
    from = index + 1;
  }
}

/** Add what Markdown has no words for: a head with a copy button over code, room to scroll for tables, formulas. */
function dress(block) {
  for (const frame of block.querySelectorAll(".code")) {
    const label = frame.dataset.language || "text";
    const button = el("button", { type: "button", className: "copy", "aria-label": `Copy the ${label} code` }, icon("copy"), el("span", {}, "Copy"));
    button.addEventListener("click", async () => {
      await copyText(frame.querySelector("pre").textContent.replace(/\n$/, ""));
      button.replaceChildren(icon("check"), el("span", {}, "Copied"));
      setTimeout(() => button.replaceChildren(icon("copy"), el("span", {}, "Copy")), 1600);
    });
    frame.prepend(el("div", { className: "code-head" }, el("span", {}, label), button));
    const pre = frame.querySelector("pre");
    Object.assign(pre, { tabIndex: 0, role: "region", ariaLabel: `${label} code` });
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = el("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  typeset(block);
}
