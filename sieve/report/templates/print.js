// Fit figures to the width of the paper before printing, and restore them afterwards.
const plots = () => document.querySelectorAll(".js-plotly-plot");
const fit = (plot, height, width) => {
  for (const box of [plot.parentElement, plot]) box.style.height = `${height}px`;
  Plotly.relayout(plot, {height, width, autosize: !width});
};
addEventListener("beforeprint", () => plots().forEach((plot) => {
  plot.dataset.height = plot.layout.height;
  const tall = ["figure-kept-heatmap", "figure-bottlenecks"].includes(plot.id);
  const limit = tall ? 800 : 300;
  fit(plot, Math.min(limit, plot.layout.height), 660);
}));
addEventListener("afterprint", () => plots().forEach((plot) => {
  fit(plot, Number(plot.dataset.height), null);
}));
