'use strict';

const byId = id => document.getElementById(id);
const MOST_PIXELS = {mask: 1e6, picture: 16e6};  // of the layer of masks; of a canvas that every phone has
const FONT = 'system-ui, sans-serif';
let facts;            // of GET /model
let shown = null;     // what is on the page: name, picture, answer, colours, masks or numbers
let pinned = null;    // place of the object or class that was clicked
let chosen = null;    // place of the one that is shown above the others, for now
let request = null;   // the one that runs

// -- the server ------------------------------------------------------------------------------

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server cannot be reached: is convnext serve still running?');
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok || !answer) throw new Error(answer?.error ?? `The server answered ${response.status}.`);
  return answer;
}

async function predict(file) {
  request?.abort();
  const own = request = new AbortController();
  const begin = performance.now();
  document.body.classList.add('busy');
  byId('error').textContent = '';
  say(`Predicting ${file.name} …`);
  try {
    facts ??= await ask('model');
    if (!file.size) throw new Error(`${file.name} is empty.`);
    if (file.size > facts.most_bytes) {
      throw new Error(`${file.name} has ${megabytes(file.size)} MB, more than the ${megabytes(facts.most_bytes)} `
        + 'MB that the server takes.');
    }
    const [picture, answer] = await pictureAndAnswer(file, own.signal);
    const layers = await decode(answer);
    if (own !== request) return;
    show({name: file.name, picture, answer, ...layers});
    say(`${summary()} (${Number(((performance.now() - begin) / 1000).toPrecision(2))} s)`);
  } catch (error) {
    if (own !== request) return;
    byId('error').textContent = error.message.includes(file.name) ? error.message : `${file.name}: ${error.message}`;
    say('');
  }
  document.body.classList.remove('busy');
}

/** The image as the browser reads it, if it does so as the model does; else as the server sends it. */
async function pictureAndAnswer(file, signal) {
  const send = extra => ask(`predict?score=0&map=1${extra}`, {method: 'POST', body: file, signal});
  const own = facts.upright ? await createImageBitmap(file).catch(() => null) : null;
  let answer = await send(own ? '' : '&picture=1');
  const differs = own && (own.width !== answer.width || own.height !== answer.height);
  if (!differs && own) return [own, answer];
  if (differs && facts.task === 'classification') return [own, answer];  // nothing is drawn over it
  if (differs) answer = await send('&picture=1');
  return [await bitmap(answer.picture), answer];
}

function bitmap(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes]), {colorSpaceConversion: 'none', premultiplyAlpha: 'none'});
}

const megabytes = bytes => (bytes / 2 ** 20).toFixed(1).replace('.0', '');
const say = text => { byId('status').textContent = text; };

// -- masks and maps --------------------------------------------------------------------------

/** Masks of a detector, or class numbers of a segmenter, at a size that is quick to draw. */
async function decode(answer) {
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS.mask / (answer.width * answer.height)));
  const width = Math.max(1, Math.round(answer.width * shrink));
  const height = Math.max(1, Math.round(answer.height * shrink));
  const colours = Object.fromEntries((answer.classes ?? []).map(each => [each.label, each.colour]));
  answer.objects?.sort((a, b) => b.score - a.score);
  const masks = answer.objects?.map(each => each.mask && raster(each.mask, width, height));
  const numbers = answer.map && await classNumbers(answer.map, width, height, answer.classes.length);
  return {layer: {width, height}, colours, masks, numbers};
}

/** Lengths of the runs of 0 and 1, column by column, out of COCO's compressed text. */
function runLengths(text) {
  const lengths = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, part;
    do {
      part = text.charCodeAt(at++) - 48;
      value |= (part & 31) << shift;
      shift += 5;
    } while (part & 32);
    if (part & 16 && shift < 32) value |= -1 << shift;
    lengths.push(lengths.length > 2 ? value + lengths.at(-2) : value);
  }
  return lengths;
}

/** Runs of 1 as [column, first row, row after the last]. */
function foreground({size: [rows], counts}) {
  const found = [];
  let end = 0;
  runLengths(counts).forEach((length, number) => {
    let begin = end;
    end += length;
    while (number % 2 && begin < end) {
      const column = Math.floor(begin / rows), after = Math.min(end, (column + 1) * rows);
      found.push([column, begin - column * rows, after - column * rows]);
      begin = after;
    }
  });
  return found;
}

