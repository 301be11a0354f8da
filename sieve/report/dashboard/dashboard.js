// The table sorts, filters and selects runs. Plotly draws the shown runs and compares the selected.
"use strict";
(() => {
const { runs, fronts, style } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const table = at("runs"), filters = at("filters"), controls = at("front-controls");
const heads = [...table.tHead.querySelectorAll("[data-key]")];
const rows = runs.map((_, index) => at(`run-${index}`));
const { font, yaxis: { linecolor }, colorway } = style.template.layout;
const CONFIG = { responsive: true, displayModeBar: false };
const NUMBERED = 40; // layers that leave room for numbers in a level map
let shown = [...runs.keys()], picks = [];

const letter = (place) => (place < 26 ? String.fromCharCode(65 + place) : String(place + 1));

function element(tag, attributes, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function isShown(index) {
  const text = `${rows[index].textContent} ${rows[index].dataset.folder}`.toLowerCase();
  const words = filters.words.value.toLowerCase().split(/\s+/);
  return words.every((word) => text.includes(word)) && ["task", "model", "search", "projection"]
    .every((key) => !filters[key].value || filters[key].value === runs[index][key]);
}

function filterRuns() {
  shown = [...runs.keys()].filter(isShown);
  rows.forEach((row, index) => { row.hidden = !shown.includes(index); });
  const all = `${runs.length} run${runs.length === 1 ? "" : "s"}`;
  at("shown").textContent = shown.length < runs.length ? `${shown.length || "None"} of ${all}` : all;
  drawFront();
}

// Cells without a value come last in either direction. Equal cells keep their order.
function sortBy(head) {
  const column = head.cellIndex, descending = head.ariaSort === "ascending";
  const numeric = head.classList.contains("number") || head.dataset.key === "verdict";
  for (const other of heads) other.ariaSort = "none";
  head.ariaSort = descending ? "descending" : "ascending";
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[column].dataset.value);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  }));
}

function pick(index) {
  picks = picks.includes(index) ? picks.filter((other) => other !== index) : [...picks, index];
  drawAll();
}

function markPicks() {
  rows.forEach((row, index) => {
    const place = picks.indexOf(index);
    row.classList.toggle("picked", place >= 0);
    row.querySelector("input").checked = place >= 0;
    row.querySelector(".pick").dataset.letter = place < 0 ? "" : letter(place);
  });
}

// The runs that no other run beats in both size and measure, the smallest first. A run whose dense
// model is no better than chance beats none.
function frontOf(members, size, measure, larger) {
  const loss = (run) => (larger ? -1 : 1) * run.measures[measure][0];
  let best = Infinity;
  return members.filter((run) => !run.at_chance).sort((a, b) => a[size] - b[size] || loss(a) - loss(b))
    .filter((run) => loss(run) < best && ((best = loss(run)), true));
}

function pointsOf(members, size, measure) {
  return {
    x: members.map((run) => run[size]),
    y: members.map((run) => run.measures[measure][0]),
    error_y: {
      array: members.map((run) => run.measures[measure][1]),
      arrayminus: members.map((run) => run.measures[measure][2]),
      symmetric: false, thickness: 1, width: 0,
    },
    text: members.map((run) => run.hover),
    customdata: members.map((run) => runs.indexOf(run)),
    hovertemplate: "%{text}<extra></extra>",
    mode: "markers",
  };
}

