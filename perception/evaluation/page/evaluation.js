// The sections of the page; there are none for what the data lack.

const {whole = {}, slices = {}, corruptions = {}, curves = [], worst = [], tables = [], comparison} = data;
const isAmount = name => data.amounts.includes(name);
const number = (name, value) => typeof value !== "number" ? "-" : isAmount(name) ? value : value.toFixed(3);
const signed = value => (value < 0 ? "" : "+") + value.toFixed(3);

make("h1", main, document.title);
make("p", main, data.about, {className: "dim", id: "about"});

// A table with a column for each score, and its rows grouped by axis.
const byAxis = (parent, names, axes, cell) => {
  const table = make("table", make("div", parent, null, {className: "wide"}));
  header(table, ["", ...names.map(words)]);
  for (const [axis, parts] of Object.entries(axes)) {
    if (axis) row(table, [cell => Object.assign(cell, {textContent: axis, colSpan: names.length + 1})], "axis");
    for (const [name, scores] of Object.entries(parts)) {
      row(table, [name, ...names.map(score => td => cell(td, score, scores[score]))]);
    }
  }
};

// A small diagram of lines. Lines are named, with points [x, y]; ticks, if any, are labels for x = 0, 1, 2, ...
const diagram = (parent, {title, axes, lines, ticks}) => {
  const LEFT = 36, RIGHT = 310, TOP = 8, BOTTOM = 180;
  const box = make("div", parent);
  make("h3", box, title);
  const svg = draw("svg", box, {viewBox: "0 0 320 214"});
  const points = lines.flatMap(line => line.points);
  const lastX = ticks ? Math.max(ticks.length - 1, 1) : Math.max(1, ...points.map(([x]) => x));
  const lastY = Math.max(1, ...points.map(([, y]) => y));
  const across = x => LEFT + (RIGHT - LEFT) * x / lastX, up = y => BOTTOM - (BOTTOM - TOP) * y / lastY;
  for (let i = 0; i <= 4; i++) {
    const y = lastY * i / 4;
    draw("line", svg, {x1: LEFT, x2: RIGHT, y1: up(y), y2: up(y), class: "frame"});
    draw("text", svg, {x: LEFT - 5, y: up(y) + 4, class: "name end"}, +y.toFixed(2));
  }
  const labels = ticks || [0, 0.25, 0.5, 0.75, 1].map(share => +(share * lastX).toFixed(2));
  labels.forEach((label, i) => {
    const x = across(ticks ? i : lastX * i / 4);
    draw("line", svg, {x1: x, x2: x, y1: TOP, y2: BOTTOM, class: "frame"});
    draw("text", svg, {x, y: BOTTOM + 14, class: "name middle"}, label);
  });
  draw("text", svg, {x: (LEFT + RIGHT) / 2, y: BOTTOM + 30, class: "name middle"}, axes[0]);
  const legend = make("div", box, null, {className: "legend"});
  lines.forEach(({name, points}, i) => {
    const stroke = `var(--line${i % 4})`;
    const path = points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join(" ");
    draw("title", draw("polyline", svg, {points: path, stroke}), {}, `${axes[1]}, ${name}`);
    mark(legend, stroke, name);
  });
};
const diagrams = (id, title, entries) => {
  const section = panel(main, title, {id}), grid = make("div", section, null, {className: "diagrams"});
  for (const each of entries) diagram(grid, each);
  return section;
};

if (comparison) {
  const section = panel(main, "Difference by slice", {id: "comparison"});
  const names = Object.keys(comparison.slices.all.all);
  const rows = Object.values(comparison.slices).flatMap(Object.values);
  const reach = Object.fromEntries(names.map(name =>  // of the intervals of a column
    [name, Math.max(0.001, ...rows.flatMap(scores => scores[name]?.interval || []).map(Math.abs))]));
  const {all, ...others} = comparison.slices;
  byAxis(section, names, {"": all, ...others}, (cell, name, change) => {
    cell.className = "change";
    if (!change || change.difference === null) { cell.textContent = "-"; return; }
    cell.classList.add(change.outcome);
    cell.title = `${change.before.toFixed(3)} became ${change.after.toFixed(3)}. ${change.why}`;
    make("b", cell, signed(change.difference));
    make("span", cell, change.interval ? `${change.interval.map(signed).join(" to ")}` : "no interval");
    if (!change.interval) return;
    const [low, high] = change.interval.map(value => 64 * value / reach[name]);
    const svg = draw("svg", cell, {viewBox: "-65 0 130 10"});
    draw("line", svg, {x1: 0, x2: 0, y1: 0, y2: 10});
    draw("rect", svg, {x: low, y: 3, width: Math.max(high - low, 0.8), height: 4, rx: 2});
  });
  note(section, `Bold: after minus before. Below it the ${100 * comparison.confidence} % interval over scenes of the ` +
    "difference, which is paired; green is better, red worse, grey undecided.");
}

