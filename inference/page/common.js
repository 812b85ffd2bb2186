"use strict";
// What every page needs. Text of data becomes text nodes and attributes, never HTML.

const data = JSON.parse(document.getElementById("data").textContent);

/** Make an element: properties by name, listeners as onclick and so on, children as nodes or text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A labelled <select>: options are [value, text]; change(value) is called with what was chosen. */
function choice(title, options, change, id) {
  const select = make("select", { id, onchange: () => change(select.value) });
  for (const [value, text] of options) select.append(make("option", { value }, text));
  return make("label", {}, title, select);
}

/** A button that is on or off; change(on) is called. */
function toggle(title, on, change, id) {
  const button = make("button", { type: "button", id, "aria-pressed": String(on) }, title);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    change(now);
  });
  return button;
}

/** A number with so many digits, a dash where there is none. */
function number(value, digits = 1, sign = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return (value > 0 ? sign : "") + value.toFixed(digits);
}

/** A value of the data in a sentence. */
function word(value) {
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

/** Whether a key is typed into a field, where it means itself. */
function typing(event) {
  const { target } = event;
  return target.tagName === "SELECT" || (target.tagName === "INPUT" && target.type !== "checkbox");
}
