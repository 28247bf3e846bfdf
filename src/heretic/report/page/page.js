"use strict";
// Draws the charts in the reader's theme, and filters the lists of replies.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const themes = read("themes");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const printing = window.matchMedia("print");

  const draw = async () => {
    const config = dark.matches && !printing.matches ? themes.dark : themes.light;
    for (const place of document.querySelectorAll(".chart")) {
      const spec = { ...read(place.dataset.spec), config };
      await window.vegaEmbed(place, spec, {
        actions: false, ast: true, defaultStyle: false, renderer: "svg",
        tooltip: { disableDefaultStyle: true },
      });
    }
    document.body.dataset.drawn = "";
  };

  const filter = (form) => {
    const list = document.getElementById(form.dataset.list);
    const output = form.querySelector("output");
    const apply = () => {
      const label = form.elements.label ? form.elements.label.value : "";
      const changed = form.elements.changed ? form.elements.changed.checked : false;
      const text = form.elements.text.value.toLowerCase();
      let shown = 0;
      for (const row of list.children) {
        const fits = (!label || row.dataset.labels.split(" ").includes(label))
          && (!changed || "changed" in row.dataset)
          && (!text || row.textContent.toLowerCase().includes(text));
        row.hidden = !fits;
        shown += fits;
      }
      output.textContent = `${shown} prompts`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
  };

  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.exchange:not([hidden])").forEach((row) => { row.open = true; });
  });

  document.querySelectorAll(".filter").forEach(filter);
  if (window.vegaEmbed) {
    draw();
    dark.addEventListener("change", draw);
    printing.addEventListener("change", draw);
  }
})();
