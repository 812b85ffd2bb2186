// One image large: panes that zoom and pan in step, opacity, and what is under the pointer.

const view = { place: 0, zoom: 1, x: 0, y: 0, opacity: 0.6, maps: null, image: null };
const hidden = new Set(["prediction"]); // kinds of panes that are not shown
const KINDS = ["photograph", "truth", "prediction", "overlay", "mistakes", "confidence", "difference"];

const title = make("h2", { id: "title" });
const panes = make("div", { className: "panes" });
const where = make("div", { id: "where", className: "dim", role: "status" });
const legend = make("div", { className: "legend" });
const opacity = make("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05,
  value: view.opacity, oninput: () => setOpacity(Number(opacity.value)) });
const kinds = make("span", { className: "bar", role: "group", "aria-label": "panes" });
const viewer = make("dialog", { id: "viewer", "aria-labelledby": "title" });

function press(text, name, action) {
  return make("button", { type: "button", title: name, "aria-label": name, onclick: action }, text);
}

function buildViewer() {
  for (const kind of KINDS) {
    if (kind === "difference" && RUNS.length < 2) continue;
    const box = make("input", { type: "checkbox", checked: !hidden.has(kind), id: `pane-${kind}` });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(kind);
      else hidden.add(kind);
      redrawViewer();
    });
    kinds.append(make("label", {}, box, kind));
  }
  const bar = make("div", { className: "bar" }, title,
    press("‹", "previous image (left arrow)", () => step(-1)),
    press("›", "next image (right arrow)", () => step(1)),
    press("−", "smaller (-)", () => zoomAt(1 / 1.4)), press("+", "larger (+)", () => zoomAt(1.4)),
    press("1:1", "whole image (0)", reset),
    press("×", "close (escape)", () => viewer.close()),
    make("label", {}, "opacity", opacity), safeSwitch("safe-here"));
  const keys = "keys: ← → images, + − 0 size, shift and arrows move, [ ] opacity, c colours, esc list";
  viewer.append(bar, panes, where, legend, kinds, make("p", { className: "dim" }, keys));
  viewer.addEventListener("close", () => {
    location.hash = "";
    show();
    drawn.get(view.place)?.focus();
  });
  viewer.addEventListener("keydown", onKey);
  document.body.append(viewer);
  setOpacity(view.opacity);
  reset();
}

function openViewer(place) {
  view.place = place;
  if (!viewer.open) viewer.showModal();
  load();
}

function step(by) {
  if (!state.order[view.place + by]) return;
  view.place += by;
  load();
}

async function load() {
  const image = state.order[view.place];
  view.image = image;
  location.hash = String(image.number);
  title.textContent = `${image.name} (${view.place + 1} of ${state.order.length})`;
  reset();
  try {
    const maps = await mapsOf(image);
    if (view.image !== image) return; // another one was opened meanwhile
    view.maps = maps;
    redrawViewer();
    const next = state.order[view.place + 1];
    if (next) mapsOf(next).catch(() => {});
  } catch (error) {
    cache.delete(image.index);
    panes.replaceChildren(make("p", { role: "alert" }, `cannot be shown: ${error.message}`));
  }
}

// ------------------------------------------------------------------ panes

function redrawViewer() {
  const { image, maps } = view;
  if (!image || !maps || !viewer.open) return;
  const { focus, chosen } = state, { truth } = maps, several = RUNS.length > 1;
  const found = [pane("photograph", "photograph", null)];
  if (truth) found.push(pane("truth", "truth", (canvas) => paintIds(canvas, truth, focus)));
  for (const run of RUNS) {
    const { pred, confidence } = maps.seen[run.index], own = image.seen[run.index];
    const add = (kind, text, painted) => {
      found.push(pane(kind, several ? `${kind}, ${run.name}${text}` : kind + text, painted));
    };
    add("prediction", "", (canvas) => paintIds(canvas, pred, focus));
    add("overlay", "", (canvas) => paintIds(canvas, pred, focus));
    const scores = `: mIoU ${number(own.miou)}, wrong ${number(own.wrong)} %`;
    if (truth) add("mistakes", scores, (canvas) => paintMistakes(canvas, truth, pred, chosen));
    const sure = `: ${number(100 * own.confidence)} %`;
    if (confidence) add("confidence", sure, (canvas) => paintConfidence(canvas, confidence));
    const { pred: first } = maps.seen[0];
    if (run.index) add("difference", "", (canvas) => paintDifference(canvas, truth, first, pred));
  }
  const shown = found.filter(Boolean);
  panes.replaceChildren(...shown);
  panes.classList.toggle("few", shown.length < 2);
  drawLegend();
}

function pane(kind, text, painted) {
  if (hidden.has(kind)) return null;
  const { image } = view, moved = make("div", { className: "moved" });
  if (kind !== "prediction" && kind !== "truth") {
    moved.append(make("img", { src: `photographs/${image.number}.jpg`, alt: "", draggable: false }));
  }
  if (painted) {
    const canvas = make("canvas");
    painted(canvas);
    moved.append(canvas);
  }
  const frame = make("div", { className: "frame" }, moved);
  frame.style.aspectRatio = image.size.join(" / ");
  listen(frame);
  const figure = make("figure", { className: kind }, make("figcaption", { title: text }, text), frame);
  figure.classList.toggle("grey", kind === "mistakes" || kind === "difference");
  return figure;
}

