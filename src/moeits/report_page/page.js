"use strict";
// Cuts the elimination orders of a run at the slider's tau, by the rule of Algorithm 3: a step is taken while its level
// is above mean + tau * iqr, and never beyond the layer's floor. The numbers are doubles here as there, so the counts
// are those of `moeits plan`.
(() => {
  const stepsAt = (layer, tau) => {
    const threshold = layer.mean + tau * layer.iqr;
    let steps = 0;
    while (steps < layer.most_steps && layer.levels[steps] > threshold) steps += 1;
    return steps;
  };
  const size = (bytes) => {
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (bytes < 1024) return unit === "B" ? `${bytes} B` : `${bytes.toFixed(1)} ${unit}`;
      bytes /= 1024;
    }
    return `${bytes.toFixed(1)} TiB`;
  };
  // Of all that was measured, what is of the very experts that stay: the orders are one, so counts per layer name them.
  const measuredAt = (points, stay) => points.find((point) => point.kept.every((count, layer) => count === stay[layer]));

  const start = (slider) => {
    const data = JSON.parse(slider.querySelector("script.data").textContent);
    const input = slider.querySelector("input[type=range]");
    const out = (name) => slider.querySelector(`[data-out=${name}]`);
    const rows = [...slider.querySelectorAll(".row")];
    const maps = document.querySelector(`[data-maps="${slider.dataset.slider}"]`);
    const svg = slider.querySelector(".marked svg");
    const marker = document.createElementNS("http://www.w3.org/2000/svg", "line");
    marker.setAttribute("class", "marker");
    svg.append(marker);

    const show = () => {
      const tau = Number(input.value);
      const stays = [];
      let kept = 0, before = 0, parameters = data.other_parameters, bytes = data.other_bytes, gone = 0, routed = 0;
      data.layers.forEach((layer, index) => {
        const steps = stepsAt(layer, tau), stay = layer.experts - steps;
        stays.push(stay);
        kept += stay;
        before += layer.experts;
        parameters += stay * layer.parameters;
        bytes += stay * layer.bytes;
        gone += steps * layer.routed_parameters;
        routed += layer.experts * layer.routed_parameters;
        const removed = new Set(layer.removed.slice(0, steps));
        [...rows[index].querySelectorAll("rect")].forEach((cell, expert) => cell.classList.toggle("goes", removed.has(expert)));
        rows[index].querySelector("[data-count]").textContent = stay;
        const frame = maps?.querySelector(`[data-layer="${layer.layer}"] .frame`);
        if (frame) frame.style.width = frame.style.height = `${(100 * stay) / layer.experts}%`;
      });
      slider.querySelector(".tau").textContent = tau.toFixed(2);
      out("kept").textContent = kept.toLocaleString("en");
      out("parameters").textContent = parameters.toLocaleString("en");
      out("bytes").textContent = size(bytes);
      out("reduction").textContent = `${((100 * gone) / routed).toFixed(2)} %`;
      if (out("measured")) out("measured").textContent = measuredAt(data.measured, stays)?.text ?? "–";
      const axis = data.axis, x = axis.left + ((tau - axis.low) / (axis.high - axis.low)) * (axis.right - axis.left);
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", axis.top], ["y2", axis.bottom]]) marker.setAttribute(name, value);
      input.setAttribute("aria-valuetext", `tau ${tau.toFixed(2)}: ${kept} of ${before} experts stay`);
    };
    input.addEventListener("input", show);
    show();
  };
  document.querySelectorAll("[data-slider]").forEach(start);
})();
