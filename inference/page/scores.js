// Scores of networks and images from their confusion matrices; the tables above the list.

const C = data.classes.length;
const SIDE = C + 1; // the last row and column are what is no class
const RUNS = data.runs.map((run, index) => ({ ...run, index }));

/** Unpack the counts of an image: [gap, n, gap, n, ...] -> [[place, n], ...]. */
function unpacked(counts) {
  const entries = [];
  for (let i = 0, place = -1; i < counts.length; i += 2) {
    place += counts[i];
    entries.push([place, counts[i + 1]]);
  }
  return entries;
}

/** IoU of every class in percent, NaN where it neither is nor was predicted; the truth row C apart. */
function ious(entries) {
  const hits = new Float64Array(C), union = new Float64Array(C);
  for (const [place, n] of entries) {
    const truth = Math.floor(place / SIDE), seen = place % SIDE;
    if (truth === C) continue;
    if (truth === seen) hits[truth] += n;
    else if (seen < C) union[seen] += n;
    union[truth] += n;
  }
  return Array.from(hits, (n, c) => (100 * n) / union[c]);
}

/** Mean of the numbers among values of the classes that are scored. */
function mean(values) {
  const kept = values.filter((x, c) => !Number.isNaN(x) && (!data.scored || data.scored.includes(c)));
  return kept.length ? kept.reduce((a, b) => a + b) / kept.length : NaN;
}

/** Share of an image's scored pixels that are wrong, in percent. */
function wrongShare(entries) {
  let wrong = 0, all = 0;
  for (const [place, n] of entries) {
    if (place >= C * SIDE) continue;
    all += n;
    if (Math.floor(place / SIDE) !== place % SIDE) wrong += n;
  }
  return (100 * wrong) / all;
}

// Every image: name, labelled, and of each network its entries, IoUs, their mean, and confidence.
const IMAGES = data.images.map((image, i) => {
  const seen = RUNS.map((run) => {
    const [confidence, counts] = run.rows[i];
    const entries = unpacked(counts), iou = ious(entries);
    return { entries, iou, miou: mean(iou), wrong: wrongShare(entries), confidence };
  });
  return { ...image, index: i, seen };
});

for (const run of RUNS) {
  const total = new Float64Array(SIDE * SIDE);
  for (const image of IMAGES) for (const [place, n] of image.seen[run.index].entries) total[place] += n;
  run.matrix = total;
  run.iou = ious([...total.entries()]);
}

/** Where the colour of a class is shown; the palette's switch repaints all. */
function swatch(c) {
  const box = make("span", { className: "swatch" });
  box.dataset.class = c;
  box.style.background = css(colourOf(c));
  return box;
}

function overview(pickClass) {
  const several = RUNS.length > 1;
  const head = make("tr", {}, make("th", {}, "IoU"), ...RUNS.map((run) => make("th", {}, run.name)));
  if (several) head.append(...RUNS.slice(1).map((run) => make("th", {}, `${run.name} − ${RUNS[0].name}`)));
  const line = (first, values, key) => {
    const cells = values.map((value) => make("td", {}, number(value)));
    if (several) cells.push(...values.slice(1).map((v) => make("td", {}, number(v - values[0], 1, "+"))));
    return make("tr", { id: key }, make("th", { scope: "row" }, first), ...cells);
  };
  const rows = data.classes.map((name, c) => {
    const pick = () => pickClass(c);
    const button = make("button", { type: "button", className: "plain", onclick: pick }, swatch(c), name);
    button.dataset.pick = c;
    button.title = `only images with ${name}`;
    return line(button, RUNS.map((run) => run.iou[c]));
  });
  const table = make("table", { id: "scores" }, make("thead", {}, head), make("tbody", {}, ...rows));
  table.tBodies[0].append(line("mean", RUNS.map((run) => run.miou ?? NaN), "miou"));
  return make("div", { className: "wide" }, table);
}

/** Sentences on how sure the means are. */
function sureness() {
  return RUNS.filter((run) => run.interval).map((run) => {
    let text = `${run.name}: mIoU ${number(run.miou)} [${run.interval.map((x) => number(x)).join(", ")}]`;
    text += run.index ? "" : " (95 % of draws of images)";
    if (run.gain) {
      text += `; over ${RUNS[0].name} [${run.gain.map((x) => number(x, 1, "+")).join(", ")}]`;
      text += `, paired, p ${number(run.p_value, 3)}`;
    }
    return make("p", { className: "dim" }, text);
  });
}

/** The confusion matrix of a network in percent of each row; its cells pick (truth, seen). */
function confusion(run, picked, pick) {
  const names = [...data.classes];
  const head = make("tr", {}, make("th", {}, "truth ↓ seen →"));
  for (const name of names) head.append(make("th", { scope: "col" }, make("span", {}, name)));
  const body = make("tbody");
  names.forEach((name, truth) => {
    const row = make("tr", {}, make("th", { scope: "row" }, name));
    const all = run.matrix.slice(truth * SIDE, (truth + 1) * SIDE).reduce((a, b) => a + b);
    names.forEach((other, seen) => {
      const n = run.matrix[truth * SIDE + seen], share = all ? n / all : 0;
      const what = truth === seen ? `${name} seen as it is` : `${name} taken for ${other}`;
      const title = `${what}: ${(100 * share).toFixed(1)} %, ${n.toLocaleString("en")} pixels`;
      const shown = share >= 0.005 ? String(Math.round(100 * share)) : n ? "·" : "";
      const cell = make("button", { type: "button", title, "aria-label": title, tabIndex: -1 }, shown);
      cell.dataset.cell = `${truth},${seen}`;
      cell.addEventListener("click", () => pick(truth, seen));
      cell.setAttribute("aria-pressed", String(picked?.[0] === truth && picked?.[1] === seen));
      const tint = truth === seen ? "0, 114, 178" : "230, 120, 0";
      const td = make("td", {}, cell);
      td.style.background = n ? `rgba(${tint}, ${0.08 + 0.5 * Math.sqrt(share)})` : "";
      row.append(td);
    });
    body.append(row);
  });
  const table = make("table", { className: "matrix", id: "confusion" }, make("thead", {}, head), body);
  arrows(table);
  return make("div", { className: "wide" }, table);
}

/** One stop of the tab key for the whole matrix, in which the arrows move. */
function arrows(table) {
  const cells = [...table.querySelectorAll("button")];
  const first = cells.find((cell) => cell.getAttribute("aria-pressed") === "true") ?? cells[0];
  if (first) first.tabIndex = 0;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -C, ArrowDown: C };
  table.addEventListener("keydown", (event) => {
    const from = cells.indexOf(document.activeElement), to = from + (steps[event.key] ?? NaN);
    if (!cells[to]) return;
    event.preventDefault();
    cells[from].tabIndex = -1;
    cells[to].tabIndex = 0;
    cells[to].focus();
  });
}
