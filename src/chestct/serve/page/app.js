// The page as a whole: which view is shown, what is being done, whether the server is there.

import { showAnswer } from "./answer.js";
import { showEvaluation } from "./evaluation.js";
import { showList } from "./list.js";
import { ask, GONE, h, trouble, Trouble } from "./parts.js";
import { scansDropped, send } from "./send.js";

const main = document.getElementById("main");
const banner = document.getElementById("banner");
const busy = document.getElementById("busy");
const veil = document.getElementById("drop");

/** What the views share. `jobs` are the server's, `sending` are on their way to it. */
export const state = { about: null, jobs: [], sending: [], listeners: new Set() };

let events = null;
let shown = null;

/** Tell every listener that jobs or uploads have changed. */
function changed() {
  const active = state.jobs.filter((job) => job.state === "waiting" || job.state === "running").length + state.sending.filter((each) => !each.error).length;
  busy.textContent = active === 0 ? "" : active === 1 ? "1 scan in work" : `${active} scans in work`;
  for (const listener of state.listeners) listener();
}

/** Send scans, one after another; each is in `state.sending` until the server has it. */
export async function sendAll(scans) {
  const waiting = scans.map((scan) => ({ scan, name: scan.name, share: 0, error: "", stop: new AbortController() }));
  if (waiting.length === 0) waiting.push({ name: "Nothing to classify", share: 0, error: "No scan was found in what was dropped: a folder, a zip or a NIfTI file was expected.", stop: new AbortController() });
  state.sending.push(...waiting);
  if (!location.hash || location.hash === "#/") changed();
  else location.hash = "#/";
  for (const each of waiting) {
    if (each.error || each.stop.signal.aborted) continue;
    let last = 0;
    try {
      await send(each.scan, (share) => {
        each.share = share;
        if (performance.now() - last > 100) {
          last = performance.now();
          changed();
        }
      }, each.stop.signal);
      state.sending = state.sending.filter((other) => other !== each);
    } catch (error) {
      if (each.stop.signal.aborted) state.sending = state.sending.filter((other) => other !== each);
      else each.error = error instanceof Trouble ? error.message : `The browser could not read it (${error.name}).`;
    }
    changed();
  }
}

/** Take an upload that failed off the page, or stop one. */
export function giveUp(each) {
  each.stop.abort();
  state.sending = state.sending.filter((other) => other !== each);
  changed();
}

function listen() {
  if (events !== null) return;
  events = new EventSource("/api/events");
  events.addEventListener("open", () => {
    banner.hidden = true;
  });
  events.addEventListener("message", (event) => {
    state.jobs = JSON.parse(event.data);
    changed();
  });
  events.addEventListener("error", () => {
    banner.textContent = GONE;
    banner.hidden = false;
    if (events.readyState === EventSource.CLOSED) {
      events = null;
      setTimeout(() => document.hidden || listen(), 3000);
    }
  });
}

// A hidden tab listens to nothing: browsers allow six connections to a server, for all tabs.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) listen();
  else {
    events?.close();
    events = null;
  }
});

function nav() {
  const pages = [["#/", "Scans"]];
  if (state.about.has_evaluation) pages.push(["#/evaluation", "Evaluation"]);
  const here = location.hash.startsWith("#/evaluation") ? "#/evaluation" : "#/";
  const links = pages.map(([address, words]) => h("a", { href: address, "aria-current": address === here ? "page" : null }, words));
  document.getElementById("nav").replaceChildren(...links);
}

async function route() {
  nav();
  shown?.leave();
  const [, view, id] = location.hash.split("/");
  const place = h("div", { class: "view" });
  main.replaceChildren(place);
  scrollTo(0, 0);
  try {
    if (view === "scan") shown = showAnswer(place, id);
    else if (view === "job") shown = showAnswer(place, null, id);
    else if (view === "evaluation") shown = showEvaluation(place);
    else shown = showList(place);
    await shown.ready;
  } catch (error) {
    place.replaceChildren(trouble(error), h("p", {}, h("a", { href: "#/" }, "All scans")));
  }
}

let depth = 0;
addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  veil.hidden = false;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("dragleave", () => {
  depth -= 1;
  veil.hidden = depth > 0 ? veil.hidden : true;
});
addEventListener("drop", async (event) => {
  event.preventDefault();
  depth = 0;
  veil.hidden = true;
  try {
    await sendAll(await scansDropped(event.dataTransfer));
  } catch (error) {
    main.prepend(trouble(error));
  }
});

async function start() {
  try {
    state.about = await ask("/api/about");
  } catch (error) {
    main.replaceChildren(trouble(error));
    return;
  }
  document.getElementById("notice").textContent = state.about.notice;
  addEventListener("hashchange", route);
  listen();
  await route();
}

start();
