// Composes the page: state, keys, and the change between the list and a pair.
import {VerdictQueue, get, warn} from "./api.js";
import {VERDICTS, isTyping, make} from "./common.js";
import {List} from "./list.js";
import {PairView} from "./pair.js";

const find = (id) => document.getElementById(id);
const KEYS = [
  ["Everywhere", [["j k", "next, previous pair"], ["a r u", "accept, reject, unsure"], ["c", "take the verdict back"],
    ["n", "write a note (Enter ends it)"], ["?", "this help"]]],
  ["List", [["Enter", "open the pair"], ["← ↑ → ↓", "move in the grid"], ["/", "search"]]],
  ["A pair", [["1 – 6", "side by side, slider, flicker, checkerboard, magenta-green, difference"],
    ["+ −", "zoom"], ["f", "whole image"], ["x", "one screen pixel per image pixel"], ["arrows", "pan; with landmarks: move the cross"],
    [", .", "slider, speed or size of squares"], ["space", "stop the flicker; with landmarks: place a point"],
    ["m", "matches"], ["d", "displacement of a curved transform"], ["g", "green channel or colour"], ["e", "register now"],
    ["w", "moving image in its own frame"], ["Esc", "back to the list"]]],
  ["Landmarks", [["l", "place landmarks"], ["arrows", "move the cross (Shift: one screen pixel)"], ["space", "place a point"],
    ["Enter", "take the proposed second point"], ["Tab", "other image"], ["[ ]", "select a landmark"], ["Delete", "delete it"],
    ["z y", "undo, redo"], ["i", "snap all moving points again"], ["Alt+arrows", "move the selected landmark by a screen pixel"], ["p", "snap on, off"], ["t", "kind of transform"], ["b", "with matches"], ["s", "save"]]],
];

const state = {
  pairs: new Map(), verdicts: new Map(), readOnly: false,
  verdictOf(id) { return this.verdicts.get(id) || ["", ""]; },
  isWaiting(id) { return queue.has(id); },
};
const queue = new VerdictQueue((id, verdict) => {
  if (verdict && !queue.has(id)) state.verdicts.set(id, verdict);
  showVerdict(id);
});
const list = new List(state, {open: openPair, selected: () => showJudge()});
const pairView = new PairView(state, {
  changed(id, summary) {
    state.pairs.set(id, {...state.pairs.get(id), ...summary});
    list.update(id);
    list.refreshThumbnail(id);
  },
});
let opened = null;

function showVerdict(id) {
  list.update(id);
  showProgress();
  showJudge();
}

function showProgress() {
  const judged = [...state.pairs.keys()].filter((id) => state.verdictOf(id)[0]).length;
  find("progress").textContent = `${judged} of ${state.pairs.size} judged`;
  find("bar").max = Math.max(1, state.pairs.size);
  find("bar").value = judged;
}

const current = () => opened ?? list.selected;

function showJudge() {
  const id = current();
  for (const footer of [find("judge"), find("judge-pair")]) {
    const [verdict, note] = id === null ? ["", ""] : state.verdictOf(id);
    footer.querySelector(".current").textContent = id ?? "";
    for (const button of footer.querySelectorAll(".verdicts button")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
      button.disabled = state.readOnly || id === null;
    }
    const input = footer.querySelector(".note");
    if (document.activeElement !== input) input.value = note;
    input.disabled = state.readOnly || id === null;
    input.dataset.id = id ?? "";
  }
}

function judge(verdict) {
  const id = current();
  if (id === null || state.readOnly) return;
  change(id, {verdict});
  if (verdict && find("advance").checked) step(1);
}

function change(id, part) {
  const [verdict, note] = state.verdictOf(id);
  state.verdicts.set(id, [part.verdict ?? verdict, part.note ?? note]);
  queue.add({id, ...part});
  showVerdict(id);
}

function step(by) {
  const id = list.step(by);
  if (opened !== null && id !== opened) openPair(id);
}

function openPair(id) {
  if (id === null || !state.pairs.has(id)) return;
  if (opened !== null && !pairView.mayLeave()) return;
  opened = id;
  list.select(id);
  find("list").hidden = true;
  find("pair").hidden = false;
  location.hash = encodeURIComponent(id);
  pairView.open(id);
  showJudge();
}

