// The list: where scans are dropped, what is in work, and what was classified.

import { giveUp, sendAll, state } from "./app.js";
import { ask, doubtMark, h, moment, size, trouble } from "./parts.js";
import { scansChosen } from "./send.js";

const COLUMNS = [
  ["scan", "Scan", (row) => row.scan.toLowerCase()],
  ["verdict", "Answer", (row) => row.verdict],
  ["percent", "Probability", (row) => row.share ?? -1],
  ["doubt", "Certainty", (row) => row.doubt],
  ["lungs", "Lungs", (row) => row.lungs_l],
  ["warnings", "Warnings", (row) => row.num_warnings],
  ["time", "Time", (row) => row.seconds],
  ["written", "Classified", (row) => row.written_at],
  ["readers", "Readers", (row) => row.readings.join()],
];

const FILTERS = [
  ["all", "All answers", () => true],
  ["certain", "Certain", (row) => !row.doubt && row.share !== null],
  ["uncertain", "Uncertain", (row) => Boolean(row.doubt)],
  ["unsuitable", "Not classified", (row) => row.share === null],
  ["warned", "With warnings", (row) => row.num_warnings > 0],
  ["unread", "Not read yet", (row) => row.readings.length === 0],
  ["doubted", "A reader said wrong", (row) => row.readings.includes("wrong")],
];

// How the list was last looked at, for whoever comes back to it.
const chosen = { words: "", filter: "all", column: "written", isDown: true };

const STAGES = {
  waiting: "waiting",
  reading: "reading the files",
  classifying: "finding the lungs, classifying",
  explaining: "explaining",
  drawing: "drawing the viewing copy",
  writing: "writing the outputs",
};

/** Show the list in a place. */
export function showList(place) {
  const work = h("section", { class: "work", "aria-label": "In work" });
  const table = h("div", { class: "table" });
  const tools = h("div", { class: "tools" });
  place.append(h("h1", { class: "hidden" }, "Scans"), dropZone(), work, tools, table);
  let rows = [];
  let failed = null;
  let numDone = -1;

  const draw = () => {
    tools.replaceChildren(...(rows.length ? [...filters(rows, drawTable), downloads(rows)] : []));
    drawTable();
  };
  const drawTable = () => table.replaceChildren(failed ? trouble(failed) : tableOf(rows, draw));
  const load = async () => {
    try {
      const said = await ask("/api/scans");
      failed = null;
      rows = said.scans;
      const isFirst = tools.childElementCount === 0;
      if (isFirst || rows.length === 0) draw();
      else drawTable();
      if (said.num_unreadable) table.append(h("p", { class: "lead" }, `${said.num_unreadable} folders hold results of another version of chestct, and are not shown.`));
    } catch (error) {
      failed = error;
      drawTable();
    }
  };
  const follow = () => {
    drawWork(work);
    const done = state.jobs.filter((job) => job.state === "done").length;
    if (done !== numDone) {
      numDone = done;
      load();
    }
  };
  state.listeners.add(follow);
  follow();
  return { ready: load(), leave: () => state.listeners.delete(follow) };
}

function dropZone() {
  const choose = (properties) => {
    const input = h("input", { type: "file", class: "hidden", tabindex: "-1", "aria-hidden": "true", ...properties, onchange: () => { sendAll(scansChosen(input.files)); input.value = ""; } });
    return input;
  };
  const file = choose({ multiple: true, id: "choose-file" });
  const folder = choose({ webkitdirectory: true, id: "choose-folder" });
  const kept = state.about.is_kept ? "Results are kept in the folder of results." : "Results are gone when the server ends.";
  const scans = state.about.keeps_scans ? "The scan is kept on the server." : "The scan itself is removed when the server ends.";
  return h("section", { class: "drop", "aria-labelledby": "drop-title" },
    h("div", {},
      h("h2", { id: "drop-title" }, "Drop a chest CT here"),
      h("p", { class: "lead" }, `A folder or zip of one DICOM series, or a NIfTI file, up to ${size(state.about.most_bytes)}. ${kept} ${scans}`)),
    h("div", { class: "buttons" },
      h("button", { type: "button", class: "primary", onclick: () => folder.click() }, "Choose a folder"),
      h("button", { type: "button", onclick: () => file.click() }, "Choose a file"),
      file, folder));
}

