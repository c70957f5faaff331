// What is the same for all frames: the verdict, the drive over time, injected faults, the worst frames.

const sensor = name => data.lidars.length === 1 && name === data.lidars[0] ? "LiDAR" : words(name.replace(/^cam_/i, "camera_")).toLowerCase();
const frameCount = data.milliseconds.length;
const totals = data.milliseconds.map(stages => stages.reduce((sum, ms) => sum + ms, 0));
const sceneOf = number => data.scenes.filter(([first]) => first <= number).pop()[1];
const place = number => `#frame-${number + 1}`;  // readers count from 1
const timed = data.latency;  // null where nothing was timed
const total = timed && timed.stages.total;

// ---- verdict

const {verdict} = data;
const judged = panel(main, "", {id: "verdict"}), outcome = make("div", judged, null, {className: "outcome"});
judged.classList.add(verdict ? {pass: "passed", fail: "failed", inconclusive: "undecided"}[verdict.outcome] : "unjudged");
make("b", outcome, verdict ? verdict.outcome[0].toUpperCase() + verdict.outcome.slice(1) : data.unjudged[0]);
const summary = make("span", outcome, data.unjudged[1]);
make("span", outcome, `${data.bundle.network} on ${data.bundle.engine}, ${data.bundle.precision}`, {className: "dim", id: "subtitle"});
if (verdict) {
  const having = outcome => verdict.cases.filter(c => c.outcome === outcome);
  const [failed, open] = [having("fail"), having("inconclusive")];
  const gates = plural(verdict.cases.length, "gate");
  summary.textContent = (failed.length && open.length
    ? `of ${gates} ${failed.length} failed, ${open.length} inconclusive`
    : failed.length ? `${failed.length} of ${gates} failed`
    : open.length ? `${open.length} of ${gates} inconclusive` : `all ${gates} passed`) +
    `, ${plural(verdict.frames, "frame")} of ${plural(verdict.scenes, "scene")}` +
    (verdict.baseline ? `, ${Math.round(100 * verdict.common)}% of the replay's, against ${verdict.baseline}` : "");
  const reasons = make("ul", judged, null, {id: "reasons"});
  for (const c of [...failed, ...open]) {
    const reason = make("li", reasons);
    make("strong", reason, c.name);
    reason.append(`: ${c.reason}`);
  }
  const all = make("details", judged, null, {id: "gates"});
  make("summary", all, "All gates");
  const table = make("table", all);
  for (const c of verdict.cases) row(table, [c.outcome, c.name, c.reason], c.outcome);
}

const ill = new Set(data.lanes.filter(lane => lane.kind === "health").flatMap(lane => lane.spans)
  .filter(span => span.value !== "ok")
  .flatMap(span => Array.from({length: span.to - span.from + 1}, (_, i) => span.from + i)));
tiles([
  [frameCount, frameCount === 1 ? "frame" : "frames"],
  [data.scenes.length, data.scenes.length === 1 ? `scene: ${data.scenes[0][1]}` : "scenes"],
  ...(timed ? [
    [ill.size, ill.size === 1 ? "frame with an ill sensor" : "frames with an ill sensor"],
    [`${timed.stages.engine.p50.toFixed(1)} ms`, "engine, median"],
    [`${total.p50.toFixed(1)} ms`, "all stages, median"],
    [`${total.p99.toFixed(1)} ms`, "all stages, 99th percentile"],
  ] : []),
]);

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
const drive = panel(timed ? main : document.createElement("div"), "Over the drive", {id: "drive"}), lanes = draw("svg", drive, {id: "lanes"});
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
shownLanes.forEach((lane, i) => {
  const y = BARS + 8 + LANE * i;
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
note(drive, "Time of each frame, conditions by tags and as believed, active modules and why, health of the sensors. " +
  (data.frames.length < frameCount ? `${data.frames.length} of ${frameCount} frames have pictures: the worst, and others evenly spread. ` : "") +
  "Click to see the nearest frame with pictures.");

// ---- injected faults

if (data.faults.length) {
  const table = make("table", panel(main, "Injected faults, and what was found", {id: "faults"}));
  for (const each of data.faults) {
    const found = Object.entries(each.delays).map(([name, seconds]) => `${name} after ${seconds.toFixed(1)} s`).join(", ");
    row(table, [
      each.detected ? "detected" : "not detected", each.fault, sensor(each.sensor), found || "nothing",
      `in ${each.detected} of ${plural(each.frames, "frame")}`,
    ], each.detected ? "pass" : "fail");
  }
}

// ---- worst frames

const MEASURES = {mistakes: "most mistakes", slowest: "slowest", sensors: "ill sensors"};
const worst = data.worst.length ? panel(main, "Worst frames", {id: "worst"}) : null;
for (const [measure, title] of Object.entries(MEASURES)) {
  const listed = data.worst.filter(each => each.measure === measure);
  if (!listed.length) continue;
  const line = make("div", worst, null, {className: "worst"});
  make("span", line, title, {className: "dim"});
  for (const each of listed) {
    const link = make("a", line, null, {href: place(each.number), title: sceneOf(each.number)});
    make("b", link, `frame ${each.number + 1}`);
    link.append(each.text);
  }
}
