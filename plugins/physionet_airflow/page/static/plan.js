// The plan page: numbers follow the form; the run is triggered through Airflow's own REST API, with the reader's rights.
(() => {
  const form = document.getElementById("plan");
  const result = document.getElementById("result");
  const spoken = document.getElementById("spoken");
  const dialog = document.getElementById("trigger");
  const LONGEST = 4000; // characters of an address that every proxy takes
  let asked = 0;
  let timer = 0;

  const address = () => new URLSearchParams(new FormData(form));

  async function estimate() {
    const mine = ++asked;
    const query = address();
    result.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(form.dataset.result, { method: "POST", body: query, headers: { Accept: "text/html" } });
      const html = await answer.text();
      if (mine !== asked) return; // a newer question is on its way
      if (!answer.ok) throw new Error(answer.status === 401 || answer.status === 403 ? "You are no longer logged in. Log in to Airflow and reload this page." : answer.status === 413 ? html : `Airflow answered ${answer.status}. Change something, or reload this page.`);
      result.innerHTML = html;
      const long = String(query).length > LONGEST;
      document.getElementById("long").hidden = !long;
      history.replaceState(null, "", long ? location.pathname : `${location.pathname}?${query}`);
    } catch (error) {
      if (mine !== asked) return;
      const words = document.createElement("p");
      words.className = "error";
      words.textContent = error instanceof TypeError ? "Airflow cannot be reached. Change something to try again." : error.message;
      result.replaceChildren(words);
    }
    result.setAttribute("aria-busy", "false");
    shown();
    spoken.textContent = result.querySelector("[data-say]")?.dataset.say ?? "";
  }

  function shown() {
    for (const field of form.querySelectorAll(".field")) {
      const wrong = result.querySelector(`[data-error="${field.dataset.name}"]`);
      field.classList.toggle("wrong", Boolean(wrong));
      field.querySelector(".error").textContent = wrong?.dataset.text ?? "";
      for (const input of field.querySelectorAll("input, select, textarea"))
        wrong ? input.setAttribute("aria-invalid", "true") : input.removeAttribute("aria-invalid");
      if (wrong) field.closest("details")?.setAttribute("open", "");
    }
    const sampled = form.elements.select?.value !== "all";
    for (const name of ["sample_size", "sample_by", "seed"])
      form.querySelector(`.field[data-name="${name}"]`)?.classList.toggle("moot", !sampled);
    document.getElementById("summary").textContent = result.querySelector("[data-say]")?.dataset.say ?? "What it takes";
    charts.all(result);
  }

  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(estimate, 350);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    estimate();
  });

  result.addEventListener("click", (event) => {
    if (event.target.id !== "open-trigger") return;
    document.getElementById("trigger-error").textContent = "";
    document.getElementById("trigger-words").textContent = result.querySelector("[data-say]")?.dataset.say ?? "";
    document.getElementById("conf").value = JSON.stringify(JSON.parse(document.getElementById("conf-data").textContent), null, 2);
    dialog.showModal();
  });

  document.getElementById("copy").addEventListener("click", async () => {
    const conf = document.getElementById("conf");
    conf.select();
    try {
      await navigator.clipboard.writeText(conf.value);
      document.getElementById("copy").textContent = "Copied";
    } catch {
      document.execCommand("copy"); // without HTTPS there is no other way
    }
  });

  async function call(method, path, body) {
    const answer = await fetch(`${dialog.dataset.api}${path}`, { method, headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify(body) });
    const said = await answer.json().catch(() => ({}));
    if (answer.ok) return said;
    if (answer.status === 403) throw new Error("Your Airflow account may not trigger this DAG. An Airflow administrator can grant it.");
    const detail = typeof said.detail === "string" ? said.detail : JSON.stringify(said.detail ?? answer.status);
    throw new Error(`Airflow did not take it: ${detail}`);
  }

  document.getElementById("go").addEventListener("click", async (event) => {
    const button = event.target;
    button.disabled = true;
    try {
      if (document.getElementById("unpause")?.checked) await call("PATCH", "?update_mask=is_paused", { is_paused: false });
      const run = await call("POST", "/dagRuns", { logical_date: null, conf: JSON.parse(document.getElementById("conf").value) });
      dialog.close();
      location.assign(`${dialog.dataset.run}${encodeURIComponent(run.dag_run_id)}`);
    } catch (error) {
      document.getElementById("trigger-error").textContent = error.message;
    }
    button.disabled = false;
  });

  shown();
})();
