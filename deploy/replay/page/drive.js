// What is the same for all frames: the verdict, the worst frames, the drive over time, latencies.

const sensor = name => data.lidars.length === 1 && name === data.lidars[0] ? "LiDAR" : words(name.replace(/^cam_/i, "camera_")).toLowerCase();
const frameCount = data.milliseconds.length;
const totals = data.milliseconds.map(stages => stages.reduce((sum, ms) => sum + ms, 0));
const sceneOf = number => data.scenes.filter(([first]) => first <= number).pop()[1];
const place = number => `#frame-${number + 1}`;  // readers count from 1
const total = data.latency.stages.total;

// ---- verdict

const {verdict} = data;
at("verdict").classList.add(verdict ? {pass: "passed", fail: "failed", inconclusive: "undecided"}[verdict.outcome] : "unjudged");
at("outcome").textContent = verdict ? verdict.outcome[0].toUpperCase() + verdict.outcome.slice(1) : "Replay";
at("subtitle").textContent = `${data.bundle.network} on ${data.bundle.engine}, ${data.bundle.precision}`;
if (verdict) {
  const having = outcome => verdict.cases.filter(c => c.outcome === outcome);
  const [failed, open] = [having("fail"), having("inconclusive")];
  const gates = plural(verdict.cases.length, "gate");
  at("judged").textContent = (failed.length && open.length
    ? `of ${gates} ${failed.length} failed, ${open.length} inconclusive`
    : failed.length ? `${failed.length} of ${gates} failed`
    : open.length ? `${open.length} of ${gates} inconclusive` : `all ${gates} passed`) +
    `, ${plural(verdict.frames, "frame")} of ${plural(verdict.scenes, "scene")}` +
    (verdict.baseline ? `, ${Math.round(100 * verdict.common)}% of the replay's, against ${verdict.baseline}` : "");
  for (const c of [...failed, ...open]) {
    const reason = make("li", at("reasons"));
    make("strong", reason, c.name);
    reason.append(`: ${c.reason}`);
  }
  at("gates").querySelector("summary").textContent = "All gates";
  for (const c of verdict.cases) {
    const row = make("tr", at("gates").querySelector("table"), null, {className: c.outcome});
    for (const text of [c.outcome, c.name, c.reason]) make("td", row, text);
  }
} else {
  at("judged").textContent = "not judged: neither gates nor a baseline were given";
  at("gates").remove();
}

const ill = new Set(data.lanes.filter(lane => lane.kind === "health").flatMap(lane => lane.spans)
  .filter(span => span.value !== "ok")
  .flatMap(span => Array.from({length: span.to - span.from + 1}, (_, i) => span.from + i)));
for (const [number, what] of [
  [frameCount, frameCount === 1 ? "frame replayed" : "frames replayed"],
  [data.scenes.length, data.scenes.length === 1 ? `scene: ${data.scenes[0][1]}` : "scenes"],
  [ill.size, ill.size === 1 ? "frame with an ill sensor" : "frames with an ill sensor"],
  [`${data.latency.stages.engine.p50.toFixed(1)} ms`, "engine, median"],
  [`${total.p50.toFixed(1)} ms`, "all stages, median"],
  [`${total.p99.toFixed(1)} ms`, "all stages, 99th percentile"],
]) {
  const tile = make("div", at("tiles"), null, {className: "panel tile"});
  make("b", tile, number);
  make("span", tile, what, {className: "dim"});
}

// ---- injected faults

for (const each of data.faults) {
  const found = Object.entries(each.delays).map(([name, seconds]) => `${name} after ${seconds.toFixed(1)} s`).join(", ");
  const row = make("tr", at("faults").querySelector("table"), null, {className: each.detected ? "pass" : "fail"});
  for (const text of [each.detected ? "detected" : "not detected", each.fault, sensor(each.sensor), found || "nothing",
    `in ${each.detected} of ${plural(each.frames, "frame")}`]) make("td", row, text);
}
if (!data.faults.length) at("faults").remove();

// ---- worst frames

