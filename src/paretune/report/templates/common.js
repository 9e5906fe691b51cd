/* What all parts share: the data, colours, plotly settings. Model outputs, names and numbers are
   data: they reach the page through textContent, and plotly's texts, which read a little HTML,
   through `safe`. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#3E9FD4", "#333333", "#882255", "#7A7A1F", "#6A3D9A",
    "#8C564B"],
  dark: ["#4DA3E0", "#F08A4B", "#35C79D", "#E3A0C5", "#EDB74A", "#9BD3F7", "#DADDE2", "#D4709F", "#C8C860", "#B490E0",
    "#C79A8C"],
};
const THEME = {
  light: { text: "#1a1f26", muted: "#59636e", grid: "#e6e9ed", card: "#ffffff", line: "#c9cfd6" },
  dark: { text: "#e6e9ee", muted: "#9aa4b2", grid: "#262d37", card: "#161a21", line: "#3a434f" },
};
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "x", "hexagon", "cross",
  "triangle-left", "triangle-right", "bowtie"];
const GLYPHS = ["●", "■", "▲", "◆", "▼", "⬟", "✖", "⬢", "✚", "◀", "▶", "⧓"];
const PAGE_SIZE = 5;
const PAPER = 660; // pixels of a page's width
const FEW = 12; // points that can each carry a label
const points = data.points;
const trained = points.map((_, i) => i).filter((i) => !points[i].base);
const bases = points.map((_, i) => i).filter((i) => points[i].base);
const has = (i) => Object.keys(points[i].answers).length > 0;
const state = { measure: 0, point: -1, beside: -1, page: 0, hidden: new Set(), print: false };

const dark = () => {
  if (state.print) return false;
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const theme = () => THEME[dark() ? "dark" : "light"];
const palette = () => PALETTE[dark() ? "dark" : "light"];
const narrow = () => matchMedia("(max-width: 640px)").matches;
const safe = (text) =>
  String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const fill = (select, options, value) => {
  select.replaceChildren(
    ...options.map(([key, text]) => {
      const option = make("option", "", text);
      option.value = String(key);
      return option;
    }),
  );
  select.value = String(value);
};

/* With one method, colours tell its points apart where they are lines; else methods. */
const single = new Set(trained.map((i) => points[i].series)).size === 1;
const group = (i) => (points[i].base ? -1 : linesOf(measure()) && single ? i : points[i].series);
const linesOf = (m) => m.axes.length > 3;
const measure = () => data.measures[state.measure];
const look = (i) => {
  if (points[i].base) return { colour: theme().muted, symbol: "star", glyph: "★" };
  const k = group(i);
  return {
    colour: palette()[k % palette().length],
    symbol: SYMBOLS[k % SYMBOLS.length],
    glyph: GLYPHS[k % GLYPHS.length],
  };
};
const glyph = (i) => {
  const node = make("span", "glyph", look(i).glyph);
  node.style.color = look(i).colour;
  node.setAttribute("aria-hidden", "true");
  return node;
};
/* In short: what a click shows in full. */
const hover = (i) => {
  const p = points[i];
  const lines = [`<b>${safe(p.title)}</b>`];
  if (p.preference) lines.push(`p: ${safe(p.preference)}`);
  for (const [name, facts] of p.facts) {
    if (data.objectives.includes(name)) {
      const kept = facts.slice(0, data.objectives.length > 3 ? 2 : 3);
      lines.push(`<b>${safe(name)}</b>  ${kept.map(([key, value]) => `${safe(key)} ${safe(value)}`).join(", ")}`);
    } else if (name === "scores of answers" && facts.length <= 3) {
      lines.push(...facts.map(([key, value]) => `score of answers, ${safe(key)}: ${safe(value)}`));
    } else if (name === "preference") lines.push(...facts.map(([key, value]) => `${safe(key)} ${safe(value)}`));
  }
  return lines.join("<br>");
};
const config = (bar) => ({
  displaylogo: false,
  responsive: true,
  displayModeBar: bar && matchMedia("(hover: hover)").matches ? "hover" : false,
  /* Named one by one: plotly's own choice has a button that uploads the plot. */
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  showTips: false,
});
/* On paper plots cannot measure their boxes: `share` of the page's width is theirs. */
const layout = (share, more) => {
  const t = theme();
  return {
    autosize: !state.print, width: state.print ? share * PAPER : undefined,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 12, color: t.text },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: t.card, bordercolor: t.line, font: { color: t.text, size: 12 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: t.muted, activecolor: t.text },
    dragmode: matchMedia("(hover: hover)").matches ? "zoom" : false,
    ...more,
  };
};
const axis = (title, more) => {
  const t = theme();
  return {
    title: { text: title, font: { size: 12.5, color: t.muted }, standoff: 8 },
    gridcolor: t.grid, linecolor: t.line, zeroline: false, ticks: "outside", tickcolor: t.line,
    ticklen: 4, tickfont: { color: t.muted }, automargin: true, ...more,
  };
};
