// The charts, drawn by Chart.js from the tables that stand beside them.
(() => {
  const charts = new Set();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const count = new Intl.NumberFormat("en");

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.plugins.legend.display = false;

  const axis = (more = {}) => ({
    border: { display: false },
    grid: { color: colour("line"), drawTicks: false },
    ...more,
    ticks: { color: colour("muted"), padding: 6, ...more.ticks },
  });

  function canvas(place, height) {
    const element = document.createElement("canvas");
    place.replaceChildren(element);
    place.style.setProperty("height", `${height}px`);
    return element;
  }

  function draw(place, height, config) {
    Chart.getChart(place.querySelector("canvas"))?.destroy();
    const chart = new Chart(canvas(place, height), config());
    chart.remake = () => draw(place, height, config);
    for (const old of charts) if (!document.contains(old.canvas)) { old.destroy(); charts.delete(old); }
    charts.add(chart);
    return chart;
  }

  const noun = (place) => place.dataset.noun ?? "images";

  const rowsOf = (place) =>
    [...document.getElementById(place.dataset.table).querySelectorAll("tbody tr")].map((row) => ({
      label: row.dataset.label,
      part: Number(row.dataset.part),
      whole: Number(row.dataset.whole ?? 0),
    }));

  // Horizontal bars, one a row of the table.
  function bars(place) {
    const rows = rowsOf(place);
    draw(place, 30 + rows.length * 24, () => ({
      type: "bar",
      data: {
        labels: rows.map((row) => row.label),
        datasets: [{ data: rows.map((row) => row.part), backgroundColor: colour("accent"), borderRadius: 3, barPercentage: 0.8, categoryPercentage: 0.9 }],
      },
      options: {
        indexAxis: "y",
        scales: {
          x: axis({ beginAtZero: true, ticks: { precision: 0, maxTicksLimit: 5 } }),
          y: axis({ grid: { display: false }, ticks: { color: colour("ink"), autoSkip: false } }),
        },
        plugins: { tooltip: { callbacks: { label: (item) => ` ${count.format(item.raw)} ${noun(place)}` } } },
      },
    }));
  }

  // How much of each patient group or folder is there, as a share.
  function groups(place) {
    const rows = rowsOf(place);
    draw(place, 180, () => ({
      type: "bar",
      data: {
        labels: rows.map((row) => row.label),
        datasets: [
          { data: rows.map((row) => (row.whole ? (100 * row.part) / row.whole : 0)), backgroundColor: colour("good"), borderRadius: 2 },
          { data: rows.map((row) => (row.whole ? 100 - (100 * row.part) / row.whole : 0)), backgroundColor: colour("line"), borderRadius: 2 },
        ],
      },
      options: {
        scales: {
          x: axis({ stacked: true, grid: { display: false } }),
          y: axis({ stacked: true, max: 100, ticks: { callback: (value) => `${value} %`, maxTicksLimit: 5 } }),
        },
        plugins: {
          tooltip: {
            filter: (item) => item.datasetIndex === 0,
            callbacks: { label: (item) => ` ${count.format(rows[item.dataIndex].part)} of ${count.format(rows[item.dataIndex].whole)} ${noun(place)}` },
          },
        },
      },
    }));
  }

  const units = [[180, 1, "s"], [3 * 3600, 60, "min"], [4 * 86400, 3600, "h"], [Infinity, 86400, "days"]];

  // A figure over the time of the run; points are [seconds, value].
  function line(place, points, name, whole = false) {
    const old = Chart.getChart(place.querySelector("canvas"));
    const last = points.at(-1)?.[0] ?? 0;
    const [, unit, word] = units.find(([most]) => last <= most);
    // Each point stands for the stretch that ends there, so the first one's value holds from the start.
    const data = [[0, points[0]?.[1] ?? 0], ...points].map(([x, y]) => ({ x: x / unit, y }));
    if (old && old.word === word) {
      old.data.datasets[0].data = data;
      old.options.scales.x.max = last / unit || 1;
      old.remake = () => { old.destroy(); line(place, points, name, whole); };
      old.update("none");
      return;
    }
    const chart = draw(place, 150, () => ({
      type: "line",
      data: { datasets: [{ data, borderColor: colour(name), backgroundColor: `${colour(name)}33`, fill: true, borderWidth: 1.5, pointRadius: 0, pointHitRadius: 12, stepped: "after" }] },
      options: {
        scales: {
          x: axis({ type: "linear", min: 0, max: last / unit || 1, grid: { display: false }, ticks: { maxTicksLimit: 6, includeBounds: false, callback: (value) => `${count.format(value)} ${word}` } }),
          y: axis({ beginAtZero: true, suggestedMax: whole ? 2 : undefined, grace: "8%", ticks: { maxTicksLimit: 4, precision: whole ? 0 : undefined } }),
        },
        plugins: { tooltip: { displayColors: false, callbacks: { title: (items) => `until ${items[0].parsed.x.toFixed(1)} ${word}` } } },
      },
    }));
    chart.word = word;
    chart.remake = () => { chart.destroy(); line(place, points, name, whole); };
  }

  function all(within = document) {
    for (const place of within.querySelectorAll("[data-chart]")) ({ bars, groups })[place.dataset.chart](place);
  }

  window.charts = { all, line };
  document.addEventListener("themechange", () => {
    Chart.defaults.color = colour("muted");
    all();
    document.dispatchEvent(new Event("redraw"));
  });
  all();
})();