function closePair() {
  if (!pairView.mayLeave()) return;
  pairView.close();
  opened = null;
  find("pair").hidden = true;
  find("list").hidden = false;
  history.replaceState(null, "", location.pathname);
  list.select(list.selected);
  showJudge();
}

function fillJudges() {
  for (const footer of [find("judge"), find("judge-pair")]) {
    footer.querySelector(".verdicts").append(...Object.entries(VERDICTS).map(([verdict, {sign, word, key}]) => {
      const button = make("button", {type: "button", class: `verdict-${verdict}`, "data-verdict": verdict},
        `${sign} ${word} `, make("kbd", {}, key));
      button.addEventListener("click", () => judge(button.getAttribute("aria-pressed") === "true" ? "" : verdict));
      return button;
    }));
    const input = footer.querySelector(".note");
    input.addEventListener("change", () => { if (input.dataset.id) change(input.dataset.id, {note: input.value}); });
    input.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === "Escape") { event.stopPropagation(); input.blur(); } });
  }
}

function fillHelp() {
  find("keys").append(...KEYS.map(([title, keys]) => make("section", {}, make("h3", {}, title), make("dl", {},
    ...keys.flatMap(([key, text]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)])))));
  for (const button of document.querySelectorAll("button.help")) button.addEventListener("click", () => find("help").showModal());
  find("close-help").addEventListener("click", () => find("help").close());
}

const COMMON = {
  j: () => step(1), k: () => step(-1), a: () => judge("accept"), r: () => judge("reject"), u: () => judge("unsure"), c: () => judge(""),
  n: () => find(opened === null ? "judge" : "judge-pair").querySelector(".note").focus(), "?": () => find("help").showModal(),
};
const IN_LIST = {
  Enter: () => openPair(list.selected), "/": () => list.search.focus(),
  ArrowRight: () => list.step(1), ArrowLeft: () => list.step(-1),
  ArrowDown: () => list.step(list.columns()), ArrowUp: () => list.step(-list.columns()),
};

document.addEventListener("keydown", (event) => {
  if (find("help").open) return;
  if (isTyping(event)) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.type === "search")) event.target.blur();
    return;
  }
  if (opened !== null && pairView.key(event)) {
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("button, summary, a, input") && ["Enter", " "].includes(event.key)) return;
  if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
  const actions = {...COMMON, ...(opened === null ? IN_LIST : {Escape: closePair})};
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});
find("back").addEventListener("click", closePair);

// Verdicts of other windows and other people appear here too.
let lost = false;
async function follow() {
  if (document.hidden) return;
  try {
    const found = new Map(Object.entries(await get("verdicts")));
    for (const id of new Set([...found.keys(), ...state.verdicts.keys()])) {
      const verdict = found.get(id) || ["", ""];
      if (queue.has(id) || !state.pairs.has(id) || String(state.verdictOf(id)) === String(verdict)) continue;
      state.verdicts.set(id, verdict);
      showVerdict(id);
    }
    if (lost && !queue.waiting.length) warn("");
    lost = false;
  } catch (error) {
    lost = true;
    warn(error.status ? error.message : "The server does not answer. Start review.py again and open the address that it prints; what was saved is kept.");
  }
}

async function start() {
  fillJudges();
  fillHelp();
  try {
    const found = await get("pairs");
    state.readOnly = found.read_only;
    state.root = found.root;
    for (const pair of found.pairs) state.pairs.set(pair.id, pair);
    for (const [id, verdict] of Object.entries(found.verdicts)) state.verdicts.set(id, verdict);
    find("root").textContent = found.root + (found.read_only ? " (read-only)" : "");
    document.title = `Review of ${found.root}`;
    if (found.problems.length) {
      find("problems").hidden = false;
      find("problems").querySelector("summary").textContent = `${found.problems.length} problems of the folder`;
      find("problems").querySelector("ul").append(...found.problems.map((text) => make("li", {}, text)));
    }
  } catch (error) {
    warn(error.message);
    return;
  }
  list.fill();
  showProgress();
  document.body.dataset.ready = "true";
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (state.pairs.has(wanted)) openPair(wanted);
  setInterval(follow, 3000);
}

start();
