'use strict';
// The network answers once for a picture and an IoU, down to the least confidence; the confidence slider then filters:
// a better box is never suppressed by a worse one, so the boxes above a threshold are the same either way.
const at = id => document.getElementById(id);
const LONGEST = 1600; // pixels of the drawn picture's longer side
let model = null; // facts of the chosen one
let place = 0;
let picture = null; // {blob, name, bitmap}
let answer = null; // {detections, milliseconds, took}
let asking = null; // AbortController of the request on its way

// Names come from a model that anyone may have made: they are only ever set as text.
const text = (kind, content, name) => {
  const made = document.createElement(kind);
  made.textContent = content;
  if (name) made.className = name;
  return made;
};

function say(message) { at('status').textContent = message; }

function complain(message) {
  at('error').textContent = message;
  at('error').hidden = !message;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server does not answer. Is `python -m stages.try_model` still running?');
  }
  const body = await response.json().catch(() => ({message: `The server answered ${response.status}.`}));
  if (!response.ok) throw new Error(body.message || `The server answered ${response.status}.`);
  return body;
}

// As `yolov7 predict` draws: hues by the golden angle, so that neighbouring classes differ.
function color(label) {
  const [saturation, value] = [[0.85, 0.95], [0.65, 1], [0.95, 0.75]][Math.floor(label / 6) % 3];
  const hue = ((0.02 + label * 0.61803398875) % 1) * 6;
  return [5, 3, 1].map(corner => {
    const along = (corner + hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(along, 4 - along, 1))));
  });
}

const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
const ink = ([red, green, blue]) => 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? '#000' : '#fff';

const shown = () => answer ? answer.detections.filter(one => one.score > Number(at('confidence').value)) : [];

function draw() {
  at('confidence-shown').textContent = Number(at('confidence').value).toFixed(2);
  at('iou-shown').textContent = model && model.iou_is_fixed
    ? `${model.iou.toFixed(2)}, fixed in this file` : Number(at('iou').value).toFixed(2);
  const found = shown();
  list(found);
  at('save').disabled = !(answer && picture && picture.bitmap);
  if (!picture || !picture.bitmap) return;
  const {bitmap} = picture, canvas = at('picture'), longer = Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(LONGEST, Math.max(640, longer)) / longer;
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext('2d');
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const size = Math.max(13, canvas.height / 45) * Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.lineWidth = Math.max(2, size / 6);
  pen.textBaseline = 'top';
  for (const one of [...found].reverse()) { // the most confident lie on top
    const left = one.x1 * scale, top = one.y1 * scale, label = `${one.name} ${one.score.toFixed(2)}`;
    const tint = color(one.label);
    pen.strokeStyle = pen.fillStyle = css(tint);
    pen.strokeRect(left, top, (one.x2 - one.x1) * scale, (one.y2 - one.y1) * scale);
    const wide = pen.measureText(label).width + size / 2, high = size * 1.3;
    const x = Math.max(0, Math.min(left - pen.lineWidth / 2, canvas.width - wide)), y = top >= high ? top - high : top;
    pen.fillRect(x, y, wide, high);
    pen.fillStyle = ink(tint);
    pen.fillText(label, x + size / 4, y + size * 0.15);
  }
}

function list(found) {
  at('found').replaceChildren(...found.map(one => {
    const row = document.createElement('tr'), name = text('td', one.name), mark = document.createElement('canvas');
    mark.width = mark.height = 8;
    const pen = mark.getContext('2d');
    pen.fillStyle = css(color(one.label));
    pen.fillRect(0, 0, 8, 8);
    name.prepend(mark);
    row.append(name, text('td', one.score.toFixed(3), 'n'), text('td', `${one.x1.toFixed(0)}, ${one.y1.toFixed(0)}`, 'n'),
      text('td', `${(one.x2 - one.x1).toFixed(0)} × ${(one.y2 - one.y1).toFixed(0)}`, 'n'));
    return row;
  }));
  if (answer) {
    const count = `${found.length} detection${found.length === 1 ? '' : 's'}`;
    const hidden = picture.bitmap ? '' : ' This browser cannot show files of this format.';
    say(`${count}; ${answer.milliseconds} ms in the detector, ${answer.took.toFixed(0)} ms round trip.${hidden}`);
  }
}

// An answer for the picture and model before must not appear on those chosen since.
function forget() {
  if (asking) asking.abort();
  answer = null;
}

async function detect() {
  if (!picture || !model) return;
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  say('Detecting …');
  try {
    const start = performance.now();
    const found = await ask(`models/${place}/detect?iou=${at('iou').value}`, {
      method: 'POST', body: picture.blob, signal: mine.signal,
      headers: {'content-type': picture.blob.type.startsWith('image/') ? picture.blob.type : 'application/octet-stream'},
    });
    if (mine.signal.aborted) return; // while the answer's body was being read
    answer = {...found, took: performance.now() - start};
    complain('');
  } catch (error) {
    if (mine.signal.aborted) return;
    answer = null;
    say('');
    complain(`${picture.name}: ${error.message}`);
  }
  draw();
}

