// What each matrix kept, a cell per layer and kind; the darker, the more.
const NUMBERED = 40; // layers that still leave room for numbers

const cellText = (value) => (value >= 9.95 || value === 0 ? value.toFixed(0) : value.toFixed(1));
const signed = (value) => (Math.abs(value) < 0.05 ? "0" : decimal(value, Math.abs(value) < 9.95 ? 1 : 0, true));

// The cells of a run by layer and kind: its kept percent, name and dense parameters.
function cellsOf(run) {
  const found = new Map();
  if (run.layout < 0) return found;
  const { layers, kinds, names, sizes, rows: places, columns } = layouts[run.layout];
  run.levels.forEach((kept, index) => found.set(`${layers[places[index]]}\n${kinds[columns[index]]}`, {
    kept, name: names[index], size: sizes[index], layer: layers[places[index]], kind: kinds[columns[index]],
  }));
  return found;
}

// The layers and kinds of both runs, so that their maps have one shape.
function shapeOf(pair) {
  const known = pair.filter((run) => run.layout >= 0).map((run) => layouts[run.layout]);
  const merged = (key) => known.sort((a, b) => b[key].length - a[key].length)
    .reduce((all, layout) => [...all, ...layout[key].filter((name) => !all.includes(name))], []);
  return { layers: merged("layers"), kinds: merged("kinds") };
}

function heatMap(heading, shape, paint) {
  const dense = shape.layers.length <= NUMBERED;
  const grid = made("table", `map${dense ? "" : " fine"}`);
  grid.append(made("caption", "", ...heading));
  const head = grid.createTHead().insertRow();
  head.append(made("th", "", "Layer"), ...shape.kinds.map((kind) => made("th", "", kind)));
  for (const cell of head.cells) cell.scope = "col";
  const body = grid.createTBody();
  for (const layer of shape.layers) {
    const line = body.insertRow(), name = made("th", "", layer);
    name.scope = "row";
    line.append(name, ...shape.kinds.map((kind) => paint(`${layer}\n${kind}`, dense)));
  }
  return made("div", "scroll", grid);
}

// How far a cell is from the palest, and whether its number must flip to be read on it: from which
// depth on, on a light and on a dark page.
function shade(node, depth, light, dark) {
  node.style.setProperty("--depth", `${(100 * depth).toFixed(1)}%`);
  node.classList.toggle("flip-light", depth >= light);
  node.classList.toggle("flip-dark", depth >= dark);
}

function keptCell(cells) {
  return (key, dense) => {
    const found = cells.get(key), node = made("td", found ? "" : "void");
    if (!found) return node;
    shade(node, Math.sqrt(found.kept / 100), 0.71, 0.55);
    node.title = `${found.name}: ${cellText(found.kept)}\u00a0% kept`;
    node.append(made("span", dense ? "" : "unseen", cellText(found.kept)));
    return node;
  };
}

// Whether two cells are the same matrix of the same model, as far as can be seen.
const areOne = (a, b) => a.name === b.name && a.size === b.size;

function changeCell([one, other]) {
  return (key, dense) => {
    const [a, b] = [one.get(key), other.get(key)], known = a && b && areOne(a, b);
    const node = made("td", known ? "change" : "void");
    if (!known) return node;
    const change = b.kept - a.kept, depth = 0.85 * Math.sqrt(Math.abs(change) / 100);
    if (change < 0) node.classList.add("less");
    shade(node, depth, change < 0 ? 0.95 : 0.73, 0.6);
    node.title = `${b.name}: ${cellText(a.kept)} → ${cellText(b.kept)}\u00a0% kept`;
    node.append(made("span", dense ? "" : "unseen", signed(change)));
    return node;
  };
}

function scaleKey() {
  const bar = made("span", "bar-scale");
  bar.setAttribute("aria-hidden", "true");
  return made("p", "note scale", "0", bar, "100 % of a matrix's parameters kept; B minus A in points, blue where B keeps more");
}

function maps(pair) {
  const shape = shapeOf(pair), cells = pair.map(cellsOf);
  if (!shape.layers.length) return [made("p", "note", "Neither result lists its matrices.")];
  const panels = made("div", "maps");
  pair.forEach((run, place) => panels.append(
    heatMap([badge(place), ` ${method(run)}`], shape, keptCell(cells[place]))));
  const both = [...cells[0]].some(([key, a]) => cells[1].has(key) && areOne(a, cells[1].get(key)));
  if (both) panels.append(heatMap(["B minus A, points"], shape, changeCell(cells)));
  return [panels, scaleKey(), ...(both ? mostDifferent(cells) : [])];
}

const MOST = 10; // matrices that are listed

function mostDifferent([one, other]) {
  const changes = [...one].filter(([key, a]) => other.has(key) && areOne(a, other.get(key)))
    .map(([key, a]) => ({ ...a, after: other.get(key).kept, change: other.get(key).kept - a.kept }))
    .filter(({ change }) => Math.abs(change) >= 0.005)
    .sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
  if (!changes.length) return [made("p", "note", "Every matrix that both have kept the same share in both.")];
  const shown = changes.slice(0, MOST);
  const words = changes.length > MOST ? `The ${MOST} of ${changes.length} differing matrices that differ most` : "The matrices that differ, most first";
  return [pairTable(words, ["Matrix", "A", "B", "B minus A"], shown.map(({ name, kept, after, change }) =>
    [code(name), `${cellText(kept)} %`, `${cellText(after)} %`, `${signed(change)} points`]), "listed")];
}

function code(name) {
  const node = made("code", "");
  name.split(".").forEach((part, index) => {
    if (index) node.append(".", made("wbr", ""));
    node.append(part);
  });
  return node;
}
