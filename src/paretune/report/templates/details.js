/* The selected point: its figures, and its answers beside another's. */
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
