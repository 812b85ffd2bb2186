// The list of images: sorted, filtered, and as virtual as it can be, with the tables above it.

const GAP = 6, TALL = 126, LINE = 18; // pixels of a card: between, of pictures and name, a network
const PRINTED = 60; // cards on paper
const state = { sort: "file", down: false, run: 0, focus: null, chosen: null, text: "", order: [] };

const SORTS = {
  file: ["order of the files", (image) => image.index],
  name: ["name", (image) => image.name],
  miou: ["mean IoU", (image, run) => image.seen[run].miou],
  wrong: ["wrong pixels", (image, run) => image.seen[run].wrong],
  confidence: ["confidence", (image, run) => image.seen[run].confidence],
};
if (RUNS.length > 1) {
  SORTS.differs = ["disagreement of networks", (image) => image.differs];
  SORTS.gain = ["gain over the first", (image, run) => image.seen[run].miou - image.seen[0].miou];
}
data.classes.forEach((name, c) => {
  SORTS[`class ${c}`] = [`IoU of ${name}`, (image, run) => image.seen[run].iou[c]];
});
SORTS.chosen = ["pixels of the chosen confusion", (image, run) => -pixelsOf(image, run, state.chosen)];

/** How many pixels of an image a cell of the confusion matrix has. */
function pixelsOf(image, run, cell) {
  if (!cell) return 0;
  const wanted = cell[0] * SIDE + cell[1];
  return image.seen[run].entries.find(([place]) => place === wanted)?.[1] ?? 0;
}

function hasClass(image, run, c) {
  const is = (place) => place % SIDE === c || Math.floor(place / SIDE) === c;
  return image.seen[run].entries.some(([place]) => is(place));
}

/** Sort and filter, then show the list from its top. */
function arrange() {
  const { run, focus, chosen } = state, words = state.text.toLowerCase();
  const value = SORTS[state.sort][1];
  const absent = (x) => x === null || x === undefined || Number.isNaN(x);
  const kept = IMAGES.filter((image) =>
    (!words || image.name.toLowerCase().includes(words))
    && (focus === null || hasClass(image, run, focus))
    && (!chosen || pixelsOf(image, run, chosen) > 0));
  const keyed = kept.map((image) => [value(image, run), image]);
  const way = state.down ? -1 : 1;
  keyed.sort(([a], [b]) => {
    if (absent(a) || absent(b)) return absent(a) - absent(b); // without a value: at the end
    return a < b ? -way : a > b ? way : 0;
  });
  state.order = keyed.map(([, image]) => image);
  count.textContent = `${state.order.length} of ${IMAGES.length} images`;
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.pick) === focus));
  }
  for (const button of document.querySelectorAll("[data-cell]")) {
    button.setAttribute("aria-pressed", String(button.dataset.cell === String(chosen)));
  }
  const said = [focus !== null && `with ${data.classes[focus]}`];
  said.push(chosen && `${data.classes[chosen[0]]} taken for ${data.classes[chosen[1]]}`);
  clear.hidden = !said.some(Boolean);
  clear.textContent = `× ${said.filter(Boolean).join(", ")}`;
  drawn.clear();
  show();
}

const drawn = new Map(); // place in the order -> its card
let columns = 1, rowHeight = 1;

/** Put the cards that are on the screen into the list, or the first ones that are printed. */
function show(printed = 0) {
  const width = list.clientWidth, least = Math.min(width, 140 * (1 + RUNS.length));
  columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  rowHeight = TALL + LINE * RUNS.length + GAP;
  list.style.height = `${Math.ceil(state.order.length / columns) * rowHeight}px`;
  const top = -list.getBoundingClientRect().top;
  const from = Math.max(0, Math.floor(top / rowHeight) - 1) * columns;
  // two rows at least: the tab key finds no card that is not there
  const to = Math.max(2, Math.ceil((top + innerHeight) / rowHeight) + 1) * columns;
  const [first, end] = printed ? [0, printed] : [from, to];
  for (const [place, card] of drawn) {
    const on = place >= first && place < end;
    if (!on && card !== document.activeElement) drawn.delete(place);
  }
  for (let place = first; place < Math.min(end, state.order.length); place++) {
    if (!drawn.has(place)) drawn.set(place, cardOf(state.order[place], place));
    const card = drawn.get(place), side = (width + GAP) / columns;
    card.style.left = `${(place % columns) * side}px`;
    card.style.top = `${Math.floor(place / columns) * rowHeight}px`;
    card.style.width = `${side - GAP}px`;
    card.style.height = `${rowHeight - GAP}px`;
  }
  const wanted = [...drawn.entries()].sort(([a], [b]) => a - b).map(([, card]) => card);
  const same = wanted.length === list.children.length && wanted.every((c, i) => c === list.children[i]);
  if (!same) list.replaceChildren(...wanted);
}

