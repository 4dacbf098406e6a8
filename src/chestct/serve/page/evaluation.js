// An evaluation: its figures, its pictures, and the wrong answers with a way to each scan.

import { ask, h } from "./parts.js";

/** Show the evaluation that the server was given. */
export function showEvaluation(place) {
  return { ready: load(place), leave: () => {} };
}

const NUMBERS = new Set(["Value", "Probability"]);

/** The names of a table's columns, over numbers at the right as these are. */
function heads(...names) {
  const cell = (name) => h("th", { scope: "col", class: NUMBERS.has(name) ? "number" : "" }, name);
  return h("thead", {}, h("tr", {}, names.map(cell)));
}

async function load(place) {
  const said = await ask("/api/evaluation");
  const lines = said.figures.map(([name, value, ends]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, value), h("td", {}, ends)));
  const wrong = said.wrong.map((each) => h("tr", {},
    h("th", { class: "scan", scope: "row" }, each.id ? h("a", { href: `#/scan/${each.id}` }, each.scan) : each.scan),
    h("td", {}, each.truth), h("td", {}, each.answer), h("td", { class: "number" }, each.percent)));
  place.replaceChildren(
    h("h1", {}, "Evaluation"),
    h("p", { class: "lead" }, `${said.name || "A classifier"}${said.num_scans === null ? "" : ` on ${said.num_scans} scans`}.`),
    h("div", { class: "evaluation" },
      h("section", { "aria-labelledby": "overall" }, h("h2", { id: "overall" }, "Figures"),
        h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "overall" }, h("table", { class: "plain" }, heads("Figure", "Value", "95 % interval"), h("tbody", {}, lines)))),
      h("section", { "aria-labelledby": "wrong" }, h("h2", { id: "wrong" }, `Wrong answers (${said.wrong.length})`),
        said.has_predictions ? null : h("p", { class: "lead" }, "There is no predictions.csv in this folder or above it."),
        said.wrong.some((each) => !each.id) ? h("p", { class: "lead" }, "Scans without a link are not among the results: chestct classify SCAN --out RESULTS puts them there.") : null,
        wrong.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "wrong" }, h("table", { class: "plain" }, heads("Scan", "Truth", "Answer", "Probability"), h("tbody", {}, wrong))) : null)),
    h("div", { class: "pictures" }, said.pictures.map((name, index) => h("figure", {}, h("img", { src: `/api/evaluation/pictures/${index}`, alt: name.replace(/\.png$/, "").replaceAll("_", " "), loading: "lazy" }), h("figcaption", {}, name.replace(/\.png$/, "").replaceAll("_", " "))))));
}