function frontTraces(members, size, measure, key, larger) {
  const names = [...new Set(runs.map((run) => run[key]))].sort();
  const quiet = { showlegend: false, hoverinfo: "skip", hovertemplate: null, error_y: {} };
  const groups = names.flatMap((name, place) => {
    const group = members.filter((run) => run[key] === name), color = colorway[place % colorway.length];
    const marker = { size: 10, color, symbol: group.map((run) => run.symbol), line: { width: 2, color } };
    const legend = { ...quiet, x: [null], y: [null], showlegend: group.length > 0, mode: "markers" };
    return [
      { ...pointsOf(group, size, measure), legendgroup: name, showlegend: false, marker },
      { ...legend, name, legendgroup: name, marker: { size: 10, color } }, // always a full circle
    ];
  });
  const line = { shape: "hv", width: 1.25, color: linecolor };
  const best = frontOf(members, size, measure, larger);
  const picked = picks.map((index) => runs[index]).filter((run) => members.includes(run));
  const letters = picked.map((run) => letter(picks.indexOf(runs.indexOf(run))));
  const ring = { symbol: "circle-open", size: 20, color: font.color };
  return [
    { ...pointsOf(best, size, measure), ...quiet, mode: "lines", line },
    ...groups,
    { ...pointsOf(picked, size, measure), ...quiet, mode: "markers+text", text: letters, textposition: "top center", marker: ring },
  ];
}

// The levels of the dense model and of the tolerance, if all runs share them.
function shapesOf(lines) {
  return Object.entries(lines).filter(([, y]) => y !== null).map(([name, y]) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below",
    line: { width: 1, ...(name === "tolerance" ? { dash: "dash", color: style.warning } : { dash: "dot", color: linecolor }) },
    label: { text: name, textposition: "end", font: { color: linecolor } },
  }));
}

function drawFront() {
  const [series, measure, size, key] = ["series", "measure", "size", "color"].map((name) => controls[name].value);
  const { title: heading, lines, larger_is_better: larger } = fronts[series][measure];
  for (const option of controls.measure.options) option.textContent = fronts[series][option.value].title;
  const members = shown.map((index) => runs[index]).filter((run) =>
    run.series === series && run[size] !== null && run.measures[measure][0] !== null);
  const smallest = Math.min(...members.map((run) => run[size])), logarithmic = smallest > 0 && smallest < 10;
  const title = { text: `Parameters ${controls.elements.size.selectedOptions[0].text}, %${logarithmic ? "<br>(logarithmic)" : ""}` };
  const xaxis = logarithmic ? { title, type: "log", dtick: "D2", tickformat: "~g" } : { title, rangemode: "tozero" };
  const empty = { text: "No shown run has these measures.", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 };
  Plotly.react("front", frontTraces(members, size, measure, key, larger), {
    template: style.template, height: 440, hovermode: "closest", xaxis, yaxis: { title: { text: heading } },
    shapes: shapesOf(lines), annotations: members.length ? [] : [empty],
  }, CONFIG);
}

// What changes from the first run to the second: "−1.2 points" or "0.85 ×".
function change(kind, cells, comparable) {
  const [a, b] = cells.map((cell) => Number(cell.dataset.value ?? NaN));
  if (!kind || !Number.isFinite(a + b) || (kind === "score" && !comparable)) return "";
  if (kind === "ratio") return a ? `${(b / a).toFixed(2)} ×` : "";
  const sign = Math.abs(b - a) < 0.0005 ? "" : b < a ? "\u2212" : "+";
  return `${sign}${Math.abs(100 * (b - a)).toFixed(1)} points`;
}

function compareTable(css, caption, titles, lines) {
  const cells = ([first, ...others], tag) => [element("th", { scope: "row" }, first),
    ...others.map((text) => element(tag, { className: "number" }, text))];
  const head = element("thead", {}, element("tr", {}, ...cells(titles, "th")));
  const body = element("tbody", {}, ...lines.map((line) => element("tr", {}, ...cells(line, "td"))));
  return element("div", { className: "scroll" },
    element("table", { className: `pair ${css}` }, element("caption", {}, caption), head, body));
}

