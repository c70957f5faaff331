// One frame from above and in the cameras, and what moves from one to another.

const colour = (layer, box) => layer.classes[box.class].colour;
const having = style => data.layers.filter(layer => layer.style === style);
const [annotated, perceived, tracked, rasters, points, voxels] = ["annotated", "perceived", "tracked", "raster", "points", "voxels"].map(having);
const pictured = [...rasters, ...voxels, ...points];  // from below to above
// As the cameras look: the front row, then the rear one, left to right.
const arranged = data.cameras.flat();
const [left, top_, width, height] = data.extent;
let now = 0, timer = null;

const controls = panel(main, "", {className: "panel controls", id: "viewer"});
const button = (text, title, press) => make("button", controls, text, {title, onclick: press});
button("\u25c0\ufe0e", "Left arrow", () => show(now - 1));
const playing = button("Play", "Space", () => play(!timer));
button("\u25b6\ufe0e", "Right arrow", () => show(now + 1));
const slider = (parent, attributes, changed) => make("input", parent, null, {type: "range", oninput: changed, ...attributes});
const position = slider(controls, {id: "position", min: 0, max: data.frames.length - 1, ariaLabel: "keyframe"}, () => show(Number(position.value)));
const counter = make("span", controls, "", {id: "counter", className: "dim"});
const scoring = make("label", controls, "score at least "), [lowest, counted] = data.threshold;
const threshold = slider(scoring, {id: "threshold", min: lowest, max: 0.95, step: 0.01, value: counted}, () => show(now));
const shown = make("output", scoring);

const viewer = make("section", main, null, {className: "viewer"}), mapped = panel(viewer), seen = panel(viewer);
const above = make("div", mapped, null, {className: "above", id: "above"});
const cloud = make("img", above, null, {alt: "", id: "points"}), outlines = draw("svg", above, {id: "boxes"});
outlines.setAttribute("viewBox", `${left} ${top_} ${width} ${height}`);
make("div", above, "no LiDAR in this frame", {className: "absent"});
const legend = make("div", mapped, null, {className: "legend"});
const cameras = make("div", seen, null, {className: "cameras"});
const state = make("div", seen, null, {id: "status"});
const reasoned = make("dl", seen, null, {className: "facts", id: "reasoned"});
const found = make("table", seen);

if (annotated.length) {
  mark(legend, "#fff", "annotated, found", true);
  mark(legend, "#ff5c5c", "annotated, missed", true);
}
const explained = new Set();
for (const layer of data.layers) {
  for (const {name, colour} of layer.classes) {
    const text = layer.style === "raster" ? `${words(layer.name)}: ${words(name)}` : words(name);
    if (!explained.has(text + colour)) mark(legend, colour, text);
    explained.add(text + colour);
  }
}
const checkboxes = new Map(data.layers.map(layer => {
  const label = make("label", controls), box = make("input", label, null, {type: "checkbox", checked: true, oninput: () => show(now)});
  label.append(words(layer.name));
  return [layer, box];
}));
// Points by class cover those by height, all else is below them.
const pictures = new Map(pictured.map(layer => {
  const image = make("img", above, null, {alt: "", className: layer.style});
  above.insertBefore(image, layer.style === "points" ? outlines : cloud);
  return [layer, image];
}));

cameras.style.setProperty("--columns", Math.max(...data.cameras.map(row => row.length), 1));
for (const name of arranged) {
  const tile = make("div", cameras, null, {className: "camera", id: `camera-${name}`});
  if (data.cameras.some(row => row[0] === name)) tile.classList.add("first");
  if (data.cameraHeights[name]) tile.style.aspectRatio = `${data.cameraWidth} / ${data.cameraHeights[name]}`;
  make("img", tile, null, {alt: ""});
  for (const _ of points) make("img", tile, null, {alt: "", className: "projected"});
  draw("svg", tile, {preserveAspectRatio: "none"});
  make("div", tile, "no picture", {className: "absent"});
  make("span", tile, words(name.replace(/^cam(era)?_/i, "")).toLowerCase(), {className: "label"});
  tile.onclick = () => tile.classList.toggle("large");
}

function matched(boxes, truths, within) {
  // Best score first; each takes the nearest free annotation of its class within reach.
  const taken = new Set();
  for (const box of boxes) {
    let nearest = null, distance = within;
    for (const truth of truths) {
      const d = Math.hypot(box.above[4][0] - truth.above[4][0], box.above[4][1] - truth.above[4][1]);
      if (truth.class === box.class && !taken.has(truth) && d < distance) [nearest, distance] = [truth, d];
    }
    if (nearest) taken.add(nearest);
  }
  return taken;
}