const MEASURES = {mistakes: "most mistakes", slowest: "slowest", sensors: "ill sensors"};
for (const [measure, title] of Object.entries(MEASURES)) {
  const listed = data.worst.filter(each => each.measure === measure);
  if (!listed.length) continue;
  const row = make("div", at("worst").querySelector("div"), null, {className: "worst"});
  make("span", row, title, {className: "dim"});
  for (const each of listed) {
    const link = make("a", row, null, {href: place(each.number), title: sceneOf(each.number)});
    make("b", link, `frame ${each.number + 1}`);
    link.append(each.text);
  }
}
if (!data.worst.length) at("worst").remove();

// ---- lanes; x is the number of the frame

const LANE = 20, BARS = 90, SIDE = 150, WIDE = 1400, COLUMNS = 700;
const across = number => SIDE + (WIDE - SIDE) * number / frameCount;
const shownLanes = data.lanes.filter(lane => !["tags", "conditions"].includes(lane.kind) || lane.spans.some(span => span.value));
const starts = new Set(data.scenes.map(([first]) => first));
const laneName = lane => {
  if (lane.kind === "health") return sensor(lane.name);
  if (lane.kind === "tags") return `${lane.name} by tags`;
  const switches = lane.spans.filter(span => !starts.has(span.from)).length;
  return words(lane.name) + (lane.kind === "route" && switches ? `, ${switches} switch${switches === 1 ? "" : "es"}` : "");
};
const lanes = at("lanes");
const high = BARS + 24 + LANE * shownLanes.length;
lanes.setAttribute("viewBox", `0 0 ${WIDE} ${high}`);
const shade = (lane, value) => {
  if (lane.kind === "health") return value === "ok" ? "#1f3d33" : "#ff5c5c";
  if (lane.kind === "route") return value === "0" ? "#1b232e" : "#5cc8ff";
  return {clear: "#3a7ca5", rain: "#4361ee", fog: "#8d99ae", day: "#c9a227", night: "#3d348b"}[value] || (value ? "#2a9d8f" : "#1b232e");
};
// Bars of time; where there are more frames than columns, each shows the slowest of its frames.
const columns = Math.min(frameCount, COLUMNS), slowest = Math.max(...totals);
const worstOf = Array.from({length: columns}, (_, c) => {
  const first = Math.floor(c * frameCount / columns), last = Math.max(first + 1, Math.floor((c + 1) * frameCount / columns));
  let worst = first;
  for (let i = first; i < last; i++) if (totals[i] > totals[worst]) worst = i;
  return worst;
});
const base = worstOf.map(() => BARS);
data.stages.forEach((stage, s) => {
  const step = (WIDE - SIDE) / columns;
  const path = worstOf.map((number, c) => {
    const tall = 80 * data.milliseconds[number][s] / slowest, x = SIDE + c * step;
    base[c] -= tall;
    return `M${x.toFixed(1)} ${base[c].toFixed(1)}h${(step * 0.88).toFixed(2)}v${tall.toFixed(1)}h${(-step * 0.88).toFixed(2)}Z`;
  }).join("");
  draw("path", lanes, {d: path, fill: `var(--${stage})`});
});
draw("text", lanes, {x: 0, y: BARS - 4, class: "name"}, `time, up to ${slowest.toFixed(0)} ms`);
shownLanes.forEach((lane, row) => {
  const y = BARS + 8 + LANE * row;
  const bad = lane.kind === "health" ? lane.spans.some(span => span.value !== "ok") : false;
  draw("text", lanes, {x: 0, y: y + 13, class: bad ? "name bad" : "name"}, laneName(lane));
  for (const span of lane.spans) {
    const x = across(span.from), wide = across(span.to + 1) - x;
    const bar = draw("rect", lanes, {x, y, width: Math.max(wide - 1, 0.6), height: LANE - 4, rx: 2, fill: shade(lane, span.value)});
    draw("title", bar, {}, [`${lane.kind === "tags" ? laneName(lane) : words(lane.name)}: ${span.value || "unknown"}`, span.why].filter(Boolean).join("\n"));
    const label = lane.kind === "route" ? (span.value === "0" ? "" : span.why) : span.value === "ok" ? "" : span.value;
    const fits = label.slice(0, Math.floor(wide / 6.4));
    if (fits.length > 2) draw("text", lanes, {x: x + 5, y: y + 12, class: lane.kind === "route" ? "inside dark" : "inside"}, fits);
  }
});
for (const [first, name] of data.scenes) {
  draw("line", lanes, {x1: across(first), x2: across(first), y1: 0, y2: high - 14, class: "begin"});
  if (data.scenes.length < 12) draw("text", lanes, {x: across(first) + 3, y: high - 3, class: "name"}, name);
}
const cursor = draw("rect", lanes, {y: 0, height: high - 16, width: Math.max((WIDE - SIDE) / frameCount, 2), class: "cursor"});
lanes.onclick = event => {
  const box = lanes.getBoundingClientRect();
  const number = ((event.clientX - box.left) / box.width * WIDE - SIDE) / (WIDE - SIDE) * frameCount - 0.5;
  const nearest = data.frames.reduce((a, b) => Math.abs(b.number - number) < Math.abs(a.number - number) ? b : a);
  location.hash = place(nearest.number);
};
at("lanesNote").textContent = "Time of each frame, conditions by tags and as believed, active modules and why, health of the sensors. " +
  (data.frames.length < frameCount ? `${data.frames.length} of ${frameCount} frames have pictures: the worst, and others evenly spread. ` : "") +
  "Click to see the nearest frame with pictures.";

