// All runs of one task: what each kept against its metric or its drop, and which none other beats.
const figure = at("front"), controls = at("front-controls");
const TONES = 6; // colours of the palette; what is beyond them shares the last, a grey
const SHAPES = { met: "within", uncertain: "within, its interval not", missed: "not within", unknown: "not measured" };
const MARGIN = { left: 52, right: 14, top: 14, bottom: 44 };
let focused = null;

const measures = {
  metric: {
    name: (run) => run.metric, value: (run) => run.pruned,
    better: (run) => (run.relative ? 1 : -1), factor: (run) => (run.relative ? 1 : 100),
    unit: (run) => (run.relative ? "" : "%"),
    ends: (run) => (run.relative ? [run.low, run.high].map((end) => run.dense * (1 + end))
      : [run.low, run.high].map((end) => run.dense - end)),
  },
  drop: {
    name: (run) => (run.relative ? `rise of the ${run.metric}` : "drop"), value: (run) => run.drop,
    better: () => 1, factor: () => 100, unit: (run) => (run.relative ? "%" : "points"),
    ends: (run) => [run.low, run.high],
  },
};

const isDrawn = (run, x, y) => run[x] !== null && y.value(run) !== null;

// A run is on the front when no other is both smaller and better.
function front(drawnRuns, x, y) {
  let best = Infinity;
  const sign = (index) => y.better(runs[index]) * y.value(runs[index]);
  return [...drawnRuns].sort((a, b) => runs[a][x] - runs[b][x] || sign(a) - sign(b))
    .filter((index) => sign(index) < best && ((best = sign(index)), true));
}

function fillSelects() {
  const counts = new Map();
  for (const index of state.shown) {
    counts.set(runs[index].series, (counts.get(runs[index].series) ?? 0) + 1);
  }
  const names = [...counts.keys()].sort();
  const most = names.reduce((one, other) => (counts.get(other) > (counts.get(one) ?? 0) ? other : one), names[0]);
  const chosen = counts.has(controls.series.value) ? controls.series.value : most;
  controls.series.replaceChildren(...names.map((name) => option(name, `${name} (${counts.get(name)})`, name === chosen)));
  const first = runs.find((run) => run.series === chosen);
  if (!first) return;
  const asked = controls.y.value || "metric";
  controls.y.replaceChildren(...Object.entries(measures).map(([key, measure]) =>
    option(key, measure.name(first), key === asked)));
}

function mark(kind, x, y, css) {
  if (kind === "missed") {
    return drawn("path", { class: css, d: `M${x - 4.5},${y - 4.5}l9,9m0,-9l-9,9` });
  }
  return drawn("circle", { class: css, cx: x, cy: y, r: 5 });
}

function drawAxes(space, across, upwards, first, x, y) {
  const grid = drawn("g", { class: "axes", "aria-hidden": "true" });
  const { left, bottom, width, height, px, py } = space;
  for (const tick of across.ticks) {
    grid.append(drawn("line", { x1: px(tick), x2: px(tick), y1: MARGIN.top, y2: bottom }),
      drawn("text", { x: px(tick), y: bottom + 18, "text-anchor": "middle" }, sizeTick(tick)));
  }
  for (const tick of upwards.ticks) {
    grid.append(drawn("line", { x1: left, x2: width - MARGIN.right, y1: py(tick), y2: py(tick) }),
      drawn("text", { x: left - 8, y: py(tick) + 4, "text-anchor": "end" }, decimal(tick, upwards.digits)));
  }
  const what = x === "kept" ? "Prunable parameters kept" : "Parameters of the whole model kept";
  grid.append(drawn("text", { x: width - MARGIN.right, y: height - 6, "text-anchor": "end", class: "title" },
    `${what}, %${across.log ? " (logarithmic)" : ""}`));
  const unit = y.unit(first);
  at("upwards").textContent = `${y.name(first)[0].toUpperCase()}${y.name(first).slice(1)}${unit ? `, ${unit}` : ""}`;
  return grid;
}

