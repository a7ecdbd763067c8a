// Links that leave the page.
(() => {
  const framed = parent !== self;

  // Airflow frames the page without the right to leave the frame by itself. A link in Airflow's own document may.
  window.leave = (href, target = "_self") => {
    if (!framed) {
      if (target === "_blank") open(href, "_blank", "noopener");
      else location.assign(href);
      return;
    }
    const link = parent.document.createElement("a");
    Object.assign(link, { href: new URL(href, location.href).href, target, rel: "noopener" });
    parent.document.body.append(link);
    link.click();
    link.remove();
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[target]");
    if (!link || !framed || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    leave(link.href, link.target === "_top" ? "_self" : "_blank");
  });
})();