/** A mask at the size of the layer: its frame (left, top, width, height) and a byte for each pixel in it. */
function raster(mask, width, height) {
  const [rows, columns] = mask.size;
  const first = (value, all, own) => Math.ceil(value * own / all - 0.5);  // whose middle is not before value
  const runs = foreground(mask).map(([column, begin, end]) =>
    [first(column, columns, width), first(column + 1, columns, width), first(begin, rows, height),
      first(end, rows, height)]).filter(([left, right, top, bottom]) => left < right && top < bottom);
  const least = place => runs.reduce((value, run) => Math.min(value, run[place]), Infinity);
  const most = place => runs.reduce((value, run) => Math.max(value, run[place]), -Infinity);
  if (!runs.length) return null;
  const x = least(0), y = least(2), w = most(1) - x, h = most(3) - y, data = new Uint8Array(w * h);
  for (const [left, right, top, bottom] of runs) {
    for (let column = left; column < right; column++) {
      for (let row = top; row < bottom; row++) data[(row - y) * w + column - x] = 1;
    }
  }
  return {x, y, w, h, data};
}

async function classNumbers(base64, width, height, classes) {
  const context = sized(document.createElement('canvas'), width, height).getContext('2d', {willReadFrequently: true});
  context.imageSmoothingEnabled = false;
  context.drawImage(await bitmap(base64), 0, 0, width, height);
  const {data} = context.getImageData(0, 0, width, height);
  const green = classes > 256 ? 256 : 0;
  return Uint16Array.from({length: width * height}, (_, i) => data[4 * i] + green * data[4 * i + 1]);
}

// -- drawing ---------------------------------------------------------------------------------

function sized(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

const parts = colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
const isLight = colour => parts(colour).reduce((sum, part, i) => sum + part * [0.299, 0.587, 0.114][i], 0) > 140;

/** Draw image and prediction; `unit` is the length, in pixels of the canvas, by which text is measured. */
function paint(canvas, width, height, unit, top) {
  const context = sized(canvas, width, height).getContext('2d');
  context.imageSmoothingEnabled = width < 3 * shown.picture.width;  // small images keep their pixels
  context.imageSmoothingQuality = 'high';
  context.drawImage(shown.picture, 0, 0, width, height);
  const {answer, numbers} = shown;
  if (answer.objects) paintObjects(context, width / answer.width, unit, top);
  if (numbers) context.drawImage(classLayer(top), 0, 0, width, height);
}

function visible() {
  const least = Number(byId('score').value);
  return shown.answer.objects.map((each, place) => ({...each, place})).filter(each => each.score >= least);
}

function paintObjects(context, zoom, unit, top) {
  const objects = visible().reverse().sort((a, b) => (a.place === top) - (b.place === top));  // the best above
  if (shown.masks.some(Boolean)) {
    context.drawImage(maskLayer(objects, top, zoom), 0, 0, context.canvas.width, context.canvas.height);
  }
  const font = Math.max(10, Math.round(13 * unit)), line = Math.max(1, Math.round(2 * unit));
  context.font = `600 ${font}px ${FONT}`;
  context.textBaseline = 'top';
  for (const {bbox, label, score, place} of objects) {
    const [left, above, right, below] = bbox.map(value => value * zoom), colour = shown.colours[label];
    context.globalAlpha = top === null || place === top ? 1 : 0.3;
    for (const [tone, thick] of [['#0008', line + 2 * unit], [colour, line]]) {
      context.strokeStyle = tone;
      context.lineWidth = thick;
      context.strokeRect(left, above, right - left, below - above);
    }
    if (top !== null && place !== top) continue;
    const text = `${label} ${score.toFixed(2)}`, wide = context.measureText(text).width + 0.7 * font;
    const x = Math.max(0, Math.min(left - line / 2, context.canvas.width - wide));
    const y = above >= 1.4 * font ? above - 1.4 * font : Math.max(0, above);
    context.fillStyle = colour;
    context.fillRect(x, y, wide, 1.4 * font);
    context.fillStyle = isLight(colour) ? '#000' : '#fff';
    context.fillText(text, x + 0.35 * font, y + 0.2 * font);
  }
  context.globalAlpha = 1;
}

function layerOf(fill) {
  const {width, height} = shown.layer, canvas = sized(document.createElement('canvas'), width, height);
  const context = canvas.getContext('2d'), image = context.createImageData(width, height);
  fill(image.data, width);
  context.putImageData(image, 0, 0);
  return canvas;
}

function maskLayer(objects, top, zoom) {
  const edges = zoom * shown.answer.width < 2 * shown.layer.width;  // a line of one pixel would be coarse
  return layerOf((pixels, width) => {
    for (const {label, place} of objects) {
      const mask = shown.masks[place];
      if (!mask) continue;
      const colour = parts(shown.colours[label]), {x, y, w, h, data} = mask;
      const strength = top === null ? 110 : place === top ? 150 : 35;
      for (let row = 0; row < h; row++) {
        for (let column = 0, i = row * w; column < w; column++, i++) {
          if (!data[i]) continue;
          const inside = row && row < h - 1 && column && column < w - 1
            && data[i - 1] && data[i + 1] && data[i - w] && data[i + w];
          const at = 4 * ((y + row) * width + x + column);
          pixels[at] = colour[0];
          pixels[at + 1] = colour[1];
          pixels[at + 2] = colour[2];
          pixels[at + 3] = edges && !inside && (top === null || place === top) ? 255 : strength;
        }
      }
    }
  });
}

function classLayer(top) {
  const colours = shown.answer.classes.map(each => parts(each.colour));
  return layerOf(pixels => shown.numbers.forEach((number, i) => {
    const dimmed = top !== null && number !== top, [red, green, blue] = dimmed ? [0, 0, 0] : colours[number];
    pixels[4 * i] = red;
    pixels[4 * i + 1] = green;
    pixels[4 * i + 2] = blue;
    pixels[4 * i + 3] = dimmed ? 175 : 140;
  }));
}

/** Fit the canvas into the place that it has, sharp on any screen. */
function fit() {
  if (!shown) return;
  const {width, height} = shown.picture, room = byId('canvas').parentElement.clientWidth;
  const narrow = matchMedia('(max-width: 50rem)').matches;
  const zoom = Math.min(room / width, innerHeight * (narrow ? 0.5 : 0.72) / height, 8);
  const canvas = byId('canvas'), dense = Math.min(devicePixelRatio, 3);
  const across = Math.max(1, Math.round(width * zoom * dense)), down = Math.max(1, Math.round(height * zoom * dense));
  paint(canvas, across, down, dense, chosen);
  canvas.style.width = `${across / dense}px`;
}

let asked = false;

function repaint() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    fit();
  });
}

