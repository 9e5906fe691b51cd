/* The selected point's training, step by step. */
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