function cardOf(image, place) {
  const picture = (name) => {
    const shown = make("img", { src: `thumbs/${name}.jpg`, alt: "", loading: "lazy", decoding: "async" });
    shown.addEventListener("error", () => shown.remove()); // no labels and no confidence: no mistakes
    return shown;
  };
  const pictures = [picture(image.number), ...RUNS.map((run) => picture(`${image.number}_${run.index}`))];
  const lines = RUNS.map((run) => {
    const own = image.seen[run.index], said = RUNS.length > 1 ? [run.name] : [];
    if (image.labelled) said.push(`mIoU ${number(own.miou)}, wrong ${number(own.wrong)} %`);
    if (own.confidence !== null) said.push(`sure ${number(100 * own.confidence)} %`);
    return make("span", { className: "dim" }, said.join(" · "));
  });
  const card = make("button", { type: "button", className: "card", title: image.name,
    onclick: () => openViewer(place), onkeydown: (event) => moveAmongCards(event, place) },
  make("span", { className: "pictures" }, ...pictures), make("span", {}, image.name), ...lines);
  return card;
}

function moveAmongCards(event, place) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step || !state.order[place + step]) return;
  event.preventDefault();
  const top = list.getBoundingClientRect().top + scrollY + Math.floor((place + step) / columns) * rowHeight;
  const bar = document.querySelector(".controls").offsetHeight;
  if (top < scrollY + bar) scrollTo(0, top - bar);
  if (top + rowHeight > scrollY + innerHeight) scrollTo(0, top + rowHeight - innerHeight);
  show();
  drawn.get(place + step)?.focus();
}

// ------------------------------------------------------------------ what stands above the list

const list = make("div", { className: "list", id: "images" });
const count = make("span", { className: "dim", id: "count", role: "status" });
const clear = make("button", { type: "button", id: "clear", hidden: true, onclick: () => {
  Object.assign(state, { focus: null, chosen: null });
  if (state.sort === "chosen") setSort("file");
  arrange();
} });
const matrixPlace = make("div");

function setSort(name) {
  state.sort = name;
  document.getElementById("sort").value = name;
}

function pickClass(c) {
  state.focus = state.focus === c ? null : c;
  arrange();
}

function pickCell(truth, seen) {
  const again = String(state.chosen) === String([truth, seen]);
  state.chosen = again ? null : [truth, seen];
  setSort(again ? "file" : "chosen");
  arrange();
}

function showMatrix() {
  matrixPlace.replaceChildren(confusion(RUNS[state.run], state.chosen, pickCell));
}

function setSafe(on) {
  safeColours = on;
  for (const box of document.querySelectorAll(".swatch[data-class]")) {
    box.style.background = css(colourOf(Number(box.dataset.class)));
  }
  for (const button of document.querySelectorAll(".safe")) button.setAttribute("aria-pressed", String(on));
  redrawViewer();
}

function safeSwitch(id) {
  const button = toggle("colour-blind safe", safeColours, setSafe, id);
  button.classList.add("safe");
  return button;
}

function build() {
  const labelled = IMAGES.some((image) => image.labelled);
  const sorts = Object.entries(SORTS).map(([name, [title]]) => [name, title]);
  const bar = make("div", { className: "bar" });
  bar.append(choice("sort by", sorts, (name) => { state.sort = name; arrange(); }, "sort"));
  bar.append(toggle("falling", false, (on) => { state.down = on; arrange(); }, "falling"));
  if (RUNS.length > 1) {
    const runs = RUNS.map((run) => [run.index, run.name]);
    const pick = (run) => { state.run = Number(run); showMatrix(); arrange(); };
    bar.append(choice("of", runs, pick, "run"));
  }
  const find = make("input", { type: "search", id: "find", size: 12 });
  find.addEventListener("input", () => { state.text = find.value; arrange(); });
  bar.append(make("label", {}, "name", find), safeSwitch("safe"), clear, count);
  const about = make("details", {}, make("summary", {}, RUNS.map((run) => run.name).join(", ")));
  for (const run of RUNS) {
    const said = Object.entries(run.about).filter(([, value]) => value !== null);
    const words = said.map(([key, value]) => `${key.replaceAll("_", " ")} ${word(value)}`);
    about.append(make("p", { className: "dim" }, `${run.name}: ${words.join(", ")}`));
  }
  const tables = make("details", { open: innerWidth > 600 && labelled }, make("summary", {}, "classes"),
    overview(pickClass), ...sureness());
  const matrix = make("details", { id: "matrix", open: innerWidth > 1200 && C < 25 },
    make("summary", {}, "what is taken for what"), matrixPlace);
  const sure = reliability();
  sure?.addEventListener("toggle", () => show());
  matrix.addEventListener("toggle", () => show());
  tables.addEventListener("toggle", () => show());
  document.body.append(make("h1", {}, "Predictions and mistakes"), about,
    make("div", { className: "tables" }, tables, labelled ? matrix : null, sure),
    make("div", { className: "controls" }, bar), list);
  showMatrix();
  arrange();
}

let waiting = false;
function showSoon() {
  if (!waiting) requestAnimationFrame(() => { waiting = false; show(); });
  waiting = true;
}
addEventListener("scroll", showSoon, { passive: true });
addEventListener("resize", showSoon);
addEventListener("beforeprint", () => show(PRINTED));
addEventListener("afterprint", () => show());
addEventListener("keydown", (event) => {
  if (event.key !== "/" || typing(event) || viewer.open) return;
  event.preventDefault();
  document.getElementById("find").focus();
});