function drawWork(work) {
  const jobs = state.jobs.filter((job) => job.is_classifying && job.state !== "done" && job.state !== "cancelled");
  const cards = [
    ...state.sending.map((each) => card(each.name, each.error || (each.share > 0 ? "sending" : "waiting to be sent"), {
      share: each.share, error: each.error, stop: () => giveUp(each),
    })),
    ...jobs.map((job) => card(job.name, job.state === "failed" || job.state === "undecided" ? job.stage : wordsOf(job), {
      share: job.step ? job.step[0] / job.step[1] : null,
      error: job.state === "failed" ? job.stage : "",
      choice: job.state === "undecided" ? job : null,
      link: job.scan && job.state === "running" ? `#/scan/${job.scan}` : null,
      stop: () => ask(`/api/jobs/${job.id}`, { method: "DELETE" }).catch(() => {}),
    })),
  ];
  const chosen = document.activeElement?.dataset.series;
  work.replaceChildren(...cards);
  // Whoever stands on a series stays there when another scan gets on.
  if (chosen) [...work.querySelectorAll("[data-series]")].find((each) => each.dataset.series === chosen)?.focus();
}

function wordsOf(job) {
  if (job.state === "waiting") return job.ahead ? `waiting, ${job.ahead} before it` : "waiting, next";
  const steps = job.step ? `, ${job.step[0]} of ${job.step[1]}` : "";
  return (STAGES[job.stage] ?? job.stage) + steps;
}

function card(name, words, { share, error, link, stop, choice }) {
  const bar = h("progress", { "aria-label": `${name}: ${words}`, max: "1", value: share ?? undefined });
  return h("div", { class: error ? "card failed" : choice ? "card undecided" : "card", role: error ? "alert" : null },
    h("p", { class: "name" }, link ? h("a", { href: link }, name) : name),
    h("p", { class: "step" }, words, link ? [" · ", h("a", { href: link }, "the answer is there")] : null),
    error || choice ? null : bar,
    h("button", { type: "button", class: "small", onclick: stop, "aria-label": `${error ? "Dismiss" : "Cancel"} ${name}` }, error ? "Dismiss" : "Cancel"),
    choice ? seriesOf(choice) : null);
}

/** The series that a scan could be, each with what tells it apart and a button that takes it. */
function seriesOf(job) {
  const problem = h("div", {});
  const choose = (series) => ask(`/api/jobs/${job.id}/series`, { method: "POST", body: { series } }).catch((error) => problem.replaceChildren(trouble(error)));
  const lines = job.series.map(([series, words]) => h("li", {},
    h("button", { type: "button", class: "small", "data-series": `${job.id} ${series}`, "aria-label": `Classify the series with ${words}, ${series}`, onclick: () => choose(series) }, "Classify"),
    h("span", {}, words), h("span", { class: "uid" }, series || "(no UID)")));
  return h("div", { class: "choice", role: "group", "aria-label": `Series of ${job.name}` },
    h("p", { role: "status" }, "Which one is it?"), h("ul", {}, lines), problem);
}

function filters(rows, draw) {
  const verdicts = [...new Set(rows.map((row) => row.verdict))].sort();
  const options = [...FILTERS.map(([name, words]) => [name, words]), ...verdicts.map((each) => [`answer:${each}`, `Answer: ${each}`])];
  const select = h("select", { id: "filter", onchange: () => { chosen.filter = select.value; draw(); } },
    options.map(([value, words]) => h("option", { value, selected: value === chosen.filter }, words)));
  const search = h("input", { type: "search", id: "search", value: chosen.words, placeholder: "Name of a scan", oninput: () => { chosen.words = search.value; draw(); } });
  return [
    h("label", { for: "search" }, h("span", {}, "Search"), search),
    h("label", { for: "filter" }, h("span", {}, "Show"), select),
  ];
}

