"use strict";
/* Model outputs, names and numbers are data: they reach the page through textContent, and plotly's
   texts, which read a little HTML, through `safe`. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PALETTE = {
    light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#3E9FD4", "#333333"],
    dark: ["#4DA3E0", "#F08A4B", "#35C79D", "#E3A0C5", "#EDB74A", "#9BD3F7", "#DADDE2"],
  };
  const THEME = {
    light: { text: "#1a1f26", muted: "#59636e", grid: "#e6e9ed", card: "#ffffff", line: "#c9cfd6" },
    dark: { text: "#e6e9ee", muted: "#9aa4b2", grid: "#262d37", card: "#161a21", line: "#3a434f" },
  };
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "x", "hexagon"];
  const GLYPHS = ["●", "■", "▲", "◆", "▼", "⬟", "✖", "⬢"];
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

  const visible = () => {
    const m = measure();
    return points
      .map((_, i) => i)
      .filter((i) => !state.hidden.has(group(i)) && points[i].values[m.key].every((v) => v !== null));
  };

  /* The points of a cell that no other of it dominates, from left to right; two axes only. */
  const staircase = (ids, m) => {
    const sign = m.lower ? 1 : -1;
    const value = (i, k) => sign * points[i].values[m.key][k];
    const order = [...ids].sort((a, b) => value(a, 0) - value(b, 0) || value(a, 1) - value(b, 1));
    let best = Infinity;
    return order.filter((i) => value(i, 1) < best && ((best = value(i, 1)), true));
  };

  const planeTraces = (m, a, b) => {
    const ids = visible();
    const value = (i, k) => points[i].values[m.key][k];
    const traces = [];
    if (m.axes.length === 2) {
      const cells = new Map();
      for (const i of ids) if (!points[i].base) cells.set(points[i].cell, [...(cells.get(points[i].cell) ?? []), i]);
      for (const cell of cells.values()) {
        const line = staircase(cell, m);
        traces.push({
          type: "scatter", mode: "lines", hoverinfo: "skip", opacity: 0.5,
          x: line.map((i) => value(i, a)), y: line.map((i) => value(i, b)),
          line: { color: look(cell[0]).colour, width: 1.5 },
        });
      }
    }
    const few = ids.length <= FEW;
    const bars = (k) =>
      m.key === "scores" && few
        ? { type: "data", array: ids.map((i) => points[i].errors[k] ?? 0), color: theme().muted, thickness: 1, width: 3 }
        : undefined;
    traces.push({
      type: "scatter", mode: few ? "markers+text" : "markers",
      x: ids.map((i) => value(i, a)), y: ids.map((i) => value(i, b)), customdata: ids,
      text: ids.map((i) => (points[i].base ? "" : safe(points[i].label))),
      textposition: "top right", cliponaxis: false,
      textfont: { size: 11.5, color: theme().muted },
      hovertext: ids.map(hover), hoverinfo: "text",
      error_x: bars(a), error_y: bars(b),
      marker: {
        opacity: 1,
        size: ids.map((i) => (points[i].base ? 13 : 11)),
        symbol: ids.map((i) => look(i).symbol),
        color: ids.map((i) => (points[i].best[m.key] || points[i].base ? look(i).colour : theme().card)),
        line: { width: 1.8, color: ids.map((i) => look(i).colour) },
      },
    });
    if (ids.includes(state.point)) {
      traces.push({
        type: "scatter", mode: "markers", hoverinfo: "skip",
        x: [value(state.point, a)], y: [value(state.point, b)],
        marker: { size: 22, symbol: "circle-open", color: theme().text, line: { width: 2 } },
      });
    }
    return traces;
  };

  /* With room on the right for the last label; without labels plotly finds the range. */
  const labelRange = (m, a) => {
    const ids = visible();
    if (ids.length > FEW) return undefined;
    const ends = ids.flatMap((i) => {
      const error = m.key === "scores" ? points[i].errors[a] ?? 0 : 0;
      return [points[i].values[m.key][a] - error, points[i].values[m.key][a] + error];
    });
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const span = high - low || Math.abs(low) * 0.1 || 1;
    const room = narrow() || m.axes.length > 2 ? 0.3 : 0.11;
    return [low - 0.06 * span, high + room * span];
  };
  const drawPlane = (node, m, a, b) => {
    const better = m.lower ? "lower is better" : "higher is better";
    const name = (k) =>
      m.axes.length > 2 || narrow()
        ? safe(`${m.axes[k]}${a === k ? ` (${better})` : ""}`)
        : safe(`${m.title} of ${m.axes[k]} (${better})`);
    Plotly.react(node, planeTraces(m, a, b), layout(m.axes.length === 2 ? 1 : 0.48, {
      margin: { l: 52, r: 16, t: 16, b: 46 }, xaxis: axis(name(a), { range: labelRange(m, a) }), yaxis: axis(name(b)),
    }), config(m.axes.length === 2));
  };

  /* Each axis from its worst value (0) to its best (1), over all points that are shown. */
  const scales = (m, ids) =>
    m.axes.map((_, k) => {
      const values = ids.map((i) => points[i].values[m.key][k]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const span = high - low || Math.abs(low) * 0.1 || 1;
      const [worst, best] = m.lower ? [low + span, low] : [low, low + span];
      return { worst, best, at: (v) => (v - worst) / (best - worst) };
    });
  /* Two digits of the smallest range. */
  const shortener = (scale) => {
    const span = Math.min(...scale.map((s) => Math.abs(s.best - s.worst)));
    const digits = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(span))));
    return (value) => value.toFixed(digits).replace("-", "−");
  };
  const selectedLast = (ids) => [...ids].sort((i, j) => (i === state.point) - (j === state.point));
  const wrapped = (name) => safe(name.replace(/[_-]/g, " ")).replace(/ /g, "<br>");
  const strokes = (i) => {
    const faded = state.point >= 0 && i !== state.point;
    const l = look(i);
    return {
      opacity: faded ? 0.55 : 1,
      line: { color: l.colour, width: i === state.point ? 4 : 1.6, dash: points[i].base ? "dash" : "solid" },
      marker: { color: l.colour, symbol: l.symbol, size: i === state.point ? 10 : 7 },
      customdata: [], hovertext: hover(i), hoverinfo: "text",
    };
  };
  const drawParallel = (node, m) => {
    const ids = visible();
    const scale = scales(m, ids);
    const short = shortener(scale);
    const traces = selectedLast(ids).map((i) => ({
      type: "scatter", mode: "lines+markers", ...strokes(i), cliponaxis: false,
      x: m.axes.map((_, k) => k), y: m.axes.map((_, k) => scale[k].at(points[i].values[m.key][k])),
      customdata: m.axes.map(() => i),
    }));
    const rail = m.axes.map((_, k) => ({
      type: "line", x0: k, x1: k, y0: 0, y1: 1, layer: "below", line: { color: theme().line, width: 1.2 },
    }));
    const ends = m.axes.flatMap((name, k) => [
      { x: k, y: 1, yshift: 12, text: short(scale[k].best) },
      { x: k, y: 0, yshift: -12, text: short(scale[k].worst) },
    ]).map((note) => ({ ...note, showarrow: false, font: { size: 11, color: theme().muted } }));
    Plotly.react(node, traces, layout(m.axes.length === 3 ? 0.48 : 1, {
      margin: { l: 8, r: 8, t: 26, b: 50 }, shapes: rail, annotations: ends,
      xaxis: axis("", {
        tickvals: m.axes.map((_, k) => k), ticktext: m.axes.map(wrapped), tickangle: 0,
        showgrid: false, showline: false, ticks: "", range: [-0.3, m.axes.length - 0.7],
        tickfont: { color: theme().text, size: narrow() ? 10 : 12 }, ticklabelstandoff: 16, fixedrange: true,
      }),
      yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true },
    }), config(false));
  };
  const drawRadar = (node, m) => {
    const ids = visible();
    const scale = scales(m, ids);
    const around = [...m.axes.keys(), 0];
    const traces = selectedLast(ids).map((i) => ({
      type: "scatterpolar", mode: "lines+markers", ...strokes(i), cliponaxis: false,
      theta: around.map((k) => (360 * k) / m.axes.length),
      r: around.map((k) => 0.25 + 0.75 * scale[k].at(points[i].values[m.key][k])),
      customdata: around.map(() => i),
    }));
    const t = theme();
    Plotly.react(node, traces, layout(1, {
      margin: { l: 60, r: 60, t: 30, b: 30 },
      polar: {
        bgcolor: "rgba(0,0,0,0)",
        radialaxis: { range: [0, 1.02], showticklabels: false, ticks: "", showline: false, gridcolor: t.grid, tickvals: [0.25, 0.5, 0.75, 1] },
        angularaxis: {
          direction: "clockwise", rotation: 90, gridcolor: t.line, linecolor: t.line, ticks: "",
          tickvals: m.axes.map((_, k) => (360 * k) / m.axes.length),
          ticktext: m.axes.map(wrapped), tickfont: { color: t.text, size: narrow() ? 10 : 12 },
        },
      },
    }), config(false));
  };

  let kind = "";
  const drawFront = () => {
    const m = measure();
    const n = m.axes.length;
    const panels =
      n < 2 ? [] : n === 2 ? [[0, 1]] : n === 3 ? [[0, 1], [0, 2], [1, 2], "parallel"] : ["parallel", "radar"];
    const node = byId("plots");
    if (kind !== `${n}`) {
      for (const old of node.children) Plotly.purge(old);
      node.className = `plots ${n === 3 ? "pairs" : n > 3 ? "wide" : ""}`;
      node.replaceChildren(...panels.map(() => make("div", "plot")));
    }
    const shown = visible().length > 0;
    panels.forEach((panel, k) => {
      const plot = node.children[k];
      const what = typeof panel === "string" ? panel : panel.map((a) => m.axes[a]).join(" against ");
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${m.title}: ${what}. All values are in the table of points.`);
      plot.hidden = !shown;
      if (!shown) return;
      if (panel === "parallel") drawParallel(plot, m);
      else if (panel === "radar") drawRadar(plot, m);
      else drawPlane(plot, m, ...panel);
      if (kind !== `${n}`) plot.on("plotly_click", (event) => {
        const id = event.points.map((p) => p.customdata).find((value) => Number.isInteger(value));
        if (id !== undefined) choose(id);
      });
    });
    kind = `${n}`;
    const title = `${m.title[0].toUpperCase()}${m.title.slice(1)}; ${m.lower ? "lower" : "higher"} is better. `;
    const marks = "Filled: no other point here is as good in every objective and better in one. ";
    byId("plot-note").textContent = !shown
      ? "No point is shown: choose one above."
      : n < 2
        ? "With one objective there is no front to draw: see the table of points."
        : n > 3
          ? `${title}Each objective has its own scale, from the worst value (below; in the radar the inner ring) to the best (above; the rim). Click a line, or choose a point in the list.`
          : `${title}${marks}${m.key === "scores" && visible().length <= FEW ? "Bars: standard errors. " : ""}Click a point, or choose it in the list.`;
  };

  const drawLegend = () => {
    const seen = new Map();
    points.forEach((_, i) => { if (!seen.has(group(i))) seen.set(group(i), i); });
    const nodes = [...seen].map(([key, i]) => {
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      const name = points[i].base ? "base model" : key === i && single && linesOf(measure()) ? points[i].label : data.series[key];
      button.append(glyph(i), make("span", "", name));
      button.addEventListener("click", () => {
        if (!state.hidden.delete(key)) state.hidden.add(key);
        drawFront();
        button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      });
      return button;
    });
    byId("legend").replaceChildren(...(nodes.length > 1 ? nodes : []));
  };

  /* Neighbouring groups of the same quantities, such as those of the objectives, are one block. */
  const blocks = (facts) => {
    const names = ([, found]) => found.map(([key]) => key).join("|");
    const found = [];
    for (const entry of facts) {
      const last = found.at(-1);
      if (last && names(last[0]) === names(entry)) last.push(entry);
      else found.push([entry]);
    }
    return found;
  };
  const matrix = (block) => {
    const table = make("table", "matrix");
    const head = make("tr");
    head.append(make("td"), ...block[0][1].map(([key]) => make("th", "", key)));
    table.append(head);
    for (const [name, facts] of block) {
      const row = make("tr");
      row.append(make("th", "", name), ...facts.map(([, value]) => make("td", "", value)));
      table.append(row);
    }
    return table;
  };
  const drawChosen = () => {
    const p = points[state.point];
    byId("chosen-preference").textContent = p.base ? "The model before any training" : `p: ${p.preference}`;
    const parts = [];
    for (const block of blocks(p.facts)) {
      if (block.length > 1) parts.push(matrix(block));
      else {
        const [name, facts] = block[0];
        const wide = facts.length === 1 || facts.some(([, value]) => value.length > 8);
        const list = make("dl", wide ? "fact-list wide" : "fact-list");
        for (const [key, value] of facts) {
          const row = make("div");
          row.append(make("dt", "", key), make("dd", "", value));
          list.append(row);
        }
        parts.push(make("h3", "", name), list);
      }
    }
    byId("facts").replaceChildren(...parts);
    for (const row of document.querySelectorAll("tr[data-point]")) {
      if (Number(row.dataset.point) === state.point) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  };

  const side = (i, prompt) => {
    const node = make("div", "side");
    const head = make("h4");
    head.append(glyph(i), make("span", "", points[i].title));
    node.append(head);
    const answer = points[i].answers[prompt];
    if (!answer) {
      node.append(make("p", "answer none", "No answer to this prompt."));
      return node;
    }
    const [text, finished, scores] = answer;
    const shown = make("p", text ? "answer" : "answer none", text || "(an empty answer)");
    shown.dir = "auto";
    node.append(shown);
    const chips = make("div", "chips");
    const chip = (key, value) => {
      const one = make("span", "", `${key} `);
      one.append(make("b", "", value));
      chips.append(one);
    };
    for (const [key, value] of Object.entries(scores))
      chip(key, value === null ? "none" : String(Number(value.toPrecision(4))).replace("-", "−"));
    chip("words", String(text.split(/\s+/).filter(Boolean).length));
    if (!finished) chips.append(make("span", "", "cut at the limit"));
    node.append(chips);
    return node;
  };
  const drawAnswers = () => {
    if (!byId("pairs")) return;
    const count = data.prompts.length;
    const pages = Math.max(1, Math.ceil(count / PAGE_SIZE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const from = state.page * PAGE_SIZE;
    const nodes = data.prompts.slice(from, from + PAGE_SIZE).map((messages, k) => {
      const pair = make("article", "pair");
      const prompt = make("div", "prompt");
      messages.forEach(([role, text], index) => {
        const last = index === messages.length - 1;
        const line = make("div", last ? "message" : "message aside");
        if (messages.length > 1 && !last) line.append(make("span", "role", role));
        line.append(make("span", "", text));
        line.dir = "auto";
        prompt.append(line);
      });
      const sides = make("div", "sides");
      sides.append(side(state.point, from + k));
      if (state.beside >= 0 && state.beside !== state.point) sides.append(side(state.beside, from + k));
      pair.append(prompt, sides);
      return pair;
    });
    byId("pairs").replaceChildren(...nodes);
    const last = Math.min(from + PAGE_SIZE, count);
    const more = data.promptsInAll > count ? ` (the first ${count} of ${data.promptsInAll}; all are in answers.jsonl)` : "";
    byId("page-of").textContent = `Prompts ${from + 1} to ${last} of ${count}${more}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
  };

  let shownPanels = "";
  const drawSteps = () => {
    const node = byId("step-plots");
    if (!node) return;
    const panels = points[state.point].steps;
    byId("step-legend").replaceChildren(
      ...data.objectives.map((name, k) => {
        const key = make("span", "key");
        const dot = make("span", "glyph", "●");
        dot.style.color = palette()[k % palette().length];
        key.append(dot, make("span", "", name));
        return key;
      }),
    );
    byId("step-note").textContent = !panels.length
      ? "This point has no training log of its own."
      : data.stride > 1
        ? `Every ${data.stride}th logged step is shown; the figures beside this page have all.`
        : "";
    byId("step-legend").hidden = !panels.length;
    const titles = panels.map((panel) => panel.title).join("|");
    if (titles !== shownPanels) {
      for (const old of node.querySelectorAll(".plot")) Plotly.purge(old);
      /* All boxes first: plots take the width that they find. */
      node.replaceChildren(...panels.map((panel) => {
        const box = make("div");
        const plot = make("div", "plot");
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", `${panel.title} over optimiser steps`);
        box.append(make("h3", "", panel.title), make("p", "note", panel.note), plot);
        return box;
      }));
      shownPanels = titles;
    }
    const plots = node.querySelectorAll(".plot");
    panels.forEach((panel, k) => drawPanel(plots[k], panel));
  };
  /* 1, 2 and 5 in every decade; over many decades their beginnings. */
  const logTicks = (curves) => {
    const values = curves.flatMap((curve) => curve.y.filter((v) => v > 0));
    const [low, high] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
    const parts = high - low > 3 ? [1] : [1, 2, 5];
    const ticks = [];
    for (let power = low; power <= high; power++) for (const part of parts) ticks.push(Number(`${part}e${power}`));
    return { type: "log", tickvals: ticks, ticktext: ticks.map(String) };
  };
  const drawPanel = (plot, panel) => {
    const t = theme();
    const named = panel.curves.length > 1 && panel.curves[0].objective === null;
    plot.style.height = named && panel.curves.length > 4 ? "340px" : "";
    let spare = data.objectives.length;
    const dashes = ["solid", "dash", "dot"];
    const traces = panel.curves.map((curve, k) => ({
      type: "scatter", mode: curve.x.length <= 60 ? "lines+markers" : "lines",
      x: curve.x, y: curve.y, name: safe(curve.label),
      line: {
        color: palette()[(curve.objective ?? spare++) % palette().length], width: 1.6,
        dash: curve.objective === null ? dashes[Math.floor(k / palette().length) % 3] : "solid",
      },
      marker: { size: 4.5 },
    }));
    Plotly.react(plot, traces, layout(0.48, {
      margin: { l: 46, r: 8, t: 8, b: 38 }, hovermode: "x unified", dragmode: false, showlegend: named,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11, color: t.muted } },
      xaxis: axis("", {
        title: { text: "optimiser step", font: { size: 11.5, color: t.muted }, standoff: 5 },
        tickformat: "d", fixedrange: true,
      }),
      yaxis: axis("", {
        ...(panel.log ? logTicks(panel.curves) : { type: "linear", nticks: 6 }),
        range: panel.limits ?? undefined, ticksuffix: panel.unit, fixedrange: true,
      }),
    }), config(false));
  };

  const lists = ["point", "point-again", "point-steps"].map(byId).filter(Boolean);
  /* The base model stands beside a point of its own run; else the point farthest from it. */
  const partner = (id) => {
    if (bases.some((i) => has(i) && i !== id)) return bases.find((i) => has(i) && i !== id);
    const others = trained.filter((i) => i !== id && has(i));
    const gap = (i) => points[i].values.loss.reduce((sum, v, k) => sum + Math.abs(v - points[id].values.loss[k]), 0);
    return others.length ? others.reduce((a, b) => (gap(b) > gap(a) ? b : a)) : -1;
  };
  let besideChosen = false;
  const choose = (id, quiet) => {
    state.point = id;
    for (const list of lists) list.value = String(id);
    if (!besideChosen || state.beside === id) state.beside = partner(id);
    if (byId("beside")) byId("beside").value = String(state.beside);
    drawFront();
    drawChosen();
    drawAnswers();
    drawSteps();
    if (!quiet) byId("status").textContent = `Selected: ${points[id].title}`;
  };
  const redraw = () => {
    drawLegend();
    choose(state.point, true);
  };

  const start = () => {
    for (const node of document.querySelectorAll(".script")) node.hidden = false;
    const all = points.map((p, i) => [i, p.title]);
    for (const list of lists) {
      fill(list, all, 0);
      list.addEventListener("change", () => choose(Number(list.value)));
    }
    fill(byId("measure"), data.measures.map((m, k) => [k, m.title]), 0);
    byId("measure").addEventListener("change", () => {
      state.measure = Number(byId("measure").value);
      state.hidden.clear();
      drawLegend();
      drawFront();
    });
    if (byId("beside")) {
      fill(byId("beside"), [[-1, "nothing"], ...all.filter(([i]) => has(i))], -1);
      byId("beside").addEventListener("change", () => {
        state.beside = Number(byId("beside").value);
        besideChosen = true;
        drawAnswers();
      });
      const turn = (by) => () => {
        state.page += by;
        drawAnswers();
        byId("answers").scrollIntoView({ block: "start" });
      };
      byId("previous").addEventListener("click", turn(-1));
      byId("next").addEventListener("click", turn(1));
    }
    for (const button of document.querySelectorAll(".pick"))
      button.addEventListener("click", () => {
        choose(Number(button.dataset.point));
        byId("front").scrollIntoView({ block: "start" });
      });
    const toggle = byId("theme");
    const name = () => { toggle.textContent = dark() ? "Light" : "Dark"; };
    toggle.hidden = false;
    toggle.addEventListener("click", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      name();
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { name(); redraw(); });
    let opened = [];
    addEventListener("beforeprint", () => {
      state.print = true;
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const node of opened) node.open = true;
      redraw();
    });
    addEventListener("afterprint", () => {
      state.print = false;
      for (const node of opened) node.open = false;
      redraw();
    });
    name();
    state.point = trained.find(has) ?? trained[0] ?? 0;
    redraw();
  };
  start();
})();
