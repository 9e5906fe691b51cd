/* Any preference: where a run has one adapter for all of them, p is set here, the plot shows what it
   gives on the validation split, and the nearest point that was measured is selected. */
const dial = data.dial;
state.dial = dial ? Math.floor(dial.grid.length / 2) : -1;
const dialOf = (m) => (dial && m.key === "loss" ? dial.curves.filter((c) => !state.hidden.has(c.series)) : []);
const weightText = (weights) => data.objectives.map((name, k) => `${name} ${Number(weights[k].toPrecision(3))}`).join(", ");
const dialText = (curve, k) =>
  [`<b>p: ${safe(weightText(dial.grid[k]))}</b>`, `${safe(data.series[curve.series])}, validation loss by the calibration`,
    ...data.objectives.map((name, a) => `${safe(name)}: ${curve.losses[k][a].toFixed(3)}`)].join("<br>");
const dialTraces = (m, a, b) =>
  dialOf(m).flatMap((curve) => {
    const colour = palette()[curve.series % palette().length];
    const line = {
      type: "scatter", mode: "lines", line: { color: colour, width: 2, dash: "dash" }, opacity: 0.8,
      x: curve.losses.map((v) => v[a]), y: curve.losses.map((v) => v[b]),
      customdata: curve.losses.map((_, k) => `dial ${k}`),
      hovertext: curve.losses.map((_, k) => dialText(curve, k)), hoverinfo: "text",
    };
    const mark = {
      type: "scatter", mode: "markers", cliponaxis: false,
      x: [curve.losses[state.dial][a]], y: [curve.losses[state.dial][b]],
      hovertext: [dialText(curve, state.dial)], hoverinfo: "text",
      marker: { size: 15, symbol: "diamond", color: colour, line: { width: 2, color: theme().text } },
    };
    return m.axes.length === 2 ? [line, mark] : [mark];
  });
const dialEnds = (m, a) => (m.axes.length === 2 ? dialOf(m).flatMap((c) => c.losses.map((v) => v[a])) : []);

/* The member of the grid next to these weights, which need not add up to one. */
const nearestIn = (list, weights) => {
  const total = weights.reduce((sum, w) => sum + w, 0);
  const p = weights.map((w) => (total > 0 ? w / total : 1 / weights.length));
  const gap = (other) => other.reduce((sum, w, k) => sum + (w - p[k]) ** 2, 0);
  return list.reduce((best, other, k) => (gap(other) < gap(list[best]) ? k : best), 0);
};
const drawDial = () => {
  const p = dial.grid[state.dial];
  byId("dial-preference").textContent = `p: ${weightText(p)}`;
  const table = make("table", "matrix");
  const head = make("tr");
  head.append(make("td"), ...[...data.objectives.map((name) => `loss ${name}`), "gate"].map((name) => make("th", "", name)));
  table.append(head);
  for (const curve of dial.curves) {
    const row = make("tr");
    const gate = curve.gate[state.dial].map((q) => q.toFixed(2).replace("-", "−")).join(", ");
    row.append(
      make("th", "", data.series[curve.series]),
      ...curve.losses[state.dial].map((v) => make("td", "", v.toFixed(3))), make("td", "", gate),
    );
    table.append(row);
  }
  byId("dial-values").replaceChildren(table);
};
const setDial = (k) => {
  state.dial = k;
  const p = dial.grid[k];
  const sliders = [...byId("sliders").querySelectorAll("input")];
  if (sliders.length === 1) sliders[0].value = String(Math.round(100 * p[0]));
  drawDial();
  const measured = trained.filter((i) => dial.curves.some((curve) => curve.series === points[i].series));
  const near = measured[nearestIn(measured.map((i) => points[i].weights), p)];
  byId("dial-near").textContent = near === undefined ? "" : `Selected, the nearest point that was measured: ${points[near].title}`;
  if (near !== undefined && near !== state.point) choose(near, true);
  else drawFront();
};
const startDial = () => {
  if (!dial) return;
  if (!points[state.point].base) state.dial = nearestIn(dial.grid, points[state.point].weights);
  const names = data.objectives.length === 2 ? [data.objectives[0]] : data.objectives;
  byId("sliders").replaceChildren(...names.map((name, k) => {
    const label = make("label", "control", `p of ${name} `);
    const input = make("input");
    Object.assign(input, { type: "range", min: "0", max: "100", step: "1" });
    input.value = String(Math.round(100 * dial.grid[state.dial][k]));
    input.addEventListener("input", () => {
      const values = [...byId("sliders").querySelectorAll("input")].map((each) => Number(each.value));
      setDial(nearestIn(dial.grid, names.length === 1 ? [values[0], 100 - values[0]] : values));
    });
    label.append(input);
    return label;
  }));
  drawDial();
};
