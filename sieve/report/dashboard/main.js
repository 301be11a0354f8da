// Everything in its order: the table first, as the others follow what it shows.
for (const start of [startTable, startPlot, startComparison]) start();
applyFilters();
document.documentElement.classList.add("ready");
