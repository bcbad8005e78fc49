// Only a convenience: shows the values under the pointer. The table holds the same numbers.
for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot"), tip = chart.querySelector(".tip"), cursor = chart.querySelector(".cursor");
  const {curves, labels, range: [low, high], over, log} = JSON.parse(chart.dataset.chart);
  const scale = log ? Math.log10 : x => x;
  const show = value => value === null ? "not a number" : Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : value.toPrecision(4);
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(scale(b[0]) - x) < Math.abs(scale(a[0]) - x) ? b : a);
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = nearest(curves.flat(), low + share * (high - low))[0], at = (scale(step) - low) / (high - low);
    const lines = curves.map((points, i) => [labels[i], nearest(points, scale(step))]).filter(([, p], i) => p[0] === step);
    tip.textContent = `${over} ${step}\n` + lines.map(([label, p]) => `${label}  ${show(p[1])}`).join("\n");
    tip.hidden = false;
    tip.style.left = at < .6 ? `calc(${100 * at}% + 10px)` : "auto";
    tip.style.right = at < .6 ? "auto" : `calc(${100 * (1 - at)}% + 10px)`;
    cursor.setAttribute("x1", `${100 * at}%`); cursor.setAttribute("x2", `${100 * at}%`);
    cursor.setAttribute("visibility", "visible");
  });
  plot.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
}
