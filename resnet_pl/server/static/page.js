// Sends each photo to `predict`, one after the other, and shows the answer. All addresses are relative, so that the
// page also works below a path of a reverse proxy. Text is never inserted as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const queue = [];
let limits = null, threshold = null, running = false;

function percent(value) {
  return `${(100 * value).toFixed(1)}\u00a0%`;
}

async function send(address, file) {
  if (limits && file.size > limits.bytes)
    throw new Error(`the file has ${(file.size / 1e6).toFixed(1)} MB, more than ${limits.bytes / 1e6}`);
  const form = new FormData();
  form.append("photo", file);
  let response;
  try {
    response = await fetch(address, { method: "POST", body: form });
  } catch {
    throw new Error("the server does not answer");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({ error: `error ${response.status}` }));
    throw new Error(answer.error);
  }
  return response;
}

function addCard(file) {
  const card = byId("result").content.cloneNode(true).firstElementChild;
  const photo = card.querySelector(".photo");
  photo.src = URL.createObjectURL(file);
  photo.alt = file.name;
  photo.addEventListener("error", () => (photo.hidden = true)); // HEIC in most browsers, or not a photo
  card.querySelector(".name").textContent = card.querySelector(".name").title = file.name;
  card.querySelector(".toggle").addEventListener("click", () => toggleMap(card, file));
  return card;
}

function addRow(table, { class: name, probability }) {
  const row = table.insertRow();
  const head = row.appendChild(document.createElement("th"));
  head.scope = "row";
  head.textContent = head.title = name;
  const track = row.insertCell();
  track.className = "track";
  const bar = track.appendChild(document.createElement("div")).appendChild(document.createElement("span"));
  bar.style.width = `${100 * probability}%`;
  row.insertCell().textContent = percent(probability);
}

function showAnswer(card, answer) {
  const classes = answer.classes ?? [answer.class];
  card.querySelector(".class").textContent = classes.join(", ") || "none of the classes";
  const table = card.querySelector("table");
  for (const each of answer.probabilities) addRow(table, each);
  if (threshold !== null && answer.class !== undefined && answer.class !== answer.probabilities[0].class) {
    card.classList.add("unknown");
    showNote(card, `No class reaches the threshold of ${percent(threshold)}.`);
  }
  card.querySelector(".toggle").hidden = false;
}

function showNote(card, text, isError = false) {
  const note = card.querySelector(".note");
  note.textContent = text;
  note.hidden = !text;
  note.classList.toggle("error", isError);
}

async function toggleMap(card, file) {
  const button = card.querySelector(".toggle"), map = card.querySelector(".map");
  const photo = card.querySelector(".photo");
  if (!map.src) {
    button.disabled = true;
    try {
      map.src = URL.createObjectURL(await (await send("heatmap", file)).blob());
      map.alt = `Heat map of the most probable class in ${file.name}`;
    } catch (error) {
      showNote(card, error.message, true);
      return;
    } finally {
      button.disabled = false;
    }
  }
  map.hidden = !map.hidden;
  photo.hidden = !map.hidden;
  button.setAttribute("aria-pressed", String(!map.hidden));
}

async function run() {
  running = true;
  while (queue.length) {
    const [card, file] = queue.shift();
    try {
      showAnswer(card, (await (await send("predict", file)).json()).predictions[0]);
    } catch (error) {
      card.classList.add("failed");
      card.querySelector(".class").textContent = error.message;
    }
    card.classList.add("done");
    showStatus();
  }
  running = false;
}

function showStatus() {
  const total = byId("results").children.length, done = document.querySelectorAll("#results .done").length;
  byId("status").textContent = total ? `${done} of ${total} photos done` : "";
  byId("clear").hidden = !total;
}

function add(files) {
  const added = files.map((file) => [addCard(file), file]);
  byId("results").prepend(...added.map(([card]) => card));
  queue.push(...added);
  showStatus();
  if (!running) run();
}

function clear() {
  queue.length = 0;
  for (const image of document.querySelectorAll("#results img")) URL.revokeObjectURL(image.src);
  byId("results").replaceChildren();
  showStatus();
  byId("files").focus();
}

async function showModel() {
  const model = await (await fetch("model")).json();
  ({ limits, threshold } = model);
  const names = model.classes.slice(0, 10).join(", ") + (model.classes.length > 10 ? ", …" : "");
  byId("model").textContent = `${model.classes.length} classes: ${names}`;
}

byId("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // the same file can be chosen again
});
byId("clear").addEventListener("click", clear);
for (const type of ["dragover", "dragleave", "drop"])
  // Everywhere: a photo that misses the field would otherwise replace the page.
  document.addEventListener(type, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") add([...event.dataTransfer.files]);
  });
showModel();
