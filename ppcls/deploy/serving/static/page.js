"use strict";

// Dark enough for white letters on them.
const COLORS = ["#c2185b", "#2e7d32", "#3949ab", "#b35400", "#7b1fa2", "#00707a", "#795548", "#0a6fb5"];
const STAGES = {
  decode: "Decode and transform",
  queue: "Wait for a batch",
  compute: "Network",
  total: "Server in all",
  trip: "As this page saw it",
};

const at = (id) => document.getElementById(id);
const canvas = at("canvas");
let metadata = {};
let picture = null; // the ImageBitmap on the canvas; null when the browser cannot show the file
let answer = null; // the last result of a detector, to be drawn again when the threshold moves
let request = null; // the AbortController of the request on its way

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function say(text) {
  at("status").textContent = text;
}

function showError(text) {
  at("error").textContent = text;
  at("error").hidden = false;
  at("no-preview").hidden = true;
  say("No result.");
}

function clearResult() {
  answer = null;
  at("error").hidden = true;
  at("results").replaceChildren();
  at("latency").hidden = true;
  at("threshold-row").hidden = true;
}

/* The picture */

async function showPicture(file) {
  picture = null;
  try {
    // As the server's decoder does: OpenCV turns a photograph the way its EXIF data says, and
    // Pillow does not. Boxes are in the pixels that result.
    const orientation = metadata.exif_orientation === false ? "none" : "from-image";
    picture = await createImageBitmap(file, { imageOrientation: orientation });
  } catch {
    // A format the server knows and the browser does not, or no picture: the server will tell.
  }
  canvas.hidden = picture === null;
  at("no-preview").hidden = picture !== null;
  if (picture !== null) {
    drawPicture();
    canvas.setAttribute("aria-label", `The picture ${file.name || "from the clipboard"}`);
  }
}

function drawPicture() {
  const scale = Math.min(1, 1280 / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
}

function drawBoxes(objects) {
  if (picture === null) {
    return;
  }
  drawPicture();
  const context = canvas.getContext("2d");
  const scale = canvas.width / picture.width;
  // What looks like 13 pixels on the screen, however the canvas is scaled there.
  const unit = canvas.width / (canvas.clientWidth || canvas.width);
  context.lineWidth = 2 * unit;
  context.font = `600 ${Math.round(13 * unit)}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const object of [...objects].reverse()) { // the best one on top
    const [x1, y1, x2, y2] = object.box.map((value) => value * scale);
    context.strokeStyle = context.fillStyle = object.color;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const text = `${object.name} ${percent(object.score)}`;
    const width = context.measureText(text).width + 8 * unit;
    const height = 19 * unit;
    const left = Math.min(Math.max(0, x1 - unit), Math.max(0, canvas.width - width));
    const top = y1 >= height ? y1 - height : Math.max(0, y1);
    context.fillRect(left, top, width, height);
    context.fillStyle = "#ffffff";
    context.fillText(text, left + 4 * unit, top + 3 * unit);
  }
}

/* The result */

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function row(name, score, color) {
  const item = make("li", "", "");
  const line = make("div", "line", "");
  const label = make("span", "name", name);
  const track = make("div", "track", "");
  const fill = make("div", "fill", "");
  if (color) {
    const swatch = make("span", "swatch", "");
    swatch.style.background = color;
    label.prepend(swatch);
    fill.style.background = color;
  }
  track.setAttribute("aria-hidden", "true");
  fill.style.width = `${Math.min(100, Math.max(0, 100 * score))}%`;
  track.append(fill);
  line.append(label, make("span", "score", percent(score)));
  item.append(line, track);
  return item;
}

function showClasses(result) {
  const names = result.label_names || result.class_ids.map((id) => `class ${id}`);
  at("results").replaceChildren(...names.map((name, index) => row(name, result.scores[index])));
  say(`Best: ${names[0]}, ${percent(result.scores[0])}.`);
}

function showObjects() {
  const least = Number(at("threshold").value);
  at("threshold-value").textContent = least.toFixed(2);
  if (answer === null) {
    return;
  }
  const objects = answer.boxes
    .map((box, index) => ({
      box,
      name: answer.label_names ? answer.label_names[index] : `class ${answer.labels[index]}`,
      score: answer.scores[index],
      color: COLORS[answer.labels[index] % COLORS.length],
    }))
    .filter((object) => object.score >= least);
  drawBoxes(objects);
  at("results").replaceChildren(...objects.map((object) => row(object.name, object.score, object.color)));
  const found = objects.length === 1 ? "1 object" : `${objects.length} objects`;
  say(`${found} with a score of at least ${least.toFixed(2)}.`);
  canvas.setAttribute("aria-label", `The picture with ${found} marked`);
}

function showLatency(latency) {
  const parts = Object.keys(STAGES)
    .filter((stage) => stage in latency)
    .flatMap((stage) => [make("dt", "", STAGES[stage]), make("dd", "", `${latency[stage].toFixed(1)} ms`)]);
  at("latency").replaceChildren(...parts);
  at("latency").hidden = false;
}

/* The request */

async function ask(file, signal) {
  const started = performance.now();
  const form = new FormData(); // unlike the bare file it says the name, which errors repeat
  form.append("file", file, file.name || "picture");
  const response = await fetch("/predict", { method: "POST", body: form, signal });
  const content = await response.json();
  if (!response.ok) {
    throw new Error(content.error);
  }
  content.latency_ms.trip = performance.now() - started;
  return content;
}

async function predict(file) {
  request?.abort(); // the server drops what nobody waits for
  const mine = request = new AbortController();
  clearResult();
  say("Asking the network…");
  await showPicture(file);
  if (mine !== request) {
    return;
  }
  const limit = metadata.limits?.max_bytes;
  if (limit && file.size > limit) {
    showError(`The file has ${file.size} bytes; this server takes at most ${limit}.`);
    return;
  }
  try {
    const content = await ask(file, mine.signal);
    const result = content.images[0];
    if ("boxes" in result) {
      answer = result;
      at("threshold-row").hidden = false;
      showObjects();
    } else {
      showClasses(result);
    }
    showLatency(content.latency_ms);
  } catch (error) {
    if (mine !== request) {
      return;
    }
    const unreachable = error instanceof TypeError || error instanceof SyntaxError;
    showError(unreachable ? "The server cannot be reached, or did not answer as expected." : error.message);
  }
}

function take(files) {
  if (files && files.length > 0) {
    predict(files[0]);
  }
}

async function readMetadata() {
  try {
    metadata = await (await fetch("/metadata")).json();
  } catch {
    showError("The server cannot be reached.");
    return;
  }
  const { arch, task, class_num: count, runtime } = metadata;
  document.title = at("model").textContent = arch || "HarDNet";
  const classes = task === "detection" ? count - 1 : count; // without the background
  const verb = task === "detection" ? "Finds objects of" : "Names a picture as one of";
  at("about").textContent = `${verb} ${classes} classes${runtime ? `, computed by ${runtime}` : ""}.`;
  at("threshold").value = metadata.threshold ?? 0.5;
  at("threshold-value").textContent = Number(at("threshold").value).toFixed(2);
}

at("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
at("threshold").addEventListener("input", showObjects);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
// On the whole page: a picture dropped beside the frame would otherwise replace the page.
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files));
readMetadata();
