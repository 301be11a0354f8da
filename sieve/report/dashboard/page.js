// What all parts share: the data, small builders, and the two things that change: which runs are
// shown, and which two are picked.
const { runs, layouts } = JSON.parse(document.getElementById("data").textContent);
const LETTERS = ["A", "B"];
const state = { shown: runs.map((_, index) => index), picks: [null, null] };
const onShown = [], onPicks = [];

const at = (id) => document.getElementById(id);
const row = (index) => at(`run-${index}`);

function made(tag, css, ...content) {
  const node = document.createElement(tag);
  if (css) node.className = css;
  node.append(...content.map((part) => (part instanceof Node ? part : bound(part))));
  return node;
}

function drawn(tag, attributes, ...content) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...content);
  return node;
}

// Text in which a number and its unit stay on one line.
const bound = (text) => String(text).replace(/(\d) (?=(%|×|points?|[kMG]B|bytes|s|min|h)(?![\w]))/g, "$1\u00a0");

// "−1.2": fixed decimals, a true minus sign, no negative zero; `sign` shows a plus as well.
function decimal(value, digits, sign = false) {
  const text = Math.abs(value).toLocaleString("en-US", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  });
  if (!/[1-9]/.test(text)) return text;
  return (value < 0 ? "\u2212" : sign ? "+" : "") + text;
}

function option(value, text, selected = false) {
  const node = made("option", "", text);
  node.value = value;
  node.selected = selected;
  return node;
}

// The names of a run: short where its task is known, and one that no other run has.
const method = (run) => `${run.projection}, ${run.search}`;
const label = (run) => `${method(run)}, ${run.text.kept} (${run.folder})`;

function pick(index, place) {
  const picks = [...state.picks];
  const held = picks.indexOf(index);
  if (place === undefined) {
    if (held >= 0) picks[held] = null;
    else if (picks.includes(null)) picks[picks.indexOf(null)] = index;
    else picks.splice(0, 2, picks[1], index); // The older of two makes room.
  } else {
    if (index !== null && held >= 0) picks[held] = picks[place];
    picks[place] = index;
  }
  setPicks(picks);
}

function setPicks(picks) {
  state.picks = picks;
  for (const listener of onPicks) listener();
}

function badge(place) {
  return made("span", `badge ${LETTERS[place].toLowerCase()}`, LETTERS[place]);
}