// -- the list --------------------------------------------------------------------------------

function show(next) {
  shown = next;
  pinned = chosen = null;
  byId('result').hidden = false;
  byId('scores').hidden = !shown.answer.objects;
  byId('heading').textContent = shown.answer.classes && !shown.answer.objects ? 'Classes' : 'Objects';
  list();
  repaint();
}

function summary() {
  const {answer, name} = shown;
  if (answer.objects) {
    const number = visible().length;
    return `${number} ${number === 1 ? 'object' : 'objects'} in ${name}`;
  }
  if (answer.share_of_pixels) return `${Object.keys(answer.share_of_pixels).length} classes in ${name}`;
  return `${name}: ${answer.classes[0].label}, ${percent(answer.classes[0].score)}`;
}

const percent = share => `${(100 * share).toFixed(share && share < 0.01 ? 2 : 1)} %`;

/** What the list shows: place, label, colour, text, and share for a bar. */
function entries() {
  const {answer, colours} = shown;
  if (answer.objects) {
    return visible().map(each => ({...each, colour: colours[each.label], text: each.score.toFixed(2)}));
  }
  if (!answer.share_of_pixels) return answer.classes.map(each => ({...each, share: each.score, text: percent(each.score)}));
  return answer.classes.map(({label, colour}, place) => ({label, colour, place, share: answer.share_of_pixels[label]}))
    .filter(each => each.share !== undefined).sort((a, b) => b.share - a.share)
    .map(each => ({...each, text: percent(each.share)}));
}

function list() {
  const found = entries();
  byId('least').textContent = Number(byId('score').value).toFixed(2);
  byId('list').replaceChildren(...found.map(item));
  byId('canvas').setAttribute('aria-label', `${summary()}: ${found.slice(0, 20).map(each => `${each.label} ${each.text}`)
    .join(', ')}`);
  mark();
}

function item({place, label, colour, text, share}) {
  const row = document.createElement('li');
  const entry = document.createElement(place === undefined ? 'div' : 'button');
  const swatch = document.createElement('i'), name = document.createElement('b'), number = document.createElement('span');
  if (colour) swatch.style.background = colour;
  swatch.hidden = !colour;
  name.textContent = label;
  number.textContent = text;
  entry.className = 'entry';
  entry.classList.toggle('plain', !colour);
  entry.append(swatch, name, number);
  if (share !== undefined) {
    const bar = document.createElement('meter');
    bar.value = share;
    bar.setAttribute('aria-label', label);
    entry.append(bar);
  }
  if (place !== undefined) {
    entry.type = 'button';
    entry.dataset.place = place;
    for (const kind of ['pointerenter', 'focus']) entry.addEventListener(kind, () => choose(place));
    for (const kind of ['pointerleave', 'blur']) entry.addEventListener(kind, () => choose(pinned));
    entry.addEventListener('click', () => pin(place));
  }
  row.append(entry);
  return row;
}

