// One scan: its answer beside it, and what a reader says of it.

import { state } from "./app.js";
import { Curve } from "./curve.js";
import { ask, h, size, trouble, Trouble } from "./parts.js";
import { canDraw, theViewer } from "./viewer.js";

const READER_KEY = "chestct-reader";

/** Show a scan in a place. */
export function showAnswer(place, id) {
  const view = new Answer(place, id);
  return { ready: view.load(), leave: () => view.leave() };
}

class Answer {
  constructor(place, id) {
    this.place = place;
    this.id = id;
    this.seen = "";
    this.onjobs = () => this.follow();
    this.onkey = (event) => this.press(event);
    state.listeners.add(this.onjobs);
    // Before NiiVue, whose canvas has keys of its own.
    addEventListener("keydown", this.onkey, true);
  }

  leave() {
    this.isGone = true;
    state.listeners.delete(this.onjobs);
    removeEventListener("keydown", this.onkey, true);
  }

  /** Load all that is said, and draw it. */
  async load() {
    this.scan = await ask(`/api/scans/${this.id}`);
    if (this.isGone) return;
    this.draw();
  }

  /** When its job gets on, more of it is there: the picture, then the outputs. */
  async follow() {
    const jobs = state.jobs.filter((job) => job.scan === this.id || job.id === this.viewJob);
    const last = jobs.at(-1);
    const now = last ? `${last.id} ${last.is_viewable} ${last.state}` : "";
    if (now === this.seen || !this.scan) return;
    this.seen = now;
    if (last?.id === this.viewJob && last.state === "failed") this.say(last.stage);
    if (last?.state === "failed" && last.is_classifying) this.say(last.stage);
    const isWhole = last?.id === this.viewJob && last.is_whole;
    try {
      const scan = await ask(`/api/scans/${this.id}`);
      if (this.isGone) return;
      const hadView = Boolean(this.scan.view);
      this.scan = scan;
      if (!hadView && scan.view) this.draw();
      else if (isWhole && last.state === "done") {
        this.drawTools();
        await this.viewer.showWhole();
      } else this.drawDownloads();
    } catch (error) {
      if (last?.state !== "failed") this.say(error.message);
    }
  }

  say(words) {
    this.told.replaceChildren(h("p", { class: "trouble", role: "alert" }, words));
  }

