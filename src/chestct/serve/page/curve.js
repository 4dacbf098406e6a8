// The body from the feet to the head: lung in each slice, evidence in each, and where one looks.

import { h, svg } from "./parts.js";

/** A slider along the body. `go` is called with a slice, counted from 1 at the feet. */
export class Curve {
  constructor(go) {
    this.input = h("input", { type: "range", id: "slice", min: "1", step: "1", oninput: () => go(Number(this.input.value)) });
    this.plot = svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.cursor = h("span", { class: "cursor" });
    this.peaks = h("p", { class: "peaks" });
    this.go = go;
    this.element = h("section", { class: "curve", "aria-labelledby": "curve-title" },
      h("h2", { id: "curve-title" }, "Along the body"),
      h("div", { class: "along" },
        h("div", { class: "plot" }, this.plot, this.cursor),
        h("label", { for: "slice", class: "hidden" }, "Slice, from the feet"), this.input,
        h("p", { class: "ends" }, h("span", {}, "feet"), (this.keys = h("span", { class: "keys" })), h("span", {}, "head"))),
      this.peaks);
  }

  /** Draw a scan: its slices, the share of each that is lung, and its evidence. */
  show(slices, lungArea, evidence) {
    const total = slices.total;
    this.total = total;
    this.input.max = String(total);
    const parts = [];
    const x = (slice) => ((slice - 0.5) / total) * 100;
    if (slices.first > 1 || slices.last < total) {
      const start = ((slices.first - 1) / total) * 100;
      const end = (slices.last / total) * 100;
      parts.push(svg("rect", { x: "0", width: start, y: "0", height: "100", class: "outside" }), svg("rect", { x: end, width: 100 - end, y: "0", height: "100", class: "outside" }));
    }
    if (lungArea) parts.push(svg("path", { class: "area", d: areaPath(lungArea, x) }));
    if (evidence) parts.push(...evidenceLines(evidence.by_slice, x));
    this.plot.replaceChildren(...parts);
    this.keys.replaceChildren(...(lungArea ? [h("i", { class: "key fill" }), "lung "] : []), ...(evidence ? [h("i", { class: "key line" }), "evidence"] : []));
    const jumps = (evidence?.peaks ?? []).map(([slice]) => h("button", { type: "button", class: "small", onclick: () => this.go(slice) }, `slice ${slice}`));
    this.peaks.replaceChildren(...(jumps.length ? ["Most evidence: ", ...jumps] : evidence ? ["There is no evidence in the lungs to jump to."] : []));
  }

  /** Mark where one looks; nothing is called. */
  mark(slice, words) {
    this.input.value = String(slice);
    this.input.setAttribute("aria-valuetext", words);
    this.cursor.style.left = `${((slice - 0.5) / this.total) * 100}%`;
  }
}

function areaPath(area, x) {
  const most = Math.max(...area, 1e-6) * 1.08;
  const points = area.map((share, index) => `L${x(index + 1).toFixed(2)} ${(100 - (share / most) * 100).toFixed(2)}`);
  return `M0 100 ${points.join(" ")} L100 100 Z`;
}

function evidenceLines(values, x) {
  const most = Math.max(...values.map((value) => value ?? 0), 1e-6) * 1.12;
  const runs = [];
  let run = [];
  values.forEach((value, index) => {
    if (value === null) {
      if (run.length) runs.push(run);
      run = [];
    } else run.push(`${x(index + 1).toFixed(2)} ${(100 - (value / most) * 100).toFixed(2)}`);
  });
  if (run.length) runs.push(run);
  const d = runs.map((points) => `M${points.join(" L")}`).join(" ");
  return [svg("path", { class: "halo", d }), svg("path", { class: "evidence", d })];
}