function choose(place) {
  if (place === chosen) return;
  chosen = place;
  mark();
  repaint();
}

function pin(place) {
  pinned = place === pinned ? null : place;
  chosen = pinned;
  mark();
  repaint();
}

function mark() {
  for (const entry of byId('list').querySelectorAll('button')) {
    const place = Number(entry.dataset.place);
    entry.classList.toggle('chosen', place === chosen);
    entry.setAttribute('aria-pressed', String(place === pinned));
  }
}

/** The place of the smallest object, or of the class, under the pointer; null if there is none. */
function under(event) {
  const {left, top, width, height} = byId('canvas').getBoundingClientRect(), {answer, layer, numbers} = shown;
  const x = (event.clientX - left) / width, y = (event.clientY - top) / height;
  if (numbers) {
    const column = Math.min(layer.width - 1, Math.floor(x * layer.width));
    return numbers[Math.min(layer.height - 1, Math.floor(y * layer.height)) * layer.width + column] ?? null;
  }
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1), across = x * answer.width, down = y * answer.height;
  const hit = (answer.objects ? visible() : []).filter(({bbox: [x1, y1, x2, y2]}) =>
    x1 <= across && across <= x2 && y1 <= down && down <= y2);
  return hit.sort((a, b) => area(a.bbox) - area(b.bbox))[0]?.place ?? null;
}

// -- files -----------------------------------------------------------------------------------

function save(name, blob) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function saveJson() {
  const {map, picture, ...answer} = shown.answer;
  if (answer.objects) answer.objects = visible().map(({place, ...each}) => each);
  save(`${shown.name}.json`, new Blob([JSON.stringify({image: shown.name, ...answer}, null, 1)], {type: 'application/json'}));
}

function savePicture() {
  const {width, height} = shown.picture, zoom = Math.min(1, Math.sqrt(MOST_PIXELS.picture / (width * height)));
  const canvas = document.createElement('canvas'), unit = Math.max(width, height) * zoom / 1000;
  paint(canvas, Math.round(width * zoom), Math.round(height * zoom), unit, null);
  if (!shown.answer.objects && !shown.numbers) writeClasses(canvas, unit);
  canvas.toBlob(blob => save(`${shown.name}.png`, blob), 'image/png');
}

function writeClasses(canvas, unit) {
  const context = canvas.getContext('2d'), font = Math.max(8, Math.round(20 * unit));
  const lines = entries().map(({label, text}) => `${text}  ${label}`);
  context.font = `${font}px ${FONT}`;
  context.textBaseline = 'top';
  context.fillStyle = '#000a';
  const wide = Math.max(...lines.map(line => context.measureText(line).width));
  context.fillRect(0, 0, wide + font, (1.3 * lines.length + 0.7) * font);
  context.fillStyle = '#fff';
  lines.forEach((line, i) => context.fillText(line, 0.5 * font, (0.5 + 1.3 * i) * font));
}

// -- what a user does ------------------------------------------------------------------------

function take(files) {
  if (files?.length) predict(files[0]);
}

const drop = byId('drop'), canvas = byId('canvas');
byId('file').addEventListener('change', event => {
  take([...event.target.files]);
  event.target.value = '';  // so that the same file may be chosen again
});
addEventListener('paste', event => take(event.clipboardData?.files));
addEventListener('dragover', event => {
  event.preventDefault();
  drop.classList.add('over');
});
addEventListener('dragleave', event => event.relatedTarget || drop.classList.remove('over'));
addEventListener('drop', event => {
  event.preventDefault();
  drop.classList.remove('over');
  take(event.dataTransfer?.files);
});
byId('score').addEventListener('input', () => {
  if (!shown) return;
  const least = Number(byId('score').value);
  if (pinned !== null && shown.answer.objects?.[pinned].score < least) pinned = null;
  chosen = pinned;
  list();
  say(summary());
  repaint();
});
canvas.addEventListener('pointermove', event => choose(under(event) ?? pinned));
canvas.addEventListener('pointerleave', () => choose(pinned));
canvas.addEventListener('click', event => pin(under(event)));
byId('json').addEventListener('click', saveJson);
byId('picture').addEventListener('click', savePicture);
addEventListener('resize', repaint);

const TASKS = {detection: 'Detector', segmentation: 'Segmenter', classification: 'Classifier'};

ask('model').then(found => {
  facts = found;
  const number = facts.classes.length;
  document.title = byId('config').textContent = facts.config;
  byId('about').textContent = `${TASKS[facts.task]} of ${number} ${number === 1 ? 'class' : 'classes'}, ${facts.checkpoint}`;
  byId('score').value = facts.score;
}).catch(error => { byId('error').textContent = error.message; });
