"use strict";
// Draws each figure from the specification beside it and sets data-drawn on the document when all are done.
(async () => {
  for (const box of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(box.dataset.spec).textContent);
    const hints = spec.usermeta || {};
    delete spec.usermeta;
    const figure = box.closest("figure");
    try {
      const { view } = await vegaEmbed(box, spec, { actions: false, renderer: "svg", ast: true, defaultStyle: false });
      // a legend takes more rows in a narrow box: once the width is known the layout is made again around it
      const fit = async () => {
        if (hints.aspect) view.height(Math.max(210, Math.round((box.clientWidth - 60) / hints.aspect)));
        await view.resize().runAsync();
      };
      await fit();
      window.addEventListener("resize", fit);
      for (const button of figure.querySelectorAll("button[data-format]")) {
        button.hidden = false;
        button.addEventListener("click", async () => {
          const link = document.createElement("a");
          link.href = await view.toImageURL(button.dataset.format, button.dataset.format === "png" ? 3 : 1);
          link.download = `${box.dataset.file}.${button.dataset.format}`;
          link.click();
        });
      }
    } catch (error) {
      box.textContent = "This figure could not be drawn: " + error.message;
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = "true";
})();