function drawComparison() {
  const chosen = picks.map((index) => runs[index]), letters = picks.map((_, place) => letter(place));
  if (!chosen.length) {
    at("compared").replaceChildren("Select runs in the table, or click points of the figure.");
    return;
  }
  const comparable = chosen.every((run) => run.series === chosen[0].series);
  const lines = heads.map((head) => {
    const cells = picks.map((index) => rows[index].cells[head.cellIndex]);
    const changes = cells.length === 2 ? [change(head.dataset.change, cells, comparable)] : [];
    return [head.innerText, ...cells.map((cell) => cell.querySelector(".full").innerText), ...changes];
  });
  const settings = Object.keys(chosen[0].settings)
    .map((name) => [name, ...chosen.map((run) => run.settings[name])])
    .filter(([, ...values]) => new Set(values).size > 1);
  const words = comparable ? "Results" : "Results. The tasks differ: compare the sizes, not the scores.";
  at("compared").replaceChildren(
    element("button", { type: "button", onclick: () => { picks = []; drawAll(); } }, "Clear selection"),
    compareTable("outcome", words, ["", ...letters, ...(chosen.length === 2 ? ["B against A"] : [])],
      [["Folder", ...chosen.map((run) => run.folder), ...(chosen.length === 2 ? [""] : [])], ...lines]),
    compareTable("settings", settings.length ? "Settings that differ" : "No setting is known to differ.",
      settings.length ? ["", ...letters] : [""], settings));
}

function addMap(title, { layers, kinds }, levels, colorscale, zmin, zmax) {
  const plot = element("div", {}), numbered = layers.length <= NUMBERED;
  at("maps").append(element("figure", {}, element("figcaption", {}, title), plot));
  const trace = {
    type: "heatmap", x: kinds, y: layers, z: levels, colorscale, zmin, zmax, showscale: false,
    xgap: 1, ygap: numbered ? 1 : 0, hoverongaps: false, texttemplate: numbered ? "%{z:.2~r}" : "",
    hovertemplate: "layer %{y}, %{x}: %{z:.3~r}<extra></extra>",
  };
  const height = 70 + layers.length * (numbered ? 24 : 10), axis = { type: "category", showgrid: false, showline: false };
  const axes = { xaxis: { ...axis, side: "top" }, yaxis: { ...axis, autorange: "reversed" } };
  return [plot, [trace], { ...axes, template: style.template, height }, CONFIG];
}

function drawMaps() {
  at("maps").replaceChildren();
  const ends = picks.map((index) => runs[index].map?.end ?? 0), end = Math.max(...ends);
  const [a, b, ...others] = picks.map((index) => runs[index]);
  const plots = picks.map((index, place) => [runs[index].map, letter(place)]).filter(([map]) => map)
    .map(([map, name]) => addMap(`${name}: kept, % of each matrix`, map, map.levels, style.kept, 0, end));
  const shape = (run) => JSON.stringify([run.model, run.map?.layers, run.map?.kinds]);
  if (b?.map && !others.length && shape(a) === shape(b)) {
    const changes = b.map.levels.map((row, y) => row.map((value, x) => (value === null ? null : value - a.map.levels[y][x])));
    plots.push(addMap("B − A, points", b.map, changes, style.change, -end, end));
  }
  for (const plot of plots) Plotly.newPlot(...plot); // only now has each its final width
}

function drawAll() {
  for (const draw of [markPicks, drawFront, drawComparison, drawMaps]) draw();
}

const counts = Object.entries(Object.groupBy(runs, (run) => run.series)).sort(([, a], [, b]) => b.length - a.length);
controls.series.append(...counts.map(([value, { length }]) => element("option", { value }, `${value} (${length})`)));
const varies = (key) => new Set(runs.map((run) => run[key])).size > 1;
controls.color.value = ["search", "projection", "model"].find(varies) ?? "search";
for (const head of heads) head.querySelector("button").onclick = () => sortBy(head);
rows.forEach((row, index) => { row.querySelector("input").onchange = () => pick(index); });
for (const form of [filters, controls]) form.onsubmit = (event) => event.preventDefault();
const showColumns = () => table.classList.toggle("whole", filters.all.checked);
filters.oninput = () => { showColumns(); filterRuns(); };
filters.onreset = () => setTimeout(filters.oninput);
controls.oninput = drawFront;
document.documentElement.classList.add("ready");
drawAll();
at("front").on("plotly_click", ({ points }) => pick(points[0].customdata));
})();
