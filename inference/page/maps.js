// Label maps: loaded as scripts, because a page from disk may not read pixels of image files; and
// painted in the colours of the classes, hatched where there is no class.

// Okabe and Ito's eight, then Tol's muted ones, then paler and darker ones of both.
const SAFE = `0072b2 e69f00 009e73 cc79a7 56b4e9 d55e00 f0e442 000000 332288 88ccee 44aa99 117733
  999933 ddcc77 cc6677 882255 aa4499 7fb8d8 f2cf80 80ceb9 e5bcd3 aad9f4 eaae80 f7f1a0 808080 998fc3`
  .split(/\s+/).map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const ORANGE = [255, 150, 0], MAGENTA = [230, 0, 180], BLUE = [0, 114, 178];
const RAMP = [[0, 32, 77], [65, 77, 107], [124, 123, 120], [187, 175, 113], [255, 234, 70]]; // cividis

let safeColours = false;

function colourOf(c) {
  return safeColours || !data.palette[c] ? SAFE[c % SAFE.length] : data.palette[c];
}

function css([r, g, b]) {
  return `rgb(${r}, ${g}, ${b})`;
}

function ramp(share) {
  const at = Math.min(3.999, Math.max(0, share * 4)), i = Math.floor(at), part = at - i;
  return RAMP[i].map((v, k) => Math.round(v + part * (RAMP[i + 1][k] - v)));
}

/** Run the script of some maps; resolves to an object of base64 texts. */
function loadScript(path) {
  return new Promise((resolve, reject) => {
    const script = make("script", { src: path });
    script.onload = () => {
      script.remove();
      resolve(script.maps);
    };
    script.onerror = () => {
      script.remove();
      reject(new Error(`${path} is missing`));
    };
    document.head.append(script);
  });
}

/** Return the grey values of an encoded picture, as Uint8Array in `values`, with its sides. */
async function decoded(kind, text) {
  const image = new Image();
  image.src = `data:image/${kind};base64,${text}`;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data: pixels, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const values = new Uint8Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = pixels[4 * i];
  return { values, width, height };
}

const cache = new Map(); // of the last images: number -> promise of their maps

/** Load all maps of an image: {truth, seen: [{pred, confidence}, ...]}. */
function mapsOf(image) {
  if (!cache.has(image.index)) {
    cache.set(image.index, loadMaps(image));
    if (cache.size > 6) cache.delete(cache.keys().next().value);
  }
  return cache.get(image.index);
}

async function loadMaps(image) {
  const at = (place) => loadScript(`maps/${place}.js`);
  const [first, ...others] = await Promise.all([
    image.labelled ? at(image.number) : null,
    ...RUNS.map((run) => at(`${image.number}_${run.index}`)),
  ]);
  const seen = others.map(async (maps) => ({
    pred: await decoded("png", maps.pred),
    confidence: maps.confidence ? await decoded("jpeg", maps.confidence) : null,
  }));
  return { truth: first && (await decoded("png", first.truth)), seen: await Promise.all(seen) };
}

/** Paint a canvas: colour(i) of pixel i is [r, g, b, alpha], or null where it is hatched. */
function paint(canvas, { width, height }, colour) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const c = colour(i) ?? ((x + y) % 8 < 2 ? [110, 110, 110, 255] : [222, 222, 222, 255]);
      picture.data.set(c, 4 * i);
    }
  }
  context.putImageData(picture, 0, 0);
}

/** Colours of ids; those of other classes than `focus` are pale, where there is one. */
function painter(ids, focus) {
  const table = data.classes.map((_, c) => {
    const far = focus !== null && focus !== c;
    return [...colourOf(c), far ? 50 : 255];
  });
  return (i) => table[ids.values[i]] ?? null;
}

function paintIds(canvas, ids, focus) {
  paint(canvas, ids, painter(ids, focus));
}

/** Wrong pixels in orange, those of the chosen confusion in magenta, right ones dark. */
function paintMistakes(canvas, truth, pred, chosen) {
  const right = [0, 0, 0, 120], wrong = [...ORANGE, chosen ? 110 : 255], these = [...MAGENTA, 255];
  paint(canvas, truth, (i) => {
    const t = truth.values[i], p = pred.values[i];
    if (t >= C) return null;
    if (chosen && t === chosen[0] && p === chosen[1]) return these;
    return t === p ? right : wrong;
  });
}

/** Where two networks differ: blue where this one alone is right, orange where the first is. */
function paintDifference(canvas, truth, first, pred) {
  const same = [0, 0, 0, 120], both = [200, 200, 200, 255];
  paint(canvas, pred, (i) => {
    const one = first.values[i], other = pred.values[i], t = truth ? truth.values[i] : C;
    if (one === other) return same;
    if (t >= C) return both;
    return other === t ? [...BLUE, 255] : one === t ? [...ORANGE, 255] : both;
  });
}

function paintConfidence(canvas, confidence) {
  const table = Array.from({ length: 256 }, (_, v) => [...ramp(v / 255), 255]);
  paint(canvas, confidence, (i) => table[confidence.values[i]]);
}
