// Keeps the live page live: fetches a small JSON every few seconds, as long as somebody looks.
(() => {
  const live = document.getElementById("live");
  const PERIOD = 3000;
  let now = null;
  let failures = 0;
  let timer = 0;
  let tag = "";

  const grid = document.getElementById("grid");
  const cells = grid ? [...grid.querySelectorAll("a")] : [];

  function text(name, value) {
    for (const element of document.querySelectorAll(`[data-field="${name}"]`))
      if (element.textContent !== value) element.textContent = value;
  }

  function show(next) {
    now = next;
    for (const [name, value] of Object.entries(next.fields)) text(name, value);
    document.getElementById("verdict").className = `verdict ${next.tone}`;
    const bar = document.getElementById("bar");
    bar.max = next.images || 1;
    bar.value = next.there;
    next.shards.forEach(([shade, state, words, task], index) => {
      const cell = cells[index];
      if (!cell || cell.title === words) return;
      cell.dataset.step = shade;
      cell.dataset.state = state;
      cell.href = cell.href.replace(/\/tasks\/[^/]+\//, `/tasks/${task}/`);
      cell.title = words;
      cell.setAttribute("aria-label", words);
    });
    for (const item of document.querySelectorAll("[data-legend]")) {
      const many = next.states[item.dataset.legend] ?? 0;
      item.hidden = !many;
      item.querySelector("b").textContent = many.toLocaleString("en");
    }
    for (const item of document.querySelectorAll("[data-has]")) item.hidden = !next.has.includes(item.dataset.has);
    draw();
    table();
    document.getElementById("by-reason").hidden = !next.failures;
    if (next.failures !== failures) list(next.failures);
  }

  function draw() {
    if (!now) return;
    const series = (column, scale = 1) => now.series.map((point) => [point[0], point[column] / scale]);
    for (const place of document.querySelectorAll("[data-live]")) {
      const kind = place.dataset.live;
      if (kind === "images") charts.line(place, series(1), "accent");
      else if (kind === "bytes") charts.line(place, series(2, 1e6), "good");
      else charts.line(place, series(3), "second", true);
    }
  }

  function table() {
    const body = document.querySelector("#series tbody");
    if (!body || !body.closest("details").open) return;
    body.replaceChildren(
      ...now.series.map(([at, images, bytes, connections]) => {
        const row = document.createElement("tr");
        for (const value of [at.toFixed(0), images.toFixed(2), (bytes / 1e6).toFixed(2), connections.toFixed(1)]) {
          const cell = row.insertCell();
          cell.className = "n";
          cell.textContent = value;
        }
        return row;
      }),
    );
  }

  async function list(count) {
    const answer = await fetch(live.dataset.failures, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    document.getElementById("failure-list").innerHTML = await answer.text();
    failures = count;
  }

  async function refresh() {
    clearTimeout(timer);
    if (document.hidden) return;
    const fresh = document.getElementById("fresh");
    try {
      const answer = await fetch(live.dataset.src, { headers: { Accept: "application/json", ...(tag && { "If-None-Match": tag }) } });
      if (answer.status === 401 || answer.status === 403) {
        fresh.textContent = "You are no longer logged in, so this page stands still. Log in to Airflow and reload it.";
        return;
      }
      if (answer.ok) {
        tag = answer.headers.get("ETag") ?? "";
        const next = await answer.json();
        // The squares and charts are made with the page; they come with the plan.
        if (next.planned && live.dataset.planned === "no") return location.reload();
        if (next.planned) show(next);
        else {
          for (const [name, value] of Object.entries(next.fields)) text(name, value);
          document.getElementById("verdict").className = `verdict ${next.tone}`;
        }
        fresh.textContent = next.over ? "" : "This page refreshes itself.";
        if (next.over) return;
      } else if (answer.status !== 304) {
        fresh.textContent = `Airflow answered ${answer.status}; trying again.`;
      }
    } catch {
      fresh.textContent = "Airflow cannot be reached; trying again.";
    }
    timer = setTimeout(refresh, PERIOD);
  }

  // One stop for the Tab key; the arrow keys go on from there.
  const words = document.getElementById("shard-words");
  grid?.addEventListener("focusin", (event) => { words.textContent = event.target.title; });
  grid?.addEventListener("mouseover", (event) => { if (event.target.title) words.textContent = event.target.title; });
  grid?.addEventListener("keydown", (event) => {
    const at = cells.indexOf(document.activeElement);
    const top = cells[0].getBoundingClientRect().top;
    const wide = cells.findIndex((cell) => cell.getBoundingClientRect().top > top);
    const row = wide < 0 ? cells.length : wide;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + row, ArrowUp: at - row, Home: 0, End: cells.length - 1 }[event.key];
    if (to === undefined || !cells[to]) return;
    event.preventDefault();
    cells[at].tabIndex = -1;
    cells[to].tabIndex = 0;
    cells[to].focus();
  });

  document.querySelector("#series")?.closest("details").addEventListener("toggle", () => now && table());
  document.addEventListener("redraw", draw);
  document.addEventListener("visibilitychange", refresh);
  refresh();
})();
