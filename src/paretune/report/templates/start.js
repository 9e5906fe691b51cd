/* Choosing points, and what the page listens to. */
const lists = ["point", "point-again", "point-steps"].map(byId).filter(Boolean);
/* The base model stands beside a point of its own run; else the point farthest from it. */
const partner = (id) => {
  const base = bases.find((i) => has(i) && points[i].run === points[id].run);
  if (base !== undefined && base !== id) return base;
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
  startDial();
  redraw();
};
start();
