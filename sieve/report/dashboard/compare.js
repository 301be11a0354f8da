// Two runs side by side: what they reached, the settings that differ, and where they kept what.
const pairForm = at("pair"), compared = at("compared"), pickedBar = at("picked");

function pairTable(words, heads, lines, css = "") {
  const grid = made("table", `pair ${css}`);
  grid.append(made("caption", "", words));
  const head = grid.createTHead().insertRow();
  for (const [index, name] of heads.entries()) {
    const cell = made("th", index ? "number" : "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = grid.createTBody();
  for (const [name, ...values] of lines) {
    const line = body.insertRow(), first = made("th", "", name);
    first.scope = "row";
    line.append(first, ...values.map((value) => made("td", "number", value)));
  }
  return made("div", "scroll", grid);
}

// Metrics of different tasks do not compare; a tolerance and a drop do, where their units do.
function difference([name, a, , kind], [, b], comparable) {
  if (a === null || b === null || a === b) return a === null || b === null ? "–" : "same";
  if (!comparable && kind !== "ratio" && !name.startsWith("Kept")) return "–";
  if (kind === "points") return `${decimal(100 * (b - a), 1, true)} points`;
  if (kind === "plain") return decimal(b - a, 2, true);
  return a ? `${decimal(b / a, 2)} ×` : "–";
}

function outcome(pair) {
  const comparable = pair[0].series === pair[1].series;
  const lines = pair[0].facts.map((one, index) => {
    const other = pair[1].facts[index];
    return one[1] === null && other[1] === null ? null
      : [one[0] === other[0] ? one[0] : `${one[0]} / ${other[0].toLowerCase()}`,
        one[2], other[2], difference(one, other, comparable)];
  }).filter(Boolean);
  const words = comparable ? "Points are B minus A, ratios are B over A"
    : "The runs are of different tasks: what they lost does not compare. Ratios are B over A";
  lines.splice(4, 0, ["Verdict", pair[0].verdict_text, pair[1].verdict_text, pair[0].verdict === pair[1].verdict ? "same" : ""]);
  return pairTable(words, ["", "A", "B", "Change"], lines, "outcome");
}

function settingLines(pair) {
  return Object.keys(pair[0].settings).filter((name) => pair[0].settings[name] !== pair[1].settings[name])
    .map((name) => [code(name), pair[0].settings[name], pair[1].settings[name]]);
}

function heading(run, place) {
  const parts = [badge(place), made("strong", "", ` ${run.task}`), made("span", "", ` ${run.model}, ${method(run)}`)];
  const card = made("div", "card", made("p", "", ...parts));
  const where = made("p", "note", run.folder + (run.date ? `, ${run.date}` : ""));
  if (run.href) {
    const link = made("a", "", "report");
    link.href = run.href;
    where.append(", ", link);
  }
  card.append(where);
  return card;
}

function drawComparison() {
  const [a, b] = state.picks;
  if (a === null || b === null) {
    const left = a === null && b === null ? "Pick two runs" : "Pick one more run";
    compared.replaceChildren(made("p", "note", `${left}: by the boxes in the table, by the points of the figure, or here.`));
    return;
  }
  const pair = [runs[a], runs[b]], settings = settingLines(pair);
  compared.replaceChildren(
    made("div", "cards", ...pair.map(heading)),
    made("div", "sides",
      made("div", "", made("h3", "", "What they reached"), outcome(pair)),
      made("div", "", made("h3", "", "Settings that differ"), settings.length
        ? pairTable("All others are the same, as far as they are known", ["Setting", "A", "B"], settings, "settings")
        : made("p", "note", "None, as far as they are known."))),
    made("h3", "", "What each matrix kept"), ...maps(pair));
}

function fillPair() {
  const tasks = [...new Set(runs.map((run) => run.task))].sort();
  ["a", "b"].forEach((name, place) => {
    const groups = tasks.map((task) => {
      const group = made("optgroup", "");
      group.label = task;
      runs.forEach((run, index) => {
        if (run.task === task) group.append(option(index, label(run), state.picks[place] === index));
      });
      return group;
    });
    pairForm[name].replaceChildren(option("", "choose a run", state.picks[place] === null), ...groups);
  });
  pairForm.swap.disabled = pairForm.clear.disabled = state.picks.every((index) => index === null);
}

// A line at the foot of the window while something is picked, as the comparison is further down.
function drawBar() {
  pickedBar.hidden = state.picks.every((index) => index === null);
  const names = made("p", "", ...state.picks.flatMap((index, place) => (index === null ? []
    : [made("span", "one", badge(place), ` ${runs[index].task}, ${method(runs[index])}`)])));
  const go = made("button", "go", state.picks.includes(null) ? "Pick one more" : "Compare");
  go.type = "button";
  go.disabled = state.picks.includes(null);
  go.addEventListener("click", () => {
    at("compare").scrollIntoView();
    at("compare-heading").focus({ preventScroll: true });
  });
  const clear = made("button", "", "Clear");
  clear.type = "button";
  clear.addEventListener("click", () => setPicks([null, null]));
  pickedBar.replaceChildren(names, go, clear);
}

function startComparison() {
  ["a", "b"].forEach((name, place) => pairForm[name].addEventListener("change", ({ target }) =>
    pick(target.value === "" ? null : Number(target.value), place)));
  pairForm.swap.addEventListener("click", () => setPicks([...state.picks].reverse()));
  pairForm.clear.addEventListener("click", () => setPicks([null, null]));
  pairForm.addEventListener("submit", (event) => event.preventDefault());
  new IntersectionObserver(([entry]) => pickedBar.classList.toggle("there", entry.isIntersecting))
    .observe(compared);
  setPicks(state.picks);
}

onPicks.push(drawComparison, fillPair, drawBar);