// The dense model and the tolerance, where they are the same for all.
function drawLines(space, indices, y) {
  const lines = drawn("g", { class: "limits", "aria-hidden": "true" });
  const same = (values) => (values[0] !== null && values.every((value) => Math.abs(value - values[0]) < 1e-6) ? values[0] : null);
  const dense = same(indices.map((index) => runs[index].dense));
  const tolerance = same(indices.map((index) => runs[index].tolerance));
  const first = runs[indices[0]], isDrop = y === measures.drop;
  const limit = tolerance === null ? null : isDrop ? tolerance
    : dense === null ? null : first.relative ? dense * (1 + tolerance) : dense - tolerance;
  for (const [name, value] of [["dense", isDrop ? 0 : dense], ["tolerance", limit]]) {
    if (value === null) continue;
    const height = space.py(value * y.factor(first));
    lines.append(drawn("line", { x1: space.left, x2: space.width - MARGIN.right, y1: height, y2: height, class: name }),
      drawn("text", { x: space.width - MARGIN.right, y: height - 5, "text-anchor": "end" }, name));
  }
  return { lines, limits: [isDrop ? 0 : dense, limit].filter((value) => value !== null) };
}

function drawFront(indices, space, x, y) {
  const corners = indices.map((index) => [space.px(runs[index][x]), space.py(y.value(runs[index]) * y.factor(runs[index]))]);
  if (!corners.length) return drawn("g", {});
  const path = corners.map(([cx, cy], place) => (place ? `H${cx}V${cy}` : `M${cx},${cy}`)).join("");
  return drawn("path", { class: "front", d: `${path}H${space.width - MARGIN.right}`, "aria-hidden": "true" });
}

function drawPoint(index, space, x, y, tone, onFront) {
  const run = runs[index], factor = y.factor(run), place = state.picks.indexOf(index);
  const [cx, cy] = [space.px(run[x]), space.py(y.value(run) * factor)];
  const group = drawn("g", {
    class: `point tone-${tone} ${run.verdict}${onFront ? " on-front" : ""}${place >= 0 ? " picked" : ""}`,
    role: "button", tabindex: -1, "data-run": index, "aria-pressed": place >= 0,
    "aria-label": `${run.model}, ${label(run)}: ${run.text.scores}, drop ${run.text.drop}, ${run.verdict_text}`,
  });
  const ends = y.ends(run);
  if (run.low !== null && run.high !== null && ends.every(Number.isFinite)) {
    const [y1, y2] = ends.map((end) => space.py(end * factor));
    group.append(drawn("line", { class: "interval", x1: cx, x2: cx, y1, y2 }));
  }
  group.append(drawn("circle", { class: "reach", cx, cy, r: 12 }), mark(run.verdict, cx, cy, "mark"));
  if (place >= 0) group.append(drawn("text", { class: "letter", x: cx, y: cy - 12, "text-anchor": "middle" }, LETTERS[place]));
  return group;
}

function toneOf(indices) {
  const key = controls.colour.value, names = [...new Set(runs.map((run) => run[key]))].sort();
  const used = names.filter((name) => indices.some((index) => runs[index][key] === name));
  return { of: (run) => Math.min(names.indexOf(run[key]), TONES), used, names };
}

function legend(tones, indices) {
  const list = made("ul", "legend");
  for (const name of tones.used) {
    const item = made("li", "", name);
    item.prepend(drawn("svg", { width: 12, height: 12, "aria-hidden": "true", class: `tone-${Math.min(tones.names.indexOf(name), TONES)} met` }, mark("met", 6, 6, "mark")));
    list.append(item);
  }
  for (const [kind, words] of Object.entries(SHAPES)) {
    if (!indices.some((index) => runs[index].verdict === kind)) continue;
    const item = made("li", "shape", words);
    item.prepend(drawn("svg", { width: 12, height: 12, "aria-hidden": "true", class: `plain ${kind}` }, mark(kind, 6, 6, "mark")));
    list.append(item);
  }
  return list;
}
