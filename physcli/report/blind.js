"use strict";
// The votes of one rater: shows pairs in the order the page holds, keeps every answer at once, writes one file.
const study = JSON.parse(document.getElementById("study").dataset.study);
const at = (id) => document.getElementById(id);
const PAUSE_MS = 500; // between two rounds of a pair
const store = at("store");
let rater = 0;
let state = null; // {session, started, votes: [{trial, choice}], seen: {trial: {plays, replays, ms, revised}}}
let shown = null; // {trial, left, right, videos}: what is on the screen
let since = null; // when it came into view, in ms
let running = false; // a round is being played, and has not been counted
let waiting = 0;

// --- what is kept ---

const keyOf = (number) => `physcli-blind-${study.page}-${number}`;
const scheduleOf = (number) => study.schedules[number - 1];

function read(number) {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(keyOf(number)));
  } catch {
    return null;
  }
  const trials = scheduleOf(number);
  const whole = kept && typeof kept.session === "string" && typeof kept.seen === "object" && Array.isArray(kept.votes)
    && kept.votes.length <= trials.length && kept.votes.every((vote, place) => vote.trial === trials[place][0]);
  return whole ? kept : null;
}

function keep() {
  try {
    localStorage.setItem(keyOf(rater), JSON.stringify(state));
  } catch {
    at("unsaved").textContent = "This browser keeps no progress: do not close or reload this page before you have " +
      "saved your votes.";
    at("unsaved").hidden = false;
  }
}

function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const session = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { session, started: new Date().toISOString(), votes: [], seen: {} };
}

// --- the start ---

function greet() {
  const list = study.schedules.flatMap((trials, index) => {
    const kept = read(index + 1);
    if (!kept || !kept.votes.length) return [];
    const item = document.createElement("li");
    item.textContent = `Rater ${index + 1}: ${kept.votes.length} of ${trials.length} answered in this browser.`;
    at("rater").value = index + 1;
    return [item];
  });
  at("kept").replaceChildren(...list);
}

at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const number = Number(at("rater").value);
  if (!Number.isInteger(number) || number < 1 || number > study.schedules.length) {
    at("refused").textContent = `There is no rater ${at("rater").value}: give the number you were told, 1 to ` +
      `${study.schedules.length}.`;
    return;
  }
  at("refused").textContent = "";
  rater = number;
  state = read(number) || fresh();
  keep();
  at("start").hidden = true;
  show();
});

// --- one pair ---

function seen() {
  const id = shown.trial;
  return (state.seen[id] = state.seen[id] || { plays: 0, replays: 0, ms: 0, revised: 0 });
}

function count() {
  if (shown && since !== null) seen().ms += Math.round(performance.now() - since);
  since = shown && !document.hidden ? performance.now() : null;
}

function put(slot, video) {
  at(slot).replaceChildren(...(video ? [video] : []));
}

function clear() {
  clearTimeout(waiting);
  running = false;
  if (!shown) return;
  count();
  for (const video of shown.videos) {
    video.pause();
    store.append(video);
  }
  shown = null;
  since = null;
}

function show() {
  clear();
  const trials = scheduleOf(rater);
  const place = state.votes.length;
  at("rate").hidden = place >= trials.length;
  at("done").hidden = place < trials.length;
  if (place >= trials.length) {
    at("save").focus();
    return;
  }
  const [trial, left, right, prompt] = trials[place];
  const videos = [left, right].map((id) => at(`v-${id}`));
  shown = { trial, left, right, videos };
  at("progress").textContent = `${place + 1} of ${trials.length}`;
  at("bar").value = place / trials.length;
  at("prompt-line").hidden = !study.prompts.length;
  at("prompt").textContent = study.prompts[prompt] || "(empty prompt)";
  put("left-slot", videos[0]);
  put("right-slot", videos[1]);
  at("skip").hidden = true;
  at("undo").disabled = !place;
  for (const video of videos) video.preload = "auto";
  if (place + 1 < trials.length) for (const id of trials[place + 1].slice(1, 3)) at(`v-${id}`).preload = "auto";
  since = document.hidden ? null : performance.now();
  if (videos.some((video) => video.error)) broken();
  else play();
  allow();
}

