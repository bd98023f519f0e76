import { cocoFile, maskOf } from "./coco.js";
import { View, css, rgb } from "./view.js";

const $ = (id) => document.getElementById(id);
const view = new View($("canvas"), $("marks"));
const state = { model: null, file: null, shown: null, answer: null, hidden: new Set(), heat: null, asking: null };

// asking the server

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 503) {
    throw new Error("The server is busy. Try again in a moment.");
  }
  $("token").hidden = response.status !== 401;
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ? sentence(problem.detail) : `The server answers ${response.status}.`);
  }
  return response;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

// The server calls the file "the photo"; its name says which.
const naming = (text, name) => (name ? `${name}: ${text.replace(/^The photo: /, "")}` : text);

function say(error, name = "") {
  $("error").hidden = !error;
  $("error").textContent = error ? naming(error.message, name) : "";
}

function photoRequest(accept, signal) {
  const form = new FormData();
  form.append("photo", state.file, state.file.name || "photo");
  const query = new URLSearchParams({ include: $("places").open ? "heat,instances" : "heat", rule: $("rule").value || "max" });
  if ($("known").open && ticked().length) query.set("tags", ticked().join(","));
  return ask(`/v1/segment?${query}`, { method: "POST", body: form, headers: { Accept: accept }, signal });
}

const ticked = () => [...$("known").querySelectorAll("input:checked")].map((box) => box.value);

// one photo