function downloads() {
  return h("p", { class: "downloads" }, h("a", { href: "/api/scans.csv", download: true }, "List as CSV"), h("a", { href: "/api/readers.csv", download: true }, "Readers’ labels"));
}

function tableOf(rows, draw) {
  if (rows.length === 0) return h("p", { class: "empty" }, "Nothing has been classified here yet.");
  const columns = state.about.has_beside ? [...COLUMNS.slice(0, 4), ["beside", "Beside it", (row) => (row.other ? Number(row.other.agrees) : 2)], ...COLUMNS.slice(4)] : COLUMNS;
  const wanted = rows.filter(isWanted);
  const key = columns.find(([name]) => name === chosen.column)?.[2] ?? COLUMNS[0][2];
  wanted.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (chosen.isDown ? -1 : 1));
  const heads = columns.map(([name, words]) => {
    const isChosen = name === chosen.column;
    const sort = () => {
      chosen.isDown = isChosen ? !chosen.isDown : name === "written";
      chosen.column = name;
      draw();
      document.querySelector(`th.${name} button`)?.focus();
    };
    return h("th", { class: name, scope: "col", "aria-sort": isChosen ? (chosen.isDown ? "descending" : "ascending") : null },
      h("button", { type: "button", onclick: sort }, words));
  });
  const body = wanted.map((row) => lineOf(row));
  return h("div", { class: "scroll" },
    h("table", {},
      h("caption", {}, wanted.length === rows.length ? `${rows.length} ${rows.length === 1 ? "scan" : "scans"}` : `${wanted.length} of ${rows.length} scans`),
      h("thead", {}, h("tr", {}, h("th", { class: "picture", scope: "col" }, h("span", { class: "hidden" }, "Picture")), heads)),
      h("tbody", {}, body)));
}

function isWanted(row) {
  const words = chosen.words.trim().toLowerCase();
  if (words && !row.scan.toLowerCase().includes(words)) return false;
  if (chosen.filter.startsWith("answer:")) return row.verdict === chosen.filter.slice(7);
  return (FILTERS.find(([name]) => name === chosen.filter) ?? FILTERS[0])[2](row);
}

function lineOf(row) {
  const address = `#/scan/${row.id}`;
  const picture = h("img", { src: `/api/scans/${row.id}/thumbnail`, alt: "", loading: "lazy", width: "128", height: "58", onerror: () => picture.remove() });
  const other = row.other;
  return h("tr", { onclick: (event) => { if (!event.target.closest("a")) location.hash = address; } },
    h("td", { class: "picture" }, picture),
    h("th", { class: "scan", scope: "row" }, h("a", { href: address }, row.scan)),
    h("td", { class: "verdict" }, row.verdict),
    h("td", { class: "percent number" }, row.percent),
    h("td", { class: "doubt" }, row.share === null ? h("span", { class: "mark" }, "unsuitable") : doubtMark(row.doubt) ?? "certain"),
    state.about.has_beside ? h("td", { class: other && !other.agrees ? "beside differs" : "beside" }, other ? `${other.verdict} ${other.percent}` : "", other ? doubtMark(other.doubt) : null) : null,
    h("td", { class: "lungs number", "data-name": "Lungs" }, `${row.lungs_l.toFixed(2)} l`),
    h("td", { class: "warnings number", "data-name": "Warnings" }, String(row.num_warnings)),
    h("td", { class: "time number", "data-name": "Time" }, `${row.seconds.toFixed(1)} s`),
    h("td", { class: "written" }, moment(row.written_at)),
    h("td", { class: "readers" }, row.readings.join(", ")));
}
