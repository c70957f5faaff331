// The sections of the page; those without data are removed.

const {whole = {}, slices = {}, corruptions = {}, curves = [], worst = [], tables = [], comparison} = data;
const isAmount = name => data.amounts.includes(name);
const number = (name, value) => typeof value !== "number" ? "-" : isAmount(name) ? value : value.toFixed(3);
const signed = value => (value < 0 ? "" : "+") + value.toFixed(3);
const section = (id, there, fill) => there ? fill(at(id)) : at(id).remove();

document.title = data.title;
at("title").textContent = data.title;
at("about").textContent = data.about;

// A table with a column for each score, and its rows grouped by axis.
const byAxis = (table, names, axes, cell) => {
  const head = make("tr", table);
  for (const name of ["", ...names]) make("th", head, words(name));
  for (const [axis, parts] of Object.entries(axes)) {
    if (axis) make("td", make("tr", table, null, {className: "axis"}), axis, {colSpan: names.length + 1});
    for (const [name, scores] of Object.entries(parts)) {
      const row = make("tr", table);
      make("td", row, name);
      for (const score of names) cell(make("td", row), score, scores[score]);
    }
  }
};

section("whole", Object.keys(whole).length, tiles => {
  for (const [name, value] of Object.entries(whole)) {
    const tile = make("div", tiles, null, {className: "panel tile"});
    make("b", tile, number(name, value));
    make("span", tile, words(name), {className: "dim"});
  }
});

section("slices", Object.keys(slices).length, panel => {
  const rows = Object.values(slices).flatMap(Object.values);
  const away = (name, value) => (value - whole[name]) * (data.lowerIsBetter.includes(name) ? -1 : 1);
  const known = (name, value) => typeof value === "number" && typeof whole[name] === "number" && !isAmount(name);
  const largest = Object.fromEntries(Object.keys(whole).map(name =>
    [name, Math.max(0.05, ...rows.filter(row => known(name, row[name])).map(row => Math.abs(away(name, row[name]))))]));
  byAxis(panel.querySelector("table"), Object.keys(whole), {"": {all: whole}, ...slices}, (cell, name, value) => {
    cell.textContent = number(name, value);
    cell.className = "cell";
    if (!known(name, value) || value === whole[name]) return;
    cell.classList.add(away(name, value) > 0 ? "better" : "worse");
    cell.style.setProperty("--share", Math.abs(away(name, value)) / largest[name]);
    cell.title = `${signed(value - whole[name])} against all`;
  });
});

section("corruptions", Object.keys(corruptions).length, panel => {
  for (const [name, {unit, levels}] of Object.entries(corruptions)) {
    const lines = data.main.map(score => ({
      name: score,
      points: [whole, ...levels].map((scores, i) => [i, scores[score]]).filter(([, value]) => typeof value === "number"),
    }));
    const ticks = ["none", ...levels.map(each => `${each.level}`)];
    diagram(panel.querySelector(".diagrams"), {title: words(name), axes: [unit, "score"], lines, ticks});
  }
});

section("curves", curves.length, panel => curves.forEach(each => diagram(panel.querySelector(".diagrams"), each)));

section("worst", worst.some(each => each.samples.length), panel => {
  for (const {task, samples} of worst.filter(each => each.samples.length)) {
    make("h3", panel.querySelector("div"), words(task));
    const grid = make("div", panel.querySelector("div"), null, {className: "samples"});
    for (const sample of samples) {
      const card = make("div", grid, null, {className: "sample"});
      make("b", card, sample.scene);
      make("div", card, sample.conditions, {className: "dim"});
      make("code", card, sample.token);
      make("div", card, sample.text);
      if (sample.outlines.length) fromAbove(card, sample.outlines);
    }
  }
});

function fromAbove(parent, outlines) {
  parent.insertAdjacentHTML("beforeend", "<svg viewBox='-54 -54 108 108'></svg>");
  const svg = parent.querySelector("svg");
  for (const r of [20, 50]) draw("circle", svg, {r});
  draw("rect", svg, {x: -1, y: -2.3, width: 2, height: 4.6, class: "ego"});
  for (const {kind, name, corners} of outlines) {
    const shape = draw("polygon", svg, {points: corners.map(([ahead, left]) => `${-left},${-ahead}`).join(" "), class: kind});
    draw("title", shape, {}, `${name}, ${kind}`);
  }
}

section("tables", tables.length, parent => {
  for (const {title, head, rows, foot} of tables) {
    const panel = make("div", parent, null, {className: "panel wide"});
    make("h2", panel, title);
    const table = make("table", panel);
    const top = make("tr", table);
    for (const name of head) make("th", top, name);
    for (const row of rows) {
      const line = make("tr", table);
      for (const value of row) make("td", line, value);
    }
    const last = foot.length ? make("tr", table, null, {className: "foot"}) : null;
    for (const value of foot) make("td", last, value);
  }
});

section("comparison", comparison, panel => {
  const names = Object.keys(comparison.slices.all.all);
  const rows = Object.values(comparison.slices).flatMap(Object.values);
  const reach = Object.fromEntries(names.map(name =>  // of the intervals of a column
    [name, Math.max(0.001, ...rows.flatMap(row => row[name]?.interval || []).map(Math.abs))]));
  const {all, ...others} = comparison.slices;
  byAxis(panel.querySelector("table"), names, {"": all, ...others}, (cell, name, change) => {
    cell.className = "change";
    if (!change || change.difference === null) { cell.textContent = "-"; return; }
    cell.classList.add(change.outcome);
    cell.title = `${change.before.toFixed(3)} became ${change.after.toFixed(3)}. ${change.why}`;
    make("b", cell, signed(change.difference));
    make("span", cell, change.interval ? `${change.interval.map(signed).join(" to ")}` : "no interval");
    if (!change.interval) return;
    cell.insertAdjacentHTML("beforeend", "<svg viewBox='-65 0 130 10'></svg>");
    const [low, high] = change.interval.map(value => 64 * value / reach[name]), svg = cell.querySelector("svg");
    draw("line", svg, {x1: 0, x2: 0, y1: 0, y2: 10});
    draw("rect", svg, {x: low, y: 3, width: Math.max(high - low, 0.8), height: 4, rx: 2});
  });
  panel.querySelector(".note").textContent = `Bold: after minus before. Below it the ${100 * comparison.confidence} % ` +
    "interval over scenes of the difference, which is paired; green is better, red worse, grey undecided.";
});
