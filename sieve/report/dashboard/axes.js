// Axes of a figure: round ticks, linear or logarithmic, and their grid.
const ROUND = [1, 2, 2.5, 5, 10];

function linear(low, high, most) {
  const rough = (high - low || 1) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ROUND.find((factor) => factor * power >= rough * 0.999);
  const start = Math.floor(low / step + 1e-9) * step, end = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let tick = start; tick <= end + step / 2; tick += step) ticks.push(tick);
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 && step < 10 ? 1 : 0));
  return { ticks, digits, at: (value) => (value - start) / (end - start || 1) };
}

// Logarithmic where runs went far down, as zero cannot be drawn so.
function sizes(values, most) {
  const low = Math.min(...values), high = Math.max(...values, low * 1.5);
  if (!(low > 0 && low < 0.1)) return linear(0, Math.max(high, 0.1), most);
  const [start, end] = [Math.log10(low / 1.15), Math.log10(high * 1.15)];
  const all = [];
  for (let power = Math.floor(start); power <= end; power++) {
    for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
  }
  const inside = all.filter((tick) => Math.log10(tick) >= start && Math.log10(tick) <= end);
  const ticks = inside.length > most ? inside.filter((_, index) => index % 2 === 0) : inside;
  return { ticks, digits: null, log: true, at: (value) => (Math.log10(value) - start) / (end - start) };
}

const percentTick = (value) => decimal(100 * value, 0);

function sizeTick(value) {
  const shown = Number((100 * value).toPrecision(3));
  return String(shown);
}