function outline(box, style) {
  const [a, b, c, d, middle, front] = box.above.map(p => p.join(" "));
  const to = [box.above[4][0] + box.velocity[0], box.above[4][1] + box.velocity[1]].join(" ");
  const moving = Math.hypot(...box.velocity) > 0.5 ? `M${middle}L${to}` : "";
  return `<path d="M${a}L${b}L${c}L${d}ZM${middle}L${front}" ${style}/>` +
    (moving ? `<path d="${moving}" fill="none" stroke="#fff" stroke-opacity=".6" stroke-width=".18"/>` : "");
}

function edges(ends) {
  let path = "";
  for (let k = 0; k < ends.length; k += 4) path += `M${ends[k]} ${ends[k + 1]}L${ends[k + 2]} ${ends[k + 3]}`;
  return path;
}

function trail(layer, track) {
  // Where the object was, its box and its id; dashed while nothing is seen of it.
  const own = colour(layer, track);
  const [a, b, c, d, [x, y], front] = track.above, path = track.trail.map(p => p.join(" ")).join("L");
  return (track.trail.length > 1 ? `<path d="M${path}" fill="none" stroke="${own}" stroke-width=".35" stroke-opacity=".75" stroke-linecap="round" stroke-linejoin="round"/>` : "") +
    `<path d="M${[a, b, c, d].map(p => p.join(" ")).join("L")}ZM${x} ${y}L${front.join(" ")}" fill="none" stroke="${own}" stroke-width=".22" ${track.faded ? 'stroke-dasharray=".35 .35"' : ""}/>` +
    `<text x="${x + 1.2}" y="${y - 1}" font-size="1.9" fill="${own}" stroke="#080b10" stroke-width=".45" paint-order="stroke">${track.id}</text>`;
}

function facts(frame) {
  reasoned.replaceChildren();
  const line = (name, text, className) => { make("dt", reasoned, name); make("dd", reasoned, text, {className}); };
  for (const [kind, [value, why]] of Object.entries(frame.believed)) {
    if (value) line(kind, why || value, "");
  }
  for (const [name, [weight, why]] of Object.entries(frame.route)) {
    line(name, `${weight > 0 ? "active" : "off"}${why ? `: ${why}` : ""}`, weight > 0 ? "" : "dim");
  }
  for (const [name, why] of Object.entries(frame.doubts)) line(words(name), `seems to be missed: ${why}`, "warning");
  for (const [name, [status, why]] of Object.entries(frame.health)) {
    if (status !== "ok") line(sensor(name), why ? `${status}: ${why}` : status, "warning");
  }
}

