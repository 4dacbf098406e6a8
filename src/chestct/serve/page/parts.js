// What every part of the page uses: elements, requests, words for numbers.

/** An element. Texts become text and never markup; `on…` are listeners, `style` is an object. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for pictures made of lines. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    // An attribute "style" is forbidden by the page's own policy; the object behind it is not.
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Something went wrong; the message is a sentence for people. */
export class Trouble extends Error {}

export const GONE = "The server does not answer: it has ended, or the connection broke. Start “chestct serve” again and open the address that it prints.";

/** Ask the server; an object is sent as JSON. */
export async function ask(address, { method = "GET", body } = {}) {
  let answer;
  try {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    answer = await fetch(address, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Trouble(GONE);
  }
  return read(answer.status, await answer.text());
}

/** What an answer says; its sentence as an error where it is a refusal. */
export function read(status, text) {
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    if (status < 400) throw new Trouble("The server answered with something that is no answer. Load the page again.");
  }
  if (status >= 400) throw new Trouble(said.error ?? `The server refused, without a reason (${status}). Load the page again.`);
  return said;
}

/** A size in words. */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(0)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** A moment in the reader's own words. */
export function moment(iso) {
  return new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));
}

/** A box that says what went wrong. */
export function trouble(error) {
  return h("p", { class: "trouble", role: "alert" }, error instanceof Trouble ? error.message : `Something went wrong on this page (${error.name}). Load it again.`);
}

/** How sure an answer is, as a mark. */
export function doubtMark(doubt) {
  if (!doubt) return null;
  return h("span", { class: "mark" }, doubt.startsWith("uncertain: unlike") ? "uncertain, unlike" : doubt);
}
