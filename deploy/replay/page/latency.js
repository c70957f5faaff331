// Latencies of all frames, and what ran; below the frames.

const below = make("section", main, null, {className: "below"});
if (timed) {
  const least = Math.min(...totals), BINS = Math.min(40, Math.max(8, Math.ceil(Math.sqrt(frameCount) * 2)));
  const span = Math.max(slowest - least, 1e-3), counts = new Array(BINS).fill(0);
  for (const ms of totals) counts[Math.min(BINS - 1, Math.floor((ms - least) / span * BINS))] += 1;
  const most = Math.max(...counts), along = ms => 12 + 616 * (ms - least) / span;
  const distribution = panel(below, "Latency of all stages, frames by ms");
  const histogram = draw("svg", distribution, {id: "histogram", viewBox: "0 0 640 190"});
  counts.forEach((count, i) => {
    const tall = 130 * count / most;
    const bar = draw("rect", histogram, {x: 12 + 616 * i / BINS, y: 160 - tall, width: 616 / BINS - 1.5, height: tall, rx: 1.5, fill: "#5cc8ff"});
    draw("title", bar, {}, `${plural(count, "frame")} of ${(least + span * i / BINS).toFixed(1)} to ${(least + span * (i + 1) / BINS).toFixed(1)} ms`);
  });
  draw("line", histogram, {x1: 12, x2: 628, y1: 160.5, y2: 160.5, stroke: "#33404f"});
  ["p50", "p95", "p99"].forEach((p, i) => {
    const x = along(total[p]), right = x > 560;
    draw("line", histogram, {x1: x, x2: x, y1: 6 + 12 * i, y2: 160, stroke: "#ffb627", "stroke-dasharray": "3 3"});
    draw("text", histogram, {x: right ? x - 4 : x + 4, y: 15 + 12 * i, class: right ? "name end" : "name"}, `${p} ${total[p].toFixed(1)}`);
  });
  draw("text", histogram, {x: 12, y: 178, class: "name"}, `${least.toFixed(1)} ms`);
  draw("text", histogram, {x: 628, y: 178, class: "name end"}, `${slowest.toFixed(1)} ms`);
  note(distribution, `${plural(frameCount, "frame")}; the tallest bar is ${plural(most, "frame")}.`);

  const stages = panel(below, "Latency, ms"), latencies = make("table", stages, null, {id: "latency"});
  header(latencies, ["stage", "p50", "p95", "p99", ""]);
  for (const [stage, numbers] of Object.entries(data.latency.stages)) {
    row(latencies, [
      cell => Object.assign(cell, {textContent: stage, title: data.latency.includes[stage] || "sum of all stages"}),
      ...["p50", "p95", "p99"].map(p => numbers[p].toFixed(1)),
      cell => {
        cell.className = "bars";
        const bar = make("div", cell, null, {className: "bar"});
        bar.style.width = `${100 * numbers.p50 / total.p99}%`;
        bar.style.background = stage === "total" ? "var(--dim)" : `var(--${stage})`;
      },
    ]);
  }
  note(stages, data.stages.map(s => `${s}: ${data.latency.includes[s]}`).join(". ") +
    `. Counted is ${data.latency.counted}. Measured on ${data.latency.machine}; the engine was warm.`);
}

const ran = make("dl", panel(below, "What ran"), null, {className: "facts"});
for (const [name, value] of Object.entries(data.bundle)) { make("dt", ran, name); make("dd", ran, value); }
