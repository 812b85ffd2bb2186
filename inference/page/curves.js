// Curves of training runs: a chart of each number of the log, a line of each run.

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a7500"];
const DASHES = ["", "6 3", "2 3"]; // from the ninth run on: the same colours, dashed
const WIDTH = 480, HEIGHT = 220, LEFT = 52, RIGHT = 16, TOP = 8, BOTTOM = 24;
const off = new Set(); // runs that are not shown
const options = { logarithm: false, smooth: false, classes: true };

const first = ["val_miou", "seg", "learning_rate", "images_per_second", "steps_per_second"];
const rank = (key) => (key.startsWith("IoU of ") ? 99 : (first.indexOf(key) + 1 || 50));
const keys = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))]
  .sort((a, b) => rank(a) - rank(b));

function titled(key) {
  return key.replaceAll("_", " ").replace("miou", "mIoU");
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Numbers at which an axis is labelled: some round ones between two ends. */
function ticks(low, high, count = 6) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++) found.push(i * step);
  return found;
}

function shown(value) {
  const size = Math.abs(value);
  if (size >= 1e4 && Number.isInteger(value / 1000)) return `${value / 1000}k`;
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(+value.toPrecision(4));
}

/** Exponential moving average, from its own first value on. */
function smoothed(points) {
  let held = null;
  return points.map(([step, value]) => {
    held = held === null ? value : 0.8 * held + 0.2 * value;
    return [step, held];
  });
}

function lines(key) {
  return data.runs.flatMap((run, index) => {
    if (off.has(index) || !run.curves[key]) return [];
    const points = options.smooth ? smoothed(run.curves[key]) : run.curves[key];
    return [{ run, index, points }];
  });
}

/** Draw the chart of a number, or null where no run that is shown has it. */
function chart(key) {
  const found = lines(key);
  const points = found.flatMap((line) => line.points);
  if (!points.length) return null;
  const logarithm = options.logarithm && points.every(([, value]) => value > 0);
  const of = logarithm ? Math.log10 : (value) => value;
  const [x0, x1] = [Math.min(...points.map(([x]) => x)), Math.max(...points.map(([x]) => x))];
  let [y0, y1] = [Math.min(...points.map(([, y]) => of(y))), Math.max(...points.map(([, y]) => of(y)))];
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const x = (step) => LEFT + ((step - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((of(value) - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `curves of ${titled(key)}` });
  for (const tick of ticks(y0, y1)) {
    const value = logarithm ? 10 ** tick : tick, at = y(value);
    picture.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    picture.append(svg("text", { x: LEFT - 4, y: at + 4, "text-anchor": "end" }, shown(value)));
  }
  for (const tick of ticks(x0, x1)) {
    picture.append(svg("text", { x: x(tick), y: HEIGHT - 6, "text-anchor": "middle" }, shown(tick)));
  }
  for (const { index, points: own } of found) {
    const path = own.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
    const look = { stroke: COLOURS[index % 8], "stroke-dasharray": DASHES[Math.floor(index / 8) % 3] };
    if (own.length > 1) picture.append(svg("polyline", { points: path.join(" "), ...look }));
    else picture.append(svg("circle", { cx: x(own[0][0]), cy: y(own[0][1]), r: 3, fill: look.stroke }));
  }
  const said = make("div", { className: "said dim" }, summary(found));
  const mark = svg("line", { class: "at", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  picture.append(mark);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const step = x0 + ((at - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0);
    const near = nearest(found[0].points, step);
    mark.setAttribute("x1", x(near[0]));
    mark.setAttribute("x2", x(near[0]));
    mark.setAttribute("visibility", "visible");
    const values = found.map(({ run, points: own }) => `${run.name} ${shown(nearest(own, near[0])[1])}`);
    said.textContent = `step ${near[0]}: ${values.join(" · ")}`;
  });
  picture.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    said.textContent = summary(found);
  });
  return make("figure", { id: `chart ${key}` }, make("figcaption", {}, titled(key)), picture, said);
}

function nearest(points, step) {
  return points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
}

function summary(found) {
  return found.map(({ run, points }) => `${run.name} ${shown(points.at(-1)[1])}`).join(" · ");
}

const charts = make("div", { className: "charts" });

function draw() {
  const wanted = keys.filter((key) => options.classes || !key.startsWith("IoU of "));
  charts.replaceChildren(...wanted.map(chart).filter(Boolean));
}

function set(name) {
  return (on) => { options[name] = on; draw(); };
}

const legend = make("div", { className: "bar", role: "group", "aria-label": "runs" });
data.runs.forEach((run, index) => {
  const button = toggle("", true, (on) => { if (on) off.delete(index); else off.add(index); draw(); });
  const box = make("span", { className: "swatch" });
  box.style.background = COLOURS[index % 8];
  button.append(box, run.name);
  legend.append(button);
});
const bar = make("div", { className: "bar" }, toggle("logarithmic", false, set("logarithm"), "logarithm"),
  toggle("smooth", false, set("smooth"), "smooth"));
if (keys.some((key) => key.startsWith("IoU of "))) {
  bar.append(toggle("classes", true, set("classes"), "classes"));
}
document.body.append(make("h1", {}, "Training"), legend, bar, charts);
draw();
if (data.watch) setTimeout(() => location.reload(), 1000 * data.watch);