function show(index) {
  now = (index + data.frames.length) % data.frames.length;
  const frame = data.frames[now], least = Number(threshold.value);
  const boxesOf = layer => (frame.layers[layer.name] || []).filter(box => layer.style === "annotated" || box.score >= least);
  const matches = new Map(perceived.map(layer => {
    const truth = annotated.find(each => each.task === layer.task && frame.layers[each.name]);
    return [layer, {boxes: boxesOf(layer), truths: truth && boxesOf(truth), taken: truth ? matched(boxesOf(layer), boxesOf(truth), truth.within) : new Set()}];
  }));
  const taken = new Set([...matches.values()].flatMap(each => [...each.taken]));
  const visible = layers => layers.filter(layer => checkboxes.get(layer).checked).flatMap(layer => boxesOf(layer).map(box => [layer, box]));
  position.value = now;
  shown.textContent = least.toFixed(2);
  counter.textContent = `frame ${frame.number + 1} of ${frameCount}`;
  cursor.setAttribute("x", across(frame.number));
  document.querySelectorAll(".worst a").forEach(link => link.classList.toggle("now", link.hash === place(frame.number)));
  if (location.hash && location.hash !== place(frame.number)) history.replaceState(null, "", place(frame.number));

  above.classList.toggle("missing", !frame.points);
  const put = (image, source) => {
    image.style.display = source ? "" : "none";
    if (source) image.src = source;
  };
  const drawn = layer => checkboxes.get(layer).checked && frame.layers[layer.name] || {cameras: {}};
  put(cloud, frame.points);
  for (const layer of pictured) put(pictures.get(layer), drawn(layer).above);
  const truthColour = box => taken.has(box) ? "#ffffff" : "#ff5c5c";
  outlines.innerHTML =
    [10, 20, 30, 40, 50].map(r => `<circle r="${r}" fill="none" stroke="#fff" stroke-opacity=".09" stroke-width=".15"/>` +
      `<text x=".5" y="${-r + 2.2}" font-size="2" fill="#fff" fill-opacity=".35">${r} m</text>`).join("") +
    `<path d="M0 -2.4L1.1 2.2L0 1.4L-1.1 2.2Z" fill="#fff"/>` +
    visible(annotated).map(([, box]) => outline(box, `fill="none" stroke="${truthColour(box)}" stroke-width=".22" stroke-dasharray=".7 .45"`)).join("") +
    visible(perceived).map(([layer, box]) => outline(box, `fill="${colour(layer, box)}" fill-opacity=".28" stroke="${colour(layer, box)}" stroke-width=".2"`)).join("") +
    visible(tracked).map(([layer, track]) => trail(layer, track)).join("");

  for (const name of arranged) {
    const tile = at(`camera-${name}`), source = frame.cameras[name], picture = tile.querySelector("img");
    tile.classList.toggle("missing", !source);
    put(picture, source);
    points.forEach((layer, i) => put(tile.querySelectorAll(".projected")[i], drawn(layer).cameras[name]));
    const paths = (layers, style) => visible(layers).filter(([, box]) => box.cameras[name]).map(([layer, box]) => `<path d="${edges(box.cameras[name])}" fill="none" ${style(box, layer)}/>`).join("");
    const overlay = tile.querySelector("svg");
    overlay.setAttribute("viewBox", `0 0 ${data.cameraWidth} ${data.cameraHeights[name]}`);
    overlay.innerHTML = paths(annotated, box => `stroke="${truthColour(box)}" stroke-opacity=".75" stroke-width="1" stroke-dasharray="3 2"`) +
      paths(perceived, (box, layer) => `stroke="${colour(layer, box)}" stroke-width="1.4"`);
  }

  state.replaceChildren();
  make("strong", state, `${frame.scene}, ${frame.seconds.toFixed(1)} s`);
  make("span", state, [frame.location, ...frame.conditions].filter(Boolean).join(" \u00b7 "), {className: "dim"});
  if (timed) make("span", state, data.stages.map((s, i) => `${s} ${data.milliseconds[frame.number][i].toFixed(0)}`).join(" \u00b7 ") + " ms", {className: "dim"});
  const absent = arranged.filter(name => !frame.cameras[name]);
  const lost = [...(frame.points ? [] : ["LiDAR"]), ...(absent.length && absent.length === arranged.length ? ["all cameras"] : absent)];
  if (lost.length) make("span", state, `missing: ${lost.join(", ")}`, {className: "warning"});

  facts(frame);

  found.replaceChildren();
  for (const [layer, {boxes, truths}] of matches) {
    header(found, ["class", "predicted", ...(truths ? ["annotated", "found", "missed", "extra"] : [])]);
    layer.classes.forEach(({name, colour}, k) => {
      const mine = boxes.filter(box => box.class === k), own = (truths || []).filter(box => box.class === k);
      if (!mine.length && !own.length) return;
      const hits = own.filter(box => taken.has(box)).length;
      const numbers = [mine.length, ...(truths ? [own.length, hits, own.length - hits, mine.length - hits] : [])];
      row(found, [cell => { cell.textContent = words(name); cell.style.color = colour; }, ...numbers]);
    });
  }
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => show(now + 1), 500) : null;
  playing.textContent = on ? "Pause" : "Play";
}
document.addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" && event.target.type === "range" && event.key !== " ") {
    if (event.target === threshold) return;
    event.preventDefault();
  }
  if (event.key === "ArrowLeft") show(now - 1);
  else if (event.key === "ArrowRight") show(now + 1);
  else if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); play(!timer); }
});
// A link to a frame, such as #frame-12, shows it: the one nearest to it that has pictures.
function follow() {
  const wanted = /^#frame-(\d+)$/.exec(location.hash);
  const distance = frame => Math.abs(frame.number + 1 - Number(wanted[1]));
  return wanted ? data.frames.indexOf(data.frames.reduce((a, b) => distance(b) < distance(a) ? b : a)) : -1;
}
window.addEventListener("hashchange", () => {
  if (follow() < 0) return;
  show(follow());
  controls.scrollIntoView();
});
if (annotated.length) note(seen, "Found: an annotated box with a detection of its class, not yet taken by a better one, whose middle is " +
  `within ${annotated[0].within} m, as in the official matching. Annotated boxes without a LiDAR or radar point are left out. For the official scores run perception evaluate.`);
show(Math.max(follow(), 0));
