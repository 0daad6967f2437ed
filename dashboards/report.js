"use strict";
(() => {
  const draw = (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const { data, layout } = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    Plotly.newPlot(place, data, layout, {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: place.id },
    });
  };
  const load = () => {
    if (window.Plotly) return;
    // The text is read before five megabytes of plotly are parsed; the same bytes, so the policy's hash allows them.
    const bundle = document.createElement("script");
    bundle.textContent = document.getElementById("plotly").textContent;
    document.body.append(bundle);
    places.forEach((place) => watcher.observe(place));
  };
  const places = [...document.querySelectorAll(".plot")];
  // A picture is drawn when it comes near, so that a page of many opens at once.
  const watcher = new IntersectionObserver(
    (seen) => seen.filter((one) => one.isIntersecting).forEach(({ target }) => {
      watcher.unobserve(target);
      setTimeout(() => draw(target)); // each in a task of its own: the first can be seen before the next is drawn
    }),
    { rootMargin: "600px" },
  );
  requestAnimationFrame(() => setTimeout(load));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
    load();
    places.forEach(draw);
  });
})();
