// The table: filters, an order by any column, and a box per run to pick it.
const table = at("runs"), filters = at("filters");
const rows = runs.map((_, index) => row(index));
const sought = rows.map((node) => `${node.textContent} ${node.dataset.folder}`.toLowerCase());
const CHOICES = ["task", "model", "search", "projection"];

function passes(index) {
  const words = filters.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => sought[index].includes(word))
    && CHOICES.every((key) => !filters[key].value || runs[index][key] === filters[key].value);
}

function applyFilters() {
  state.shown = runs.map((_, index) => index).filter(passes);
  const shown = new Set(state.shown);
  rows.forEach((node, index) => { node.hidden = !shown.has(index); });
  const all = `${runs.length} run${runs.length === 1 ? "" : "s"}`;
  at("shown").textContent = shown.size === runs.length ? all
    : shown.size ? `${shown.size} of ${all}` : `None of ${all}: no run has all of these`;
  for (const listener of onShown) listener();
}

const valueOf = (node, column, numeric) => {
  const { value } = node.cells[column].dataset;
  return value === undefined ? null : numeric ? Number(value) : value;
};

// What a run does not have stands at the end, whichever way it is sorted.
function compareValues(one, other, direction) {
  if (one === null || other === null) return (one === null) - (other === null);
  const order = typeof one === "number" ? one - other
    : one.localeCompare(other, "en", { numeric: true });
  return direction * order;
}

function sortBy(head, descending) {
  const column = head.cellIndex, direction = descending ? -1 : 1;
  const numeric = head.classList.contains("number") || head.dataset.key === "verdict";
  for (const other of head.parentElement.cells) {
    if (other.dataset.key) other.setAttribute("aria-sort", "none");
  }
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const sorted = [...body.rows].sort((one, other) => compareValues(
    valueOf(one, column, numeric), valueOf(other, column, numeric), direction));
  body.append(...sorted); // The sort is stable: of equals the earlier order stays.
}

function startTable() {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button")?.addEventListener("click", () =>
      sortBy(head, head.getAttribute("aria-sort") === "ascending"));
  }
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(applyFilters));
  rows.forEach((node, index) =>
    node.querySelector("input").addEventListener("change", () => pick(index)));
  for (const key of ["kept", "task"]) {
    const head = table.tHead.querySelector(`[data-key=${key}]`);
    if (head) sortBy(head, false);
  }
}

onPicks.push(() => rows.forEach((node, index) => {
  const place = state.picks.indexOf(index), cell = node.cells[0];
  cell.querySelector("input").checked = place >= 0;
  cell.querySelector(".badge")?.remove();
  if (place >= 0) cell.append(badge(place));
  node.classList.toggle("picked", place >= 0);
}));
