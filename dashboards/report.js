"use strict";
(() => {
  const draw = (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const { data, layout } = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
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
  // One picture a frame: the first can be seen, and the page answers, before the next is drawn.
  const drawn = (place) => new Promise((seen) => setTimeout(() => {
    requestAnimationFrame(() => setTimeout(seen));
    draw(place);
  }));
  let queue = Promise.resolve();
  // A picture is drawn when it comes near, so that a page of many opens at once.
  const watcher = new IntersectionObserver(
    (seen) => seen.filter((one) => one.isIntersecting).forEach(({ target }) => {
      watcher.unobserve(target);
      queue = queue.then(() => drawn(target));
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