  draw() {
    const scan = this.scan;
    this.told = h("div", {});
    this.downloads = h("section", { class: "block", "aria-labelledby": "downloads-title" });
    this.picture = h("div", { class: "picture" });
    this.place.replaceChildren(
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "All scans"), h("span", { "aria-hidden": "true" }, "/"), h("span", {}, scan.scan)),
      this.told,
      h("div", { class: "answer" },
        this.picture,
        h("div", { class: "panel" }, verdict(scan), figures(scan), warnings(scan), this.reading(), this.downloads, details(scan))));
    this.drawDownloads();
    this.drawPicture();
  }

  drawPicture() {
    const scan = this.scan;
    const isDrawable = canDraw();
    if (scan.view && isDrawable) {
      this.viewer = theViewer();
      this.curve = new Curve((slice) => this.viewer.goTo(slice));
      this.viewer.onmove = (slice, words) => this.curve.mark(slice, words);
      this.curve.show(scan.slices, scan.view.lung_area, scan.evidence);
      this.picture.replaceChildren(this.viewer.element, this.curve.element, keys());
      this.drawTools();
      const slice = firstSlice(scan);
      this.curve.mark(slice, `slice ${slice}`);
      this.viewer.show(scan, slice).catch((error) => {
        this.say(error instanceof Trouble ? error.message : `The browser could not draw the scan (${error.name}). The still pictures are below.`);
        this.picture.append(...this.still(""));
      });
      return;
    }
    const why = isDrawable ? "" : "This browser cannot draw scans: it has no WebGL2. Here are the still pictures.";
    this.picture.replaceChildren(...this.still(why));
  }

  /** The still pictures, and how to get the moving ones. */
  still(why) {
    const scan = this.scan;
    const parts = [];
    const inWork = state.jobs.some((job) => job.state === "running" && job.scan === scan.id);
    if (why) parts.push(h("p", { class: "remark" }, why));
    else if (!scan.view && inWork) parts.push(h("p", { class: "remark", role: "status" }, "The picture is being made …"));
    else if (!scan.view && scan.can_view) parts.push(h("p", { class: "remark" }, "The still pictures of this scan. ", h("button", { type: "button", class: "primary", onclick: (event) => this.make(event.target, false) }, "Show it in three planes")));
    else if (!scan.view) parts.push(h("p", { class: "remark" }, "The still pictures of this scan: results hold no copy of it. To see it in three planes, drop it onto the page again, or start the server with --scans and the folder in which it lies."));
    if (scan.has_preview) parts.push(h("img", { class: "preview", src: `/api/scans/${scan.id}/preview`, alt: `Slices of the scan, lungs outlined: ${scan.verdict}` }));
    else if (scan.is_saved) parts.push(h("p", { class: "lead" }, "There are no pictures among its results."));
    if (scan.evidence && !scan.view) {
      const curve = new Curve(() => {});
      curve.show(scan.slices, null, { ...scan.evidence, peaks: [] });
      curve.input.hidden = true;
      curve.cursor.hidden = true;
      curve.peaks.replaceChildren(`Slices with the most evidence: ${scan.evidence.peaks.map(([slice]) => slice).join(", ") || "none"}.`);
      parts.push(curve.element);
    }
    return parts;
  }

  drawTools() {
    const scan = this.scan;
    const tools = [];
    const isSmaller = scan.view.shape.some((n, axis) => n < scan.view.scan_shape[axis]);
    if (isSmaller && scan.has_whole) tools.push(h("button", { type: "button", onclick: () => this.viewer.showWhole().catch((error) => this.say(error.message)) }, "Full resolution"));
    else if (isSmaller && scan.can_view) tools.push(h("button", { type: "button", onclick: (event) => this.make(event.target, true) }, "Full resolution"));
    this.viewer.extra.replaceChildren(...tools);
  }

  /** Have a viewing copy made, or all voxels brought. */
  async make(button, isWhole) {
    button.disabled = true;
    button.textContent = isWhole ? "Full resolution: being made …" : "Being made …";
    try {
      const { job } = await ask(`/api/scans/${this.id}/view`, { method: "POST", body: { whole: isWhole } });
      this.viewJob = job;
      this.follow();
    } catch (error) {
      this.say(error.message);
      button.textContent = "Not at hand";
    }
  }

  drawDownloads() {
    const { scan } = this;
    const files = scan.files.map((file, index) => h("li", {}, h("a", { href: `/api/scans/${scan.id}/files/${index}`, download: true }, file.name), h("span", { class: "size" }, size(file.bytes)), h("span", { class: "what" }, file.words.split(": ").at(-1))));
    const missing = Object.entries(scan.not_written).map(([name, why]) => h("li", { class: "missing" }, `${name}: ${why}`));
    const report = scan.files.some((file) => file.name === "report.html") ? h("p", {}, h("a", { href: `/api/scans/${scan.id}/report`, target: "_blank", rel: "noopener" }, "Open the still report")) : null;
    this.downloads.replaceChildren(h("h2", { id: "downloads-title" }, "Downloads"),
      scan.is_saved ? null : h("p", { class: "lead", role: "status" }, "The outputs are being written …"),
      h("ul", { class: "files" }, files, missing), report ?? "");
    for (const node of [...this.downloads.childNodes]) if (node.nodeType === Node.TEXT_NODE) node.remove();
  }

  /** What a reader says: right, wrong or unsure, and a note. */
  reading() {
    const { scan } = this;
    const name = h("input", { type: "text", id: "reader", maxlength: "40", autocomplete: "off", value: localStorage.getItem(READER_KEY) ?? "", placeholder: "such as anna" });
    const note = h("textarea", { id: "note", rows: "2", maxlength: "2000" });
    const labels = { ...state.about.labels, ...scan.labels };
    const others = Object.entries(labels).filter(([label]) => label !== scan.decision);
    const label = h("select", { id: "label" }, h("option", { value: "" }, "what is it?"), others.map(([value, words]) => h("option", { value }, words)));
    const labelRow = h("label", { for: "label", hidden: true }, h("span", {}, "It is"), label);
    const said = h("p", { class: "said", role: "status" });
    const tell = (readings) => said.replaceChildren(readings.map((each) => `${each.reader}: ${each.verdict}${each.label && each.verdict === "wrong" ? `, it is ${labels[each.label] ?? each.label}` : ""}${each.note ? ` (${each.note})` : ""}`).join("; "));
    let verdict = "";
    const choose = (value) => {
      verdict = value;
      labelRow.hidden = value !== "wrong";
      for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.verdict === value));
    };
    const verdicts = scan.is_suitable ? ["right", "wrong", "unsure"] : ["wrong", "unsure"];
    const buttons = verdicts.map((value) => h("button", { type: "button", "aria-pressed": "false", "data-verdict": value, onclick: () => choose(value) }, value));
    const keep = async (event) => {
      event.preventDefault();
      localStorage.setItem(READER_KEY, name.value);
      try {
        if (!verdict) throw new Trouble("Is the answer right or wrong, or are you unsure?");
        if (!name.value.trim()) throw new Trouble("Type your name, or what stands for it, first.");
        const given = verdict === "right" ? scan.decision : verdict === "wrong" ? label.value : "";
        const kept = await ask(`/api/scans/${scan.id}/readings`, { method: "POST", body: { reader: name.value.trim(), verdict, label: given, note: note.value } });
        tell(kept.readings);
        problem.replaceChildren();
      } catch (error) {
        problem.replaceChildren(trouble(error));
      }
    };
    const problem = h("div", {});
    tell(scan.readings);
    const mine = scan.readings.find((each) => each.reader === name.value);
    if (mine) {
      choose(mine.verdict);
      if (mine.verdict === "wrong") label.value = mine.label;
      note.value = mine.note;
    }
    return h("form", { class: "block reading", "aria-labelledby": "reading-title", onsubmit: keep },
      h("h2", { id: "reading-title" }, "Your reading"),
      h("div", { class: "group", role: "group", "aria-label": "The answer is" }, buttons),
      labelRow,
      h("label", { for: "note" }, h("span", {}, "Note"), note),
      h("label", { for: "reader" }, h("span", {}, "Reader"), name),
      h("button", { type: "submit", class: "primary" }, "Keep"),
      problem, said);
  }

  /** Keys, where no field is being filled in. */
  press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.viewer?.nv || !this.scan.view) return;
    if (event.target.closest?.("input, textarea, select")) return;
    const { viewer } = this;
    const peaks = (this.scan.evidence?.peaks ?? []).map(([slice]) => slice);
    const does = {
      1: () => viewer.setWindow(0), 2: () => viewer.setWindow(1), 3: () => viewer.setWindow(2), 4: () => viewer.setWindow(3),
      ArrowUp: () => viewer.goTo(viewer.at + 1), ArrowDown: () => viewer.goTo(viewer.at - 1),
      PageUp: () => viewer.goTo(viewer.at + 10), PageDown: () => viewer.goTo(viewer.at - 10),
      h: () => viewer.toggleHeat(), l: () => viewer.toggleLungs(),
      a: () => viewer.setPlane("axial"), c: () => viewer.setPlane("coronal"), s: () => viewer.setPlane("sagittal"), t: () => viewer.setPlane("all"),
      e: () => peaks.length && viewer.goTo(peaks[(peaks.indexOf(viewer.at) + 1) % peaks.length]),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (does) {
      event.preventDefault();
      does();
    }
  }
}