function drawLegend() {
  const present = new Set();
  for (const { entries } of view.image.seen) {
    for (const [place] of entries) present.add(place % SIDE).add(Math.floor(place / SIDE));
  }
  const entry = (colour, text) => {
    const box = make("span", { className: "swatch" });
    box.style.background = colour;
    return make("span", {}, box, text);
  };
  const parts = data.classes.map((name, c) => present.has(c) && make("span", {}, swatch(c), name));
  const hatched = make("span", { className: "swatch hatched" });
  const scale = make("span", { className: "ramp" });
  scale.style.background = `linear-gradient(90deg, ${RAMP.map(css).join(", ")})`;
  parts.push(make("span", {}, hatched, "ignored"), entry(css(ORANGE), "wrong"));
  if (state.chosen) parts.push(entry(css(MAGENTA), "the chosen confusion"));
  if (RUNS.length > 1) {
    parts.push(entry(css(BLUE), "this network alone is right"), entry(css(ORANGE), "the first alone is right"));
  }
  parts.push(make("span", {}, "unsure ", scale, " sure"));
  legend.replaceChildren(...parts.filter(Boolean));
}

// ------------------------------------------------------------------ zoom, pan, opacity

function setOpacity(value) {
  view.opacity = Math.min(1, Math.max(0, value));
  opacity.value = view.opacity;
  viewer.style.setProperty("--opacity", view.opacity);
}

/** Show the part that `view` says, in every pane: x and y are shares of a pane's sides. */
function place() {
  const least = 1 - view.zoom;
  view.x = Math.min(0, Math.max(least, view.x));
  view.y = Math.min(0, Math.max(least, view.y));
  for (const name of ["x", "y", "zoom"]) viewer.style.setProperty(`--${name}`, view[name]);
}

function reset() {
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  place();
}

/** Zoom by a factor; the point (x, y), in shares of the pane's sides, stays where it is. */
function zoomAt(factor, x = 0.5, y = 0.5) {
  const zoom = Math.min(40, Math.max(1, view.zoom * factor)), by = zoom / view.zoom;
  view.x = x - (x - view.x) * by;
  view.y = y - (y - view.y) * by;
  view.zoom = zoom;
  place();
}

function listen(frame) {
  const fingers = new Map(); // pointer -> [x, y] in shares of the frame
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 400), ...at(event));
  }, { passive: false });
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
  });
  frame.addEventListener("pointermove", (event) => {
    const [x, y] = at(event), before = fingers.get(event.pointerId);
    read(x, y);
    if (!before) return;
    fingers.set(event.pointerId, [x, y]);
    const [other] = [...fingers.entries()].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
    if (other) {
      const length = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1e-6;
      zoomAt(length([x, y]) / length(before), ...other);
      return;
    }
    view.x += x - before[0];
    view.y += y - before[1];
    place();
  });
  const lift = (event) => fingers.delete(event.pointerId);
  frame.addEventListener("pointerup", lift);
  frame.addEventListener("pointercancel", lift);
}

/** Say what is under the pointer. */
function read(x, y) {
  const { maps } = view, [u, v] = [(x - view.x) / view.zoom, (y - view.y) / view.zoom];
  if (!maps || u < 0 || v < 0 || u >= 1 || v >= 1) return;
  const of = ({ values, width, height }) => values[Math.floor(v * height) * width + Math.floor(u * width)];
  const named = (ids) => data.classes[of(ids)] ?? "ignored";
  const said = maps.truth ? [`truth ${named(maps.truth)}`] : [];
  for (const run of RUNS) {
    const { pred, confidence } = maps.seen[run.index];
    const sure = confidence ? ` (${Math.round(of(confidence) / 2.55)} %)` : "";
    said.push(`${RUNS.length > 1 ? run.name : "seen"} ${named(pred)}${sure}`);
  }
  where.textContent = said.join(" · ");
}

function onKey(event) {
  if (typing(event) && event.key.startsWith("Arrow")) return; // the slider's own
  const moves = { ArrowLeft: ["x", 0.1], ArrowRight: ["x", -0.1], ArrowUp: ["y", 0.1], ArrowDown: ["y", -0.1] };
  const actions = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    "+": () => zoomAt(1.4), "=": () => zoomAt(1.4), "-": () => zoomAt(1 / 1.4), 0: reset,
    "[": () => setOpacity(view.opacity - 0.1), "]": () => setOpacity(view.opacity + 0.1),
    c: () => setSafe(!safeColours),
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.shiftKey && moves[event.key]) {
    const [axis, by] = moves[event.key];
    view[axis] += by;
    place();
  } else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
}

build();
buildViewer();
const linked = state.order.findIndex((image) => String(image.number) === location.hash.slice(1));
if (linked >= 0) openViewer(linked);