const ready = () => shown !== null && seen().plays > 0;

function allow() {
  const yes = ready();
  for (const name of ["choose-left", "choose-tie", "choose-right"]) at(name).disabled = !yes;
  if (at("skip").hidden) at("hint").textContent = yes ? "" : "Watch both to the end once.";
}

function play() {
  clearTimeout(waiting);
  running = true;
  for (const video of shown.videos) {
    video.currentTime = 0;
    video.play().catch(() => {
      // Moved or paused meanwhile; where a browser wants a gesture first, Replay is one.
      if (shown && shown.videos.includes(video) && !video.error && video.paused) {
        if (!ready()) at("hint").textContent = "Press Replay to see them.";
      }
    });
  }
}

function ended() {
  // Where both end at once, both tell, and the round still is one.
  if (!shown || !running || !shown.videos.every((video) => video.ended)) return;
  running = false;
  seen().plays += 1;
  keep();
  allow();
  waiting = setTimeout(play, PAUSE_MS);
}

function broken() {
  at("hint").textContent = "One of these does not play in this browser. Skip the pair, or open the page in another one.";
  at("skip").hidden = false;
}

for (const video of store.querySelectorAll("video")) {
  video.muted = true;
  video.addEventListener("ended", ended);
  video.addEventListener("error", () => {
    if (shown && shown.videos.includes(video)) broken();
  });
}

function answer(choice) {
  if (choice === "skip" ? !shown || at("skip").hidden : !ready()) return;
  count();
  state.votes.push({ trial: shown.trial, choice });
  keep();
  show();
}

function replay() {
  if (!shown) return;
  seen().replays += 1;
  play();
}

function undo() {
  if (!state || !state.votes.length) return;
  clear();
  const { trial } = state.votes.pop();
  state.seen[trial].revised += 1;
  keep();
  show();
}

// --- the file ---

// FNV-1a of 64 bits: whether a file was changed by an editor or on its way, not a signature.
function checksum(text) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, "0");
}

function save() {
  count();
  keep();
  const trials = scheduleOf(rater);
  const content = {
    physcli_votes: 1,
    page: study.page,
    rater,
    session: state.session,
    started: state.started,
    saved: new Date().toISOString(),
    votes: state.votes.map(({ trial, choice }, place) => ({
      trial,
      left: trials[place][1],
      right: trials[place][2],
      choice,
      ...state.seen[trial],
    })),
  };
  const text = JSON.stringify({ ...content, checksum: checksum(JSON.stringify(content)) }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
  link.download = `votes-${study.page.slice(0, 8)}-${rater}-${state.session.slice(0, 8)}-${state.votes.length}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  at("saved").textContent = `Saved as ${link.download}, where this browser puts downloads.`;
}

// --- hands ---

const BUTTONS = {
  "choose-left": () => answer("left"),
  "choose-right": () => answer("right"),
  "choose-tie": () => answer("tie"),
  replay,
  undo,
  skip: () => answer("skip"),
  "save-early": save,
  save,
  reconsider: undo,
};
for (const [name, act] of Object.entries(BUTTONS)) at(name).addEventListener("click", act);

const KEYS = {
  ArrowLeft: "choose-left",
  ArrowRight: "choose-right",
  ArrowDown: "choose-tie",
  "=": "choose-tie",
  " ": "replay",
  r: "replay",
  Backspace: "undo",
  u: "undo",
  s: "skip",
};
for (const kind of ["keydown", "keyup"]) {
  document.addEventListener(kind, (event) => {
    const name = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!shown || !name || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); // also that space presses no button: it always replays
    if (kind === "keydown" && !event.repeat) BUTTONS[name]();
  });
}
document.addEventListener("visibilitychange", () => {
  count();
  if (state) keep();
});
addEventListener("pagehide", () => {
  count();
  if (state) keep();
});
greet();
