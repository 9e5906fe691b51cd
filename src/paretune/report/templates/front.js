/* The front: two axes, pairs of three, or parallel coordinates and a radar; and its legend. */
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
  traces.push(...dialTraces(m, a, b));
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
  ends.push(...dialEnds(m, a));
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
      const turned = event.points.map((p) => /^dial (\d+)$/.exec(p.customdata)).find(Boolean);
      if (id !== undefined) choose(id);
      else if (turned) setDial(Number(turned[1]));
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
        : `${title}${marks}${m.key === "scores" && visible().length <= FEW ? "Bars: standard errors. " : ""}${dialOf(m).length ? "Dashed: the validation losses that any p gives, by the calibration; the diamond is the p set below. " : ""}Click a point, or choose it in the list.`;
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