// ---- latency

const stageColour = stage => stage === "total" ? "var(--dim)" : `var(--${stage})`;
const head = make("tr", at("latency"));
for (const title of ["stage", "p50", "p95", "p99", ""]) make("th", head, title);
for (const [stage, numbers] of Object.entries(data.latency.stages)) {
  const row = make("tr", at("latency"));
  make("td", row, stage, {title: data.latency.includes[stage] || "sum of all stages"});
  for (const p of ["p50", "p95", "p99"]) make("td", row, numbers[p].toFixed(1));
  const bar = make("div", make("td", row, null, {className: "wide"}), null, {className: "bar"});
  bar.style.width = `${100 * numbers.p50 / total.p99}%`;
  bar.style.background = stageColour(stage);
}
at("latencyNote").textContent = data.stages.map(s => `${s}: ${data.latency.includes[s]}`).join(". ") +
  `. Counted is ${data.latency.counted}. Measured on ${data.latency.machine}; the engine was warm.`;

const least = Math.min(...totals), BINS = Math.min(40, Math.max(8, Math.ceil(Math.sqrt(frameCount) * 2)));
const span = Math.max(slowest - least, 1e-3), counts = new Array(BINS).fill(0);
for (const ms of totals) counts[Math.min(BINS - 1, Math.floor((ms - least) / span * BINS))] += 1;
const most = Math.max(...counts), along = ms => 12 + 616 * (ms - least) / span;
counts.forEach((count, i) => {
  const tall = 130 * count / most;
  const bar = draw("rect", at("histogram"), {x: 12 + 616 * i / BINS, y: 160 - tall, width: 616 / BINS - 1.5, height: tall, rx: 1.5, fill: "#5cc8ff"});
  draw("title", bar, {}, `${plural(count, "frame")} of ${(least + span * i / BINS).toFixed(1)} to ${(least + span * (i + 1) / BINS).toFixed(1)} ms`);
});
draw("line", at("histogram"), {x1: 12, x2: 628, y1: 160.5, y2: 160.5, stroke: "#33404f"});
["p50", "p95", "p99"].forEach((p, i) => {
  const x = along(total[p]), right = x > 560;
  draw("line", at("histogram"), {x1: x, x2: x, y1: 6 + 12 * i, y2: 160, stroke: "#ffb627", "stroke-dasharray": "3 3"});
  draw("text", at("histogram"), {x: right ? x - 4 : x + 4, y: 15 + 12 * i, class: "name", "text-anchor": right ? "end" : "start"}, `${p} ${total[p].toFixed(1)}`);
});
draw("text", at("histogram"), {x: 12, y: 178, class: "name"}, `${least.toFixed(1)} ms`);
draw("text", at("histogram"), {x: 628, y: 178, class: "name", "text-anchor": "end"}, `${slowest.toFixed(1)} ms`);
at("histogramNote").textContent = `${plural(frameCount, "frame")}; the tallest bar is ${plural(most, "frame")}.`;
for (const [name, value] of Object.entries(data.bundle)) { make("dt", at("facts"), name); make("dd", at("facts"), value); }
