// Elements without markup in strings: nothing that a user or a server wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const AS_PROPERTY = new Set(["value", "checked", "disabled", "hidden", "textContent", "open"]);

/** An element. `on` holds listeners; undefined, null and false attributes are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (AS_PROPERTY.has(name)) {
      node[name] = value;
    } else if (value !== undefined && value !== null && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

const PATHS = {
  play: "M8 5.2v13.6a.8.8 0 0 0 1.2.7l11-6.8a.8.8 0 0 0 0-1.4l-11-6.8a.8.8 0 0 0-1.2.7Z",
  pause: "M7 5h3.6v14H7zM13.4 5H17v14h-3.6z",
  dice: "M6 3h12a3 3 0 0 1 3 3v12a3 3 0 0 1-3 3H6a3 3 0 0 1-3-3V6a3 3 0 0 1 3-3Zm2.2 3.6a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Zm7.6 0a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM12 10.4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Zm-3.8 3.8a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Zm7.6 0a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Z",
  moon: "M20.5 14.2A8.6 8.6 0 0 1 9.8 3.5a.6.6 0 0 0-.8-.7 9.6 9.6 0 1 0 12.2 12.2.6.6 0 0 0-.7-.8Z",
};

/** A small picture that says nothing to a screen reader. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  path.setAttribute("fill-rule", "evenodd");
  picture.append(path);
  return picture;
}

/** A labelled control with a place for its error, as `problems.js` looks for it. */
export function field(name, label, control, { hint, unit, id = `field-${name}` } = {}) {
  control.id = id;
  control.setAttribute("name", name);
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  const error = el("p", { class: "error", hidden: true });
  const said = hint ? el("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (control.type === "checkbox") {
    return el("div", { class: "field check", "data-field": name }, el("label", { for: id }, control, label), error, said);
  }
  const shown = unit ? el("span", { class: "with-unit" }, control, el("span", { class: "unit" }, unit)) : control;
  return el("div", { class: "field", "data-field": name }, el("label", { for: id }, label), shown, error, said);
}

/** One stop of the Tab key for a group of buttons; arrows go from one to the next. */
export function roving(group) {
  const buttons = () => [...group.querySelectorAll("button")];
  const settle = (chosen) => buttons().forEach((button) => (button.tabIndex = button === chosen ? 0 : -1));
  settle(buttons().find((button) => button.getAttribute("aria-selected") === "true") ?? buttons()[0]);
  if (group.dataset.roving) return;
  group.dataset.roving = "true";
  group.addEventListener("focusin", (event) => settle(event.target));
  group.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    all[(to + all.length) % all.length].focus();
  });
}

/** Tells screen readers what happened. */
export function announce(text) {
  byId("announcer").textContent = text;
}