async function open(blob, name) {
  leaveCamera();
  forget();
  picture = {blob, name, bitmap: null};
  const mine = picture;
  const bitmap = await createImageBitmap(blob).catch(() => null); // upright, as EXIF says; null for what it cannot show
  if (picture !== mine) return;
  picture.bitmap = bitmap;
  at('picture').hidden = bitmap === null;
  at('hint').hidden = bitmap !== null;
  draw();
  await detect();
}

async function choose() {
  place = Number(at('model').value);
  const wanted = place;
  model = null;
  forget();
  at('model').setAttribute('aria-busy', 'true');
  complain('');
  say('Loading the model …');
  draw();
  try {
    const facts = await ask(`models/${wanted}`);
    if (wanted !== place) return;
    model = facts;
    at('confidence').min = facts.floor;
    at('confidence').value = facts.confidence;
    at('iou').value = facts.iou;
    at('iou').disabled = facts.iou_is_fixed;
    at('card').innerHTML = facts.card; // made by the server, which lets no HTML of the card through
    at('about').hidden = !facts.card;
    at('about').open = innerWidth > 800;
    say(`${facts.variant}: ${facts.classes.length} classes, input ${facts.input.join(' × ')} pixels.`);
    draw();
    await detect();
  } catch (error) {
    if (wanted !== place) return;
    say('');
    complain(error.message);
  } finally {
    if (wanted === place) at('model').removeAttribute('aria-busy');
  }
}

function save() {
  const {bitmap, name} = picture, ids = new Map(model.classes.map(one => [one.id, one.name]));
  const rounded = (value, digits) => Number(value.toFixed(digits));
  const annotations = shown().map((one, number) => {
    const sides = [one.x1, one.y1, one.x2 - one.x1, one.y2 - one.y1];
    return {id: number + 1, image_id: 1, category_id: one.category_id, bbox: sides.map(side => rounded(side, 3)),
      area: rounded(sides[2] * sides[3], 3), iscrowd: 0, score: rounded(one.score, 5)};
  });
  const document_ = {
    info: {description: `detections by ${model.variant}`, confidence: Number(at('confidence').value),
      iou: model.iou_is_fixed ? model.iou : Number(at('iou').value)},
    images: [{id: 1, file_name: name, width: bitmap.width, height: bitmap.height}],
    annotations, categories: [...ids].map(([id, named]) => ({id, name: named})),
  };
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(document_, null, 1)], {type: 'application/json'}));
  link.download = `${name.replace(/\.[^.]*$/, '')}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function useCamera() {
  complain('');
  try {
    at('video').srcObject = await navigator.mediaDevices.getUserMedia({video: true});
  } catch (error) {
    complain(navigator.mediaDevices ? `The camera cannot be used: ${error.message}`
      : 'Browsers lend the camera only to pages of this machine and to encrypted ones.');
    return;
  }
  await at('video').play();
  camera(true);
}

function camera(on) {
  for (const id of ['video', 'shoot', 'leave']) at(id).hidden = !on;
  for (const id of ['camera', 'choose']) at(id).hidden = on;
  at('picture').hidden = on || !(picture && picture.bitmap);
  at('hint').hidden = on || Boolean(picture && picture.bitmap);
}

function leaveCamera() {
  const stream = at('video').srcObject;
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  at('video').srcObject = null;
  camera(false);
}

function shoot() {
  const video = at('video'), still = document.createElement('canvas');
  still.width = video.videoWidth;
  still.height = video.videoHeight;
  still.getContext('2d').drawImage(video, 0, 0);
  still.toBlob(blob => open(blob, 'camera.jpg'), 'image/jpeg', 0.95);
}

function first(files) {
  if (files.length) open(files[0], files[0].name || 'pasted.png');
}

let pause;
at('confidence').addEventListener('input', draw);
addEventListener('resize', draw);
at('iou').addEventListener('input', () => {
  at('iou-shown').textContent = Number(at('iou').value).toFixed(2);
  clearTimeout(pause);
  pause = setTimeout(detect, 150);
});
at('model').addEventListener('change', choose);
at('file').addEventListener('change', event => { first(event.target.files); event.target.value = ''; });
at('camera').addEventListener('click', useCamera);
at('shoot').addEventListener('click', shoot);
at('leave').addEventListener('click', leaveCamera);
at('save').addEventListener('click', save);
document.addEventListener('paste', event => first(event.clipboardData.files));
document.addEventListener('dragover', event => { event.preventDefault(); at('drop').classList.add('over'); });
document.addEventListener('dragleave', event => { if (!event.relatedTarget) at('drop').classList.remove('over'); });
document.addEventListener('drop', event => {
  event.preventDefault();
  at('drop').classList.remove('over');
  first(event.dataTransfer.files);
});

ask('models').then(({models}) => {
  at('model').replaceChildren(...models.map((label, number) => Object.assign(text('option', label), {value: number})));
  return choose();
}).catch(error => { say(''); complain(error.message); });
