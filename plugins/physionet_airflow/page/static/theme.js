// Light or dark as Airflow is set. In a tab of Airflow its own document says so; in a window of its own, what Airflow
// has stored does. Runs before anything is painted.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const airflow = () => {
    try {
      return parent === self ? null : parent.document.documentElement;
    } catch {
      return null; // framed by somebody else
    }
  };
  const theme = () => {
    const outside = airflow()?.classList;
    if (outside?.contains("dark")) return "dark";
    if (outside?.contains("light")) return "light";
    const stored = localStorage.getItem("theme");
    return stored === "dark" || stored === "light" ? stored : system.matches ? "dark" : "light";
  };
  const apply = () => {
    document.documentElement.dataset.theme = theme();
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  const outside = airflow();
  if (outside) new MutationObserver(apply).observe(outside, { attributes: true, attributeFilter: ["class"] });
})();
