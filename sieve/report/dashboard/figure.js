// The figure as a whole: drawn for its width, told by pointer and keyboard, picked from.
const tip = made("div", "tip");
tip.hidden = true;

function drawFigure() {
  const [x, y] = [controls.x.value, measures[controls.y.value]];
  const indices = state.shown.filter((index) =>
    runs[index].series === controls.series.value && isDrawn(runs[index], x, y ?? measures.metric));
  hideTip();
  if (!indices.length) {
    figure.replaceChildren(made("p", "note", "No run that is shown can be drawn here."));
    return;
  }
  const first = runs[indices[0]], factor = y.factor(first);
  const width = Math.max(figure.clientWidth, 260), height = width < 500 ? 320 : 400;
  const scaled = indices.map((index) => factor * y.value(runs[index]));
  const space = { width, height, left: MARGIN.left, bottom: height - MARGIN.bottom };
  const limits = drawLines({ ...space, py: () => 0 }, indices, y).limits.map((value) => factor * value);
  const across = sizes(indices.map((index) => runs[index][x]), width < 500 ? 5 : 9);
  const upwards = linear(Math.min(...scaled, ...limits), Math.max(...scaled, ...limits), 6);
  space.px = (value) => space.left + 6 + across.at(value) * (width - space.left - MARGIN.right - 12);
  space.py = (value) => space.bottom - 6 - upwards.at(value) * (space.bottom - MARGIN.top - 12);
  const picture = drawn("svg", { width, height, role: "group", "aria-labelledby": "front-heading" });
  const upTitle = made("p", "upwards");
  upTitle.id = "upwards";
  const best = front(indices, x, y), tones = toneOf(indices);
  figure.replaceChildren(upTitle, picture, tip, legend(tones, indices), caption(best.length));
  picture.append(drawAxes(space, across, upwards, first, x, y), drawLines(space, indices, y).lines, drawFront(best, space, x, y));
  const order = [...indices].sort((a, b) => state.picks.includes(a) - state.picks.includes(b) || runs[a][x] - runs[b][x]);
  const points = order.map((index) => drawPoint(index, space, x, y, tones.of(runs[index]), best.includes(index)));
  picture.append(...points);
  (points.find((point) => Number(point.dataset.run) === focused) ?? points[0]).setAttribute("tabindex", 0);
}

function caption(many) {
  const node = made("figcaption", "", many > 1
    ? "The line joins the runs that no other one beats in size and in what is lost at once. "
    : "No run beats the one on the line in size and in what is lost at once. ");
  node.append("Click a point, or press Enter on it, to compare its run; arrow keys go from one to the next.");
  return node;
}

function showTip(point) {
  const run = runs[Number(point.dataset.run)];
  const lines = [["Kept", run.text.kept], [run.metric, run.text.scores],
    [run.relative ? "Rise" : "Drop", run.text.drop], ["Verdict", run.verdict_text]];
  const facts = made("dl", "");
  for (const [term, value] of lines) facts.append(made("dt", "", term), made("dd", "", value));
  tip.replaceChildren(made("strong", "", method(run)), made("span", "note", run.model), facts,
    made("span", "note", `${run.folder}${run.date ? `, ${run.date}` : ""}`));
  tip.hidden = false;
  const box = point.querySelector(".mark").getBoundingClientRect(), home = figure.getBoundingClientRect();
  const [cx, cy] = [box.left + box.width / 2 - home.left, box.top - home.top - 8];
  const left = Math.min(Math.max(cx - tip.offsetWidth / 2, 0), Math.max(home.width - tip.offsetWidth, 0));
  const above = cy - tip.offsetHeight - 12;
  tip.style.left = `${left}px`;
  tip.style.top = `${above >= -60 ? above : cy + 24}px`;
}

function hideTip() {
  tip.hidden = true;
}

function step(from, by) {
  const points = [...figure.querySelectorAll(".point")]
    .sort((a, b) => a.querySelector(".reach").cx.baseVal.value - b.querySelector(".reach").cx.baseVal.value);
  const next = points[points.indexOf(from) + by];
  if (!next) return;
  from.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
}

function onKey(event) {
  const point = event.target.closest(".point");
  if (event.key === "Escape") hideTip();
  if (!point) return;
  const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (by) step(point, by);
  else if (event.key === "Enter" || event.key === " ") {
    pick(Number(point.dataset.run));
    figure.querySelector(`[data-run="${point.dataset.run}"]`)?.focus();
  } else return;
  event.preventDefault();
}

function startPlot() {
  const varies = (key) => new Set(runs.map((run) => run[key])).size > 1;
  const keys = ["search", "projection", "model"];
  const chosen = keys.find(varies) ?? keys[0];
  controls.colour.append(...keys.map((key) => option(key, key, key === chosen)));
  controls.addEventListener("input", () => { fillSelects(); drawFigure(); });
  controls.addEventListener("submit", (event) => event.preventDefault());
  figure.addEventListener("pointerover", (event) => {
    const point = event.target.closest(".point");
    if (point) showTip(point);
    else hideTip();
  });
  figure.addEventListener("pointerleave", hideTip);
  figure.addEventListener("focusin", (event) => {
    const point = event.target.closest(".point");
    if (!point) return;
    focused = Number(point.dataset.run);
    showTip(point);
  });
  figure.addEventListener("focusout", hideTip);
  figure.addEventListener("click", (event) => {
    const point = event.target.closest(".point");
    if (point) pick(Number(point.dataset.run));
  });
  figure.addEventListener("keydown", onKey);
  let width = 0;
  new ResizeObserver(() => {
    if (figure.clientWidth !== width) drawFigure();
    width = figure.clientWidth;
  }).observe(figure);
}

onShown.push(() => { fillSelects(); drawFigure(); });
onPicks.push(drawFigure);
