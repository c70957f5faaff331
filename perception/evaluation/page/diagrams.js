// A small diagram of lines. Lines are named, with points [x, y]; ticks, if any, are labels for x = 0, 1, 2, ...

const LEFT = 36, RIGHT = 310, TOP = 8, BOTTOM = 180;

const diagram = (parent, {title, axes, lines, ticks}) => {
  const box = make("div", parent);
  make("h3", box, title);
  box.insertAdjacentHTML("beforeend", "<svg viewBox='0 0 320 214'></svg>");
  const svg = box.querySelector("svg");
  const points = lines.flatMap(line => line.points);
  const lastX = ticks ? Math.max(ticks.length - 1, 1) : Math.max(1, ...points.map(([x]) => x));
  const lastY = Math.max(1, ...points.map(([, y]) => y));
  const across = x => LEFT + (RIGHT - LEFT) * x / lastX, up = y => BOTTOM - (BOTTOM - TOP) * y / lastY;
  for (let i = 0; i <= 4; i++) {
    const y = lastY * i / 4;
    draw("line", svg, {x1: LEFT, x2: RIGHT, y1: up(y), y2: up(y), class: "frame"});
    draw("text", svg, {x: LEFT - 5, y: up(y) + 4, class: "name", "text-anchor": "end"}, +y.toFixed(2));
  }
  const labels = ticks || [0, 0.25, 0.5, 0.75, 1].map(share => +(share * lastX).toFixed(2));
  labels.forEach((label, i) => {
    const x = across(ticks ? i : lastX * i / 4);
    draw("line", svg, {x1: x, x2: x, y1: TOP, y2: BOTTOM, class: "frame"});
    draw("text", svg, {x, y: BOTTOM + 14, class: "name", "text-anchor": "middle"}, label);
  });
  draw("text", svg, {x: (LEFT + RIGHT) / 2, y: BOTTOM + 30, class: "name", "text-anchor": "middle"}, axes[0]);
  const legend = make("div", box, null, {className: "legend"});
  lines.forEach(({name, points}, i) => {
    const colour = `var(--line${i % 4})`;
    const path = points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join(" ");
    const line = draw("polyline", svg, {points: path, stroke: colour});
    draw("title", line, {}, `${axes[1]}, ${name}`);
    const entry = make("span", legend);
    make("i", entry).style.background = colour;
    entry.append(name);
  });
};
