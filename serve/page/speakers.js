// The experts: their colours and names, and how much each said of an answer, in all and layer by layer.

import { el, svg } from "./dom.js";

const N_COLOURS = 8;
const N_NAMES = 16; // of more experts, the first or the largest are named
let model = null;

/** Take note of what the model is. */
export function useModel(description) {
  model = description;
}

/** Tell whether there are experts to show. */
export const isMixture = () => (model?.nExpert ?? 0) > 1;

/** Return an expert's colour: the first eight are told apart by everyone, the next ones as well as hues allow. */
export function colourOf(expert) {
  if (expert < N_COLOURS) return `var(--expert-${expert})`;
  return `hsl(${Math.round(expert * 137.508) % 360} 55% var(--expert-lightness))`;
}

/** Return an expert's name: that of the model which answered, else of the one that is served now. */
export const nameOf = (expert, names = model?.names) => names?.[expert] ?? `Expert ${expert}`;

/** Return shares as whole percents by expert, largest first, without those below half a percent. */
export function ranked(shares) {
  const total = shares.reduce((sum, share) => sum + share, 0) || 1;
  return shares.map((share, expert) => ({ expert, share: share / total })).filter(({ share }) => share >= 0.005).sort((a, b) => b.share - a.share);
}

/** Say shares in words. */
export const inWords = (shares, names) => ranked(shares).slice(0, N_NAMES).map(({ expert, share }) => `${nameOf(expert, names)} ${Math.round(share * 100)}\u00a0%`).join(", ");

/** Return a gradient with hard edges: a stripe per expert, as wide as its share, in the experts' order. */
export function gradient(shares) {
  const total = shares.reduce((sum, share) => sum + share, 0);
  if (!total) return "none";
  const stops = [];
  let at = 0;
  shares.forEach((share, expert) => {
    if (share / total < 0.005) return;
    const end = at + (share / total) * 100;
    stops.push(`${colourOf(expert)} ${at.toFixed(1)}% ${end.toFixed(1)}%`);
    at = end;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

const dot = (expert) => el("span", { className: "dot", "aria-hidden": "true", style: { "--colour": colourOf(expert) } });

/** Make the legend: the experts' names with their colours; of very many, as many as can be read. */
export function legend() {
  const shown = model.names.slice(0, N_NAMES);
  const items = shown.map((name, expert) => el("li", {}, dot(expert), name));
  if (model.names.length > shown.length) items.push(el("li", { className: "faint" }, `and ${model.names.length - shown.length} more`));
  return el("ul", { className: "legend", tabIndex: 0, "aria-label": "Experts and their colours" }, items);
}

/** Make the button that shows an answer's shares as a bar and opens the details. */
export function shareBar({ shares, names }, open, toggle) {
  const first = ranked(shares).slice(0, 2).map(({ expert, share }) => el("span", {}, dot(expert), `${nameOf(expert, names)} ${Math.round(share * 100)}\u00a0%`));
  const bar = el("span", { className: "bar", style: { "background-image": gradient(shares) } });
  return el("button", { type: "button", className: "shares", "aria-expanded": String(open), "aria-label": `Who spoke: ${inWords(shares, names)}. Details`, on: { click: toggle } }, bar, first);
}

/** Make the details of an answer: each expert's share, and each layer as a column. */
export function shareDetails({ shares, layers, names }) {
  const all = ranked(shares);
  const rows = all.slice(0, N_NAMES).map(({ expert, share }) =>
    el("li", {}, el("span", { className: "who" }, dot(expert), nameOf(expert, names)),
      el("span", { className: "track" }, el("span", { className: "fill", style: { width: `${(share * 100).toFixed(1)}%`, "--colour": colourOf(expert) } })),
      el("span", { className: "number" }, `${(share * 100).toFixed(1)} %`)));
  const parts = [el("h3", {}, "Who spoke"), el("p", { className: "faint" }, "Each expert's part of the routers' weights, over all tokens and layers of this answer."), el("ol", { className: "rows" }, rows)];
  if (all.length > N_NAMES) parts.push(el("p", { className: "faint" }, `and ${all.length - N_NAMES} more`));
  if (layers?.length) parts.push(el("h3", {}, "Layer by layer"), layerChart(layers, names), el("p", { className: "axis faint", "aria-hidden": "true" }, el("span", {}, "first layer"), el("span", {}, "last layer")));
  return el("section", { className: "details", "aria-label": "Who spoke" }, parts);
}

function layerChart(layers, names) {
  const [width, gap, height] = [10, 2, 60];
  const columns = layers.map((shares, layer) => {
    const total = shares.reduce((sum, share) => sum + share, 0) || 1;
    let top = height;
    const parts = shares.map((share, expert) => {
      const part = (share / total) * height;
      top -= part;
      const rect = svg("rect", { x: layer * (width + gap), y: top.toFixed(2), width, height: part.toFixed(2) });
      rect.style.fill = colourOf(expert);
      return rect;
    });
    const title = svg("title");
    title.textContent = `Layer ${layer}: ${inWords(shares, names)}`;
    return svg("g", {}, title, ...parts);
  });
  const first = layers.map((shares) => ranked(shares)[0]?.expert).filter((expert) => expert !== undefined);
  const counts = ranked(first.reduce((sums, expert) => { sums[expert] += 1; return sums; }, new Array(layers[0].length).fill(0)));
  const summary = counts.map(({ expert, share }) => `${nameOf(expert, names)} leads in ${Math.round(share * first.length)} of ${first.length} layers`).join(", ");
  return svg("svg", { class: "layers", viewBox: `0 0 ${layers.length * (width + gap) - gap} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": summary }, ...columns);
}
