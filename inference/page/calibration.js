// Reliability diagrams: of pixels that are so sure, how many are right; a bar for each bin.

function drawing(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function diagram(run, c) {
  const { bins, classes } = run.reliability;
  const rows = c === null ? bins : classes[data.classes[c]];
  const error = c === null ? run.ece : run.ece_by_class[data.classes[c]];
  const name = c === null ? "all classes" : data.classes[c];
  const side = 200, wide = side / rows.length, most = Math.max(...rows.map(([n]) => n));
  const picture = drawing("svg", { viewBox: `-30 -6 ${side + 40} ${side + 30}`, width: 240, role: "img",
    "aria-label": `${run.name}, ${name}: expected calibration error ${number(error, 2)} %` });
  rows.forEach(([pixels, right, sure], i) => {
    if (!pixels) return;
    const look = { x: i * wide + 1, width: wide - 2, y: side * (1 - right / 100), height: (side * right) / 100,
      fill: "#0072b2", "fill-opacity": 0.3 + 0.7 * Math.sqrt(pixels / most) };
    const said = `${pixels.toLocaleString("en")} pixels, ${number(sure)} % sure, ${number(right)} % right`;
    picture.append(drawing("rect", look, drawing("title", {}, said)));
  });
  picture.append(drawing("line", { x1: 0, y1: side, x2: side, y2: 0, stroke: "#d55e00", "stroke-dasharray": "4 3" }));
  picture.append(drawing("rect", { width: side, height: side, fill: "none", stroke: "#80868f" }));
  const text = (x, y, words) => drawing("text", { x, y, "font-size": 11, "text-anchor": "middle" }, words);
  picture.append(text(side / 2, side + 16, "confidence, %"), text(0, side + 16, "0"), text(side, side + 16, "100"));
  picture.append(text(-16, 8, "right"), text(-16, side, "0"));
  const caption = `${run.name}, ${name}: ECE ${number(error, 2)} %`;
  return make("figure", {}, make("figcaption", { title: caption }, caption), picture);
}

/** The diagrams of all networks, of all classes together or one; null where none has any. */
function reliability() {
  const known = RUNS.filter((run) => run.reliability);
  if (!known.length) return null;
  const place = make("div", { className: "bar" });
  const draw = (value) => {
    place.replaceChildren(...known.map((run) => diagram(run, value === "" ? null : Number(value))));
  };
  const classes = [["", "all classes"], ...data.classes.map((name, c) => [c, name])];
  draw("");
  return make("details", { id: "reliability" }, make("summary", {}, "how sure, and how often right"),
    choice("of", classes, draw, "calibrated"), place);
}