async function open(file) {
  if (!file || !state.model) return;
  state.asking?.abort();
  if (file.size > state.model.max_body) {
    const size = (file.size / 2 ** 20).toFixed(1), most = state.model.max_body / 2 ** 20;
    return fail(new Error(`This file has ${size} MiB; the server takes ${most}.`), file);
  }
  state.file = file;
  state.hidden.clear();
  state.heat = null;
  for (const box of $("known").querySelectorAll("input")) box.checked = false;
  $("known").open = false;
  for (const button of $("examples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.name === file.name));
  }
  await look();
}

async function look() {
  if (!state.file) return;
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  // Quick answers come without a flicker.
  const waiting = setTimeout(() => ($("busy").hidden = false), 150);
  const began = performance.now();
  try {
    const file = state.file;
    const [response, photo] = await Promise.all([
      photoRequest("application/json", asking.signal),
      createImageBitmap(file).catch(() => null),
    ]);
    const answer = await response.json();
    if (asking !== state.asking) return;
    state.answer = answer;
    state.shown = file;
    say(null);
    show(photo, (performance.now() - began) / 1000);
  } catch (error) {
    // What is shown stays beside an error only while it is of the same photo.
    if (error.name === "AbortError" || asking !== state.asking) return;
    if (state.shown === state.file) say(error, state.file.name || "the photo");
    else fail(error, state.file);
  } finally {
    clearTimeout(waiting);
    if (asking === state.asking) $("busy").hidden = true;
  }
}

// A photo without an answer: the result of the one before is taken away, and the error names the file.
function fail(error, file) {
  state.file = state.shown = state.answer = state.heat = null;
  view.clear();
  $("stage").classList.add("empty");
  $("figure").hidden = $("panel").hidden = true;
  $("drop").firstElementChild.textContent = "Drop a photo here";
  $("status").textContent = "";
  for (const button of $("examples").querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
  say(error, file.name || "the photo");
}

const first = () => (state.model.classes[0].name === "background" ? 1 : 0);
const numberOf = (name) => state.model.classes.findIndex((row) => row.name === name);
const colourOf = (name) => rgb(state.model.classes[numberOf(name)].overlay_colour);

function show(photo, seconds) {
  const { answer, model } = state;
  $("stage").classList.remove("empty");
  $("drop").firstElementChild.textContent = "Drop another photo here";
  $("figure").hidden = $("panel").hidden = false;
  view.set(photo, maskOf(answer, first()), model.classes.map((row) => rgb(row.overlay_colour)));
  listClasses();
  const { width, height, file_name } = answer.images[0];
  const said = [`${file_name}, ${width} × ${height}`, `${seconds.toFixed(1)} s`];
  if (answer.tags_given) said.push(`tags given by you: ${ticked().join(", ")}`);
  if (!photo) said.push("this browser cannot show the file; the mask stands alone");
  $("status").textContent = said.join(" · ");
  const chosen = answer.instances;
  $("places-said").textContent = chosen
    ? `${chosen.places.length} places, for ${chosen.present.join(", ")}${answer.tags_given ? " (your tags)" : " (tags the model saw)"}.`
    : "";
  draw();
}

async function draw() {
  const { answer, hidden, heat } = state;
  let bitmap = null;
  if (heat) {
    const picture = new Image();
    picture.src = answer.heat.maps[heat];
    await picture.decode();
    bitmap = picture;
  }
  if (answer !== state.answer || heat !== state.heat) return;
  view.draw({ hidden, opacity: $("opacity").value / 100, heat: bitmap, box: answer.heat.box });
  const names = heat ? [] : answer.tags.map(({ name }) => ({ text: name, number: numberOf(name) }));
  const places = answer.instances && $("places").open ? answer.instances.places : [];
  view.mark(
    names.filter(({ number }) => !hidden.has(number)),
    places.map((place) => ({ ...place, number: numberOf(place.name) }))
      .filter(({ name, number }) => (heat ? name === heat : !hidden.has(number))),
  );
  $("legend").hidden = !heat;
  $("legend").lastElementChild.textContent = heat ? `probability of ${heat}` : "";
  const told = answer.tags.map(({ name }) => name).join(", ") || "nothing but background";
  $("canvas").setAttribute("aria-label", heat ? `Heat map of ${heat}` : `The photo with masks of ${told}`);
}

// the panel

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Never 1: no score is.
const scoreOf = (value) => (value > 0.99 ? "above 0.99" : value.toFixed(2));

function swatch(name) {
  const made = element("span", { class: "swatch" });
  made.style.background = css(colourOf(name));
  return made;
}

function heatButton(name) {
  const button = element("button", { type: "button", "aria-pressed": String(state.heat === name), "aria-label": `Heat map of ${name}` }, "heat");
  button.onclick = () => {
    state.heat = state.heat === name ? null : name;
    for (const other of $("panel").querySelectorAll(".row button")) other.setAttribute("aria-pressed", String(other === button && state.heat === name));
    draw();
  };
  return button;
}

function listClasses() {
  const { answer, hidden } = state, maps = answer.heat.maps;
  if (!(state.heat in maps)) state.heat = null;
  const seen = answer.tags.map(({ name, confidence, area }) => {
    const box = element("input", { type: "checkbox" }), number = numberOf(name);
    box.checked = !hidden.has(number);
    box.onchange = () => {
      hidden[box.checked ? "delete" : "add"](number);
      draw();
    };
    const share = area < 0.01 ? "less than 1 %" : `${Math.round(100 * area)} %`;
    return element("li", { class: "row" },
      element("label", {}, box, swatch(name), element("b", {}, name)),
      element("small", {}, `${share} of the photo; highest score ${scoreOf(confidence)}`),
      heatButton(name));
  });
  $("sure").textContent = `Scores are the network's own, from 0 to 1; the mean over this photo is ${scoreOf(answer.confidence)}. `
    + "A high one is no proof: on photos unlike those it learned from, wrong masks score high too.";
  $("classes").replaceChildren(...(seen.length ? seen : [element("li", { class: "none" }, "Nothing but background found.")]));
  const rest = Object.keys(maps).filter((name) => !answer.tags.some((tag) => tag.name === name));
  $("others").hidden = !rest.length;
  $("others").firstElementChild.textContent = `${rest.length} more heat map${rest.length === 1 ? "" : "s"}`;
  $("others").lastElementChild.replaceChildren(...rest.map((name) =>
    element("li", { class: "row" }, element("label", {}, swatch(name), element("b", {}, name)), element("small"), heatButton(name))));
}

function fillKnown() {
  const chips = state.model.classes.slice(first()).map(({ name }) => {
    const box = element("input", { type: "checkbox", value: name });
    box.onchange = look;
    return element("li", {}, element("label", {}, box, swatch(name), name));
  });
  $("known").querySelector("ul").replaceChildren(...chips);
}

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => (state.file.name || "photo").replace(/\.[^.]*$/, "");

$("save-mask").onclick = async () => {
  try {
    save(await (await photoRequest("image/png")).blob(), `${stem()}-mask.png`);
    say(null);
  } catch (error) {
    say(error);
  }
};
$("save-coco").onclick = () => save(new Blob([cocoFile(state.answer)], { type: "application/json" }), `${stem()}-coco.json`);

// ways in

$("file").onchange = () => {
  open($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("stage").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => open(event.clipboardData.files[0]));

$("opacity").oninput = () => {
  $("opacity-value").textContent = `${$("opacity").value} %`;
  if (state.answer) draw();
};
$("rule").onchange = look;
$("places").ontoggle = () => ($("places").open ? look() : state.answer && draw());
// Opened, nothing is ticked yet and nothing changes; closed, the photo speaks for itself again.
$("known").ontoggle = () => !$("known").open && state.answer?.tags_given && look();
$("token").onsubmit = (event) => {
  event.preventDefault();
  const token = $("secret").value.trim();
  // Headers carry no others, and no server has such a token.
  if (!/^[!-~]+$/.test(token)) return say(new Error("A token is one word of ASCII letters, digits and signs."));
  sessionStorage.setItem("token", token);
  start();
};

async function start() {
  try {
    const model = (state.model = await (await ask("/v1/model")).json());
    say(null);
    const classes = model.classes.slice(first()).map(({ name }) => name);
    const few = classes.slice(0, 8).join(", ") + (classes.length > 8 ? ", …" : "");
    $("about").textContent = `${model.name.split("@")[0]} · ${classes.length} classes: ${few} · learned from ${model.supervision}`;
    $("rule").replaceChildren(...model.rules.map((name) => element("option", {}, name)));
    fillKnown();
    await listExamples(model.examples);
  } catch (error) {
    $("about").textContent = "";
    say(error);
  }
}

async function listExamples(names) {
  const files = await Promise.all(names.map(async (name) => {
    const blob = await (await ask(`/v1/examples/${encodeURIComponent(name)}`)).blob();
    return new File([blob], name, { type: blob.type });
  }));
  const items = files.map((file) => {
    const picture = element("img", { src: URL.createObjectURL(file), alt: `example ${file.name}` });
    const button = element("button", { type: "button", "aria-pressed": "false" }, picture);
    button.dataset.name = file.name;
    button.onclick = () => open(file);
    return element("li", {}, button);
  });
  $("examples").querySelector("ul").replaceChildren(...items);
  $("examples").hidden = !items.length;
}

start();