if (Object.keys(whole).length) tiles(Object.entries(whole).map(([name, value]) => [number(name, value), words(name)]));

if (Object.keys(slices).length) {
  const section = panel(main, "Scores by slice", {id: "slices"});
  const rows = Object.values(slices).flatMap(Object.values);
  const away = (name, value) => (value - whole[name]) * (data.lowerIsBetter.includes(name) ? -1 : 1);
  const known = (name, value) => typeof value === "number" && typeof whole[name] === "number" && !isAmount(name);
  const largest = Object.fromEntries(Object.keys(whole).map(name =>
    [name, Math.max(0.05, ...rows.filter(part => known(name, part[name])).map(part => Math.abs(away(name, part[name]))))]));
  byAxis(section, Object.keys(whole), {"": {all: whole}, ...slices}, (cell, name, value) => {
    cell.textContent = number(name, value);
    cell.className = "cell";
    if (!known(name, value) || value === whole[name]) return;
    cell.classList.add(away(name, value) > 0 ? "better" : "worse");
    cell.style.setProperty("--share", Math.abs(away(name, value)) / largest[name]);
    cell.title = `${signed(value - whole[name])} against all`;
  });
  note(section, "Green is better and red worse than over all keyframes; the colour is full at the largest difference of the " +
    "column, or at 0.05 if that is larger. Numbers without colour are amounts.");
}

if (Object.keys(corruptions).length) {
  const levelsOf = ({levels}, score) =>
    [whole, ...levels].map((scores, i) => [i, scores[score]]).filter(([, value]) => typeof value === "number");
  note(diagrams("corruptions", "Robustness: score by severity", Object.entries(corruptions).map(([name, found]) => ({
    title: words(name),
    axes: [found.unit, "score"],
    lines: data.main.map(score => ({name: score, points: levelsOf(found, score)})),
    ticks: ["none", ...found.levels.map(each => `${each.level}`)],
  }))), "Each diagram begins with the score without corruption.");
}

if (curves.length) diagrams("curves", "Curves", curves);

const fromAbove = (parent, outlines) => {
  const svg = draw("svg", parent, {viewBox: "-54 -54 108 108"});
  for (const r of [20, 50]) draw("circle", svg, {r});
  draw("rect", svg, {x: -1, y: -2.3, width: 2, height: 4.6, class: "ego"});
  for (const {kind, name, corners} of outlines) {
    const shape = draw("polygon", svg, {points: corners.map(([ahead, left]) => `${-left},${-ahead}`).join(" "), class: kind});
    draw("title", shape, {}, `${name}, ${kind}`);
  }
};
if (worst.some(each => each.samples.length)) {
  const section = panel(main, "Worst samples", {id: "worst"});
  for (const {task, samples} of worst.filter(each => each.samples.length)) {
    make("h3", section, words(task));
    const grid = make("div", section, null, {className: "samples"});
    for (const sample of samples) {
      const card = make("div", grid, null, {className: "sample"});
      make("b", card, sample.scene);
      make("div", card, sample.conditions, {className: "dim"});
      make("code", card, sample.token);
      make("div", card, sample.text);
      if (sample.outlines.length) fromAbove(card, sample.outlines);
    }
  }
  const legend = note(section, "Footprints from above, the vehicle in the middle drives up, rings at 20 and 50 m: ");
  const kinds = {found: "annotated and found", missed: "annotated and missed", right: "detected rightly", extra: "detected where nothing is annotated"};
  Object.entries(kinds).forEach(([className, text], i) => {
    make("span", legend, text, {className});
    legend.append(i < 3 ? ", " : ".");
  });
}

const grid = make("section", main, null, {id: "tables"});
for (const {title, head, rows, foot} of tables) {
  const table = make("table", panel(grid, title, {className: "panel wide"}));
  header(table, head);
  for (const cells of rows) row(table, cells);
  if (foot.length) row(table, foot, "foot");
}