/** The slice to begin with: that of the most evidence, or with the most lung. */
function firstSlice(scan) {
  const peak = scan.evidence?.hottest?.slice ?? scan.evidence?.peaks[0]?.[0];
  if (peak) return peak;
  const area = scan.view.lung_area;
  return area.indexOf(Math.max(...area)) + 1;
}

function verdict(scan) {
  const bars = scan.bars.map((bar) => h("div", { class: bar.is_decision ? "bar decision" : "bar" },
    h("dt", {}, bar.words),
    h("dd", {}, h("span", { class: "track" }, h("span", { style: { width: `${(bar.share * 100).toFixed(2)}%`, ...(bar.color ? { background: bar.color } : {}) } })), h("span", { class: "value" }, bar.percent))));
  return h("section", { class: scan.is_suitable ? "verdict" : "verdict unsuitable" },
    h("p", { class: "eyebrow" }, scan.eyebrow, scan.doubt ? h("strong", {}, `; ${scan.doubt}`) : null),
    h("h1", {}, scan.verdict),
    scan.reasons.length ? h("ul", { class: "reasons" }, scan.reasons.map((each) => h("li", {}, each))) : null,
    bars.length ? h("dl", { class: "bars" }, bars) : null,
    bars.length ? h("details", { class: "meaning" }, h("summary", {}, "What these figures mean"), h("p", {}, scan.meaning)) : null);
}

function figures(scan) {
  return h("dl", { class: "figures" }, scan.figures.map(([name, value, unit]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, " ", h("small", {}, unit)))));
}

function warnings(scan) {
  if (scan.warnings.length === 0) return null;
  return h("section", { class: "block", "aria-labelledby": "warnings-title" },
    h("h2", { id: "warnings-title" }, scan.warnings.length === 1 ? "1 warning" : `${scan.warnings.length} warnings`),
    h("ul", { class: "remarks" }, scan.warnings.map((each) => h("li", {}, each))));
}

function details(scan) {
  const list = (pairs) => h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  const parts = [];
  if (scan.evidence) {
    const shares = Object.entries(scan.evidence.shares);
    parts.push(h("details", { class: "block" }, h("summary", {}, "Where the evidence lies"),
      h("p", { class: "lead" }, `${scan.evidence.words}, by ${scan.evidence.method}: lung with a heat of ${scan.evidence.threshold} or more. It shows what the classifier looked at and is not the outline of a disease.`),
      list(shares.map(([region, share]) => [region[0].toUpperCase() + region.slice(1), share]))));
  }
  parts.push(
    h("details", { class: "block" }, h("summary", {}, "The scan"), list(scan.facts)),
    h("details", { class: "block" }, h("summary", {}, "How it was made"), list(scan.provenance)),
    h("p", { class: "lead trained" }, scan.notice));
  return parts;
}

function keys() {
  const each = [["1 2 3 4", "lung, soft tissue, bone, wide window"], ["↑ ↓", "next slice; Page Up and Page Down ten"], ["E", "next slice with much evidence"], ["H L", "heat-map, lungs"], ["T A C S", "three planes, axial, coronal, sagittal"], ["mouse", "wheel scrolls, click sets the crosshair, drag with the right button changes the window"]];
  return h("details", { class: "keys-help", id: "keys" }, h("summary", {}, "Keys and mouse"),
    h("dl", { class: "facts" }, each.map(([name, words]) => h("div", {}, h("dt", {}, h("kbd", {}, name)), h("dd", {}, words)))));
}
