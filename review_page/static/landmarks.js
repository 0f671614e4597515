// Landmarks of a pair: placed in two clicks or by keyboard, snapped, moved, undone, fitted, saved.
import {post} from "./api.js";
import {make} from "./common.js";
import {cross} from "./pair.js";

const SIDES = ["fixed", "moving"];
const KINDS = {auto: "what they bear out", affine: "affine", homography: "homography", quadratic: "quadratic"};
const COLOURS = {mark: "#F0E442", worst: "#E69F00", selected: "#ffffff", pending: "#56B4E9", second: "#CC79A7"};
const REACH = 11; // px of the screen within which a landmark is taken hold of

export class Landmarks {
  constructor(view) {
    this.view = view;
    this.root = document.getElementById("landmarks");
    this.active = false;
    this.work = Promise.resolve();
    this.root.dataset.busy = "false";
    this.snap = true;
    this.withMatches = false;
    this.kind = "auto";
    this.clear();
    this.makePanel();
    window.addEventListener("beforeunload", (event) => { if (this.dirty) event.preventDefault(); });
  }

  clear() {
    this.history = [[]];
    this.at = 0;
    this.saved = "[]";
    this.pending = null;
    this.selected = null;
    this.report = null;
    this.observers = null;
    this.hover = null;
    this.refitting = 0;
    if (this.active) this.setActive(false);
  }

  get marks() { return this.history[this.at]; }
  get dirty() { return JSON.stringify(this.marks) !== this.saved; }
  get readOnly() { return this.view.state.readOnly; }

  load(pair) {
    const marks = pair.landmarks.fixed.map((point, index) => [point, pair.landmarks.moving[index]]);
    this.history = [marks];
    this.at = 0;
    this.saved = JSON.stringify(marks);
    this.version = pair.version;
    this.pending = this.selected = this.report = null;
    this.cross = [0, [(this.view.sizes[0][0] - 1) / 2, (this.view.sizes[0][1] - 1) / 2]];
    const draft = this.draft();
    if (draft) {
      // The page or the server ended before these were saved.
      this.history.push(draft);
      this.at = 1;
      this.view.say("Landmarks that were not saved are shown again; z takes them back.");
    }
    this.showPanel();
    if (this.marks.length) this.refit(false);
  }

  setActive(on) {
    this.active = on;
    this.root.hidden = !on;
    this.pending = null;
    this.view.panes.forEach((pane) => pane.root.classList.remove("active"));
    if (!on) return;
    this.showPanel();
    this.focusSide(this.cross ? this.cross[0] : 0);
    if (this.marks.length) this.refit();
  }

  mayLeave() {
    if (!this.dirty) return true;
    if (!window.confirm("The landmarks of this pair are not saved. Leave them?")) return false;
    localStorage.removeItem(this.draftKey);
    return true;
  }

  // What is not saved is kept in the browser, for the next page from the same port.
  get draftKey() { return `landmarks of ${this.view.state.root}: ${this.view.id}`; }

  draft() {
    const text = localStorage.getItem(this.draftKey), draft = text && JSON.parse(text);
    if (!draft || draft.version !== this.version || JSON.stringify(draft.marks) === this.saved) return null;
    return draft.marks;
  }

  keepDraft() {
    if (this.dirty) localStorage.setItem(this.draftKey, JSON.stringify({version: this.version, marks: this.marks}));
    else localStorage.removeItem(this.draftKey);
  }

  // --- panel -------------------------------------------------------------------------------------

  makePanel() {
    const button = (id, text, key, action) => {
      const made = make("button", {type: "button", id}, `${text} `, make("kbd", {}, key));
      made.addEventListener("click", action);
      return made;
    };
    this.kindSelect = make("select", {id: "kind"}, ...Object.entries(KINDS).map(([value, text]) => new Option(text, value)));
    this.kindSelect.addEventListener("change", () => { this.kind = this.kindSelect.value; this.refit(); });
    this.matchesBox = make("input", {type: "checkbox", id: "with-matches"});
    this.matchesBox.addEventListener("change", () => { this.withMatches = this.matchesBox.checked; this.refit(); });
    this.snapBox = make("input", {type: "checkbox", id: "snap", checked: true});
    this.snapBox.addEventListener("change", () => { this.snap = this.snapBox.checked; });
    this.buttons = {
      undo: button("undo", "undo", "z", () => this.move(-1)), redo: button("redo", "redo", "y", () => this.move(1)),
      remove: button("delete", "delete", "Del", () => this.remove()), refine: button("refine", "snap all again", "i", () => this.refine()),
      save: button("save", "save", "s", () => this.save()),
    };
    this.summary = make("div", {id: "fit", role: "status"});
    this.table = make("table");
    this.hint = make("p", {class: "soft", id: "hint"});
    this.root.append(this.hint, make("div", {class: "buttons"}, ...Object.values(this.buttons)),
      make("p", {}, make("label", {}, "Transform ", this.kindSelect), " ", make("label", {}, this.matchesBox, " with matches ", make("kbd", {}, "b")), " ", make("label", {}, this.snapBox, " snap ", make("kbd", {}, "p"))),
      this.summary, this.table);
  }

  showPanel() {
    const {report} = this, number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
    this.hint.textContent = this.pending ? "Now the other image: click, or Enter takes the proposed place (blue)."
      : `${this.marks.length} landmarks${this.dirty ? ", not saved" : ""}. Click a junction in one image, then in the other.`;
    const heads = ["", "residual", "left out"].map((text) => make("th", {}, text));
    this.table.replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...this.marks.map((_, index) => {
      const fit = report && report.residuals.length === this.marks.length ? report : null;
      const row = make("tr", {class: fit && fit.worst === index ? "worst" : ""},
        make("td", {}, `${index + 1}`), make("td", {}, number(fit && fit.residuals[index])), make("td", {}, number(fit && fit.left_out[index])));
      if (index === this.selected) row.setAttribute("aria-current", "true");
      row.addEventListener("click", () => this.select(index));
      return row;
    })));
    const lines = [];
    if (report) {
      lines.push(`${report.kind} through ${this.marks.length} landmarks${report.n_matches ? ` and ${report.n_matches} matches` : ""}: median residual ${number(report.median)} px at 512.`);
      lines.push(report.left_out_median === null ? "Left-out error: not measurable; a landmark more is needed." : `Left-out error: median ${number(report.left_out_median)} px at 512. Worst: landmark ${report.worst + 1} (${number(report.left_out[report.worst])} px).`);
      if (report.warning) lines.push(`Warning: ${report.warning}.`);
      lines.push(report.advice);
    } else if (this.marks.length < 3) {
      lines.push(`${3 - this.marks.length} more landmarks give a transform.`);
    }
    if (this.observers) {
      const o = this.observers;
      lines.push(`Second annotator (${o.n_second} landmarks): ${o.n_same} places in common, placed ${number(o.place_median)} px apart (median; max ${number(o.place_max)}); transforms ${number(o.transform_median)} px apart (median; max ${number(o.transform_max)}).`);
    }
    this.summary.replaceChildren(...lines.map((text) => make("p", {}, text)));
    this.buttons.undo.disabled = this.at === 0;
    this.buttons.redo.disabled = this.at === this.history.length - 1;
    this.buttons.remove.disabled = this.selected === null;
    this.buttons.refine.disabled = !this.view.map || !this.marks.length;
    this.buttons.save.disabled = this.readOnly || !this.view.pair;
    this.root.dataset.marks = String(this.marks.length);
    this.root.dataset.pending = String(Boolean(this.pending));
    this.view.panes.forEach((pane) => pane.redraw());
  }

  // --- changes -----------------------------------------------------------------------------------

  change(marks) {
    this.history = [...this.history.slice(0, this.at + 1), marks];
    this.at = this.history.length - 1;
    this.showPanel();
    this.refit();
  }

  move(by) {
    if (this.pending) { this.pending = null; this.showPanel(); return; }
    const next = this.at + by;
    if (next < 0 || next >= this.history.length) return;
    this.at = next;
    if (this.selected !== null && this.selected >= this.marks.length) this.selected = null;
    this.showPanel();
    this.refit();
  }

  remove() {
    if (this.selected === null) return;
    const gone = this.selected;
    this.selected = null;
    this.change(this.marks.filter((_, index) => index !== gone));
  }

  select(index) {
    this.selected = index;
    this.showPanel();
  }

  body(more = {}) {
    return {id: this.view.pair.id, marks: {fixed: this.marks.map((mark) => mark[0]), moving: this.marks.map((mark) => mark[1])}, kind: this.kind, with_matches: this.withMatches, ...more};
  }

  // Requests run one after the other, so that answers arrive in the order of the clicks.
  queue(action) {
    const id = this.view.id;
    this.root.dataset.busy = "true";
    const last = this.work = this.work.then(async () => {
      if (this.view.id !== id || !this.view.pair) return;
      try { await action(); } catch (error) { this.view.say(error.message, true); }
    }).finally(() => { if (last === this.work) this.root.dataset.busy = "false"; });
  }

  refit(show = true) {
    if (!this.view.pair) return;
    this.keepDraft();
    this.refitting += 1;
    const round = this.refitting;
    this.queue(async () => {
      if (round !== this.refitting) return;
      let answer = null, fault = "";
      try { answer = await post("fit", this.body()); } catch (error) { fault = error.message; }
      if (!this.view.pair || round !== this.refitting) return;
      this.report = answer && answer.fit;
      this.observers = answer && answer.observers;
      // A pair that is only looked at keeps its saved transform on the screen.
      if (show || this.dirty) this.view.setTransform(answer ? answer.transform : this.view.pair.transform);
      if (fault) this.view.say(fault, true); else if (show) this.view.say("");
      this.showPanel();
    });
  }

  place(side, point, snap = this.snap) {
    this.queue(async () => {
      const {map} = this.view, transform = map ? map.name : null, pending = this.pending;
      const second = pending && pending.side !== side;
      const answer = await post("propose", this.body({side: SIDES[side], point, snap, transform, partner: second ? pending.point : null}));
      if (second) {
        this.finish(side === 1 ? [pending.point, answer.point] : [answer.point, pending.point]);
        return;
      }
      this.pending = {side, point: answer.point, other: answer.other || null};
      this.selected = null;
      this.focusSide(1 - side, answer.other || undefined);
      const found = answer.snapped ? "snapped to a junction" : snap ? "no junction near this place" : "not snapped";
      this.view.say(`${found}; ${answer.other ? `a second place is proposed${answer.other_snapped ? " where the vessels agree" : ", but the vessels do not confirm it"}` : "no transform proposes the second place yet"}.`);
      this.showPanel();
    });
  }

  acceptProposal() {
    this.queue(async () => {
      const {pending} = this;
      if (!pending || !pending.other) return;
      this.finish(pending.side === 0 ? [pending.point, pending.other] : [pending.other, pending.point]);
    });
  }

  finish(mark) {
    const first = this.pending.side;
    this.pending = null;
    this.change([...this.marks, mark]);
    this.focusSide(first);
  }

  refine() {
    if (!this.view.map || !this.marks.length) return;
    this.queue(async () => {
      const answer = await post("refine", this.body({transform: this.view.map.name}));
      this.change(this.marks.map(([fixed], index) => [fixed, answer.moving[index]]));
      this.view.say(`the vessels confirm ${answer.n_found} of ${answer.moving.length} landmarks`);
    });
  }

  save() {
    if (this.readOnly || !this.view.pair) return;
    this.queue(async () => {
      const saved = JSON.stringify(this.marks), pair = await post("landmarks", this.body({version: this.version}));
      this.saved = saved;
      this.version = pair.version;
      this.keepDraft();
      this.view.take(pair);
      this.view.actions.changed(pair.id, pair);
      this.view.say(`saved: ${pair.saves_to.slice(0, this.marks.length < 3 ? -1 : undefined).join(", ")}`);
      this.root.dataset.saved = String(this.marks.length);
      this.showPanel();
    });
  }

  // --- pointer and keys --------------------------------------------------------------------------

  focusSide(side, point) {
    const start = point || (this.cross && this.cross[0] === side ? this.cross[1] : this.counterpart(side));
    this.cross = [side, start];
    this.view.panes.forEach((pane, index) => {
      pane.root.classList.toggle("active", this.active && index === side);
      pane.redraw();
    });
  }

  counterpart(side) {
    const {map, sizes} = this.view, middle = [(sizes[side][0] - 1) / 2, (sizes[side][1] - 1) / 2];
    if (!this.cross || !map) return middle;
    return side === 1 ? map.forward(this.cross[1]) : map.inverse(this.cross[1]);
  }

  nearest(side, at) {
    const pane = this.view.panes[side];
    let best = null, least = REACH;
    this.marks.forEach((mark, index) => {
      const [x, y] = pane.toScreen(mark[side]), distance = Math.hypot(x - at[0], y - at[1]);
      if (distance < least) [best, least] = [index, distance];
    });
    return best;
  }

  down(side, at) {
    const index = this.pending ? null : this.nearest(side, at);
    this.taken = index;
    if (index === null) return null;
    this.select(index);
    const pane = this.view.panes[side], before = this.marks;
    this.before = before;
    return (now) => {
      const point = pane.toImage(now);
      this.history[this.at] = before.map((mark, k) => (k === index ? (side === 0 ? [point, mark[1]] : [mark[0], point]) : mark));
      pane.redraw();
    };
  }

  up(side, point, moved, dragged, shift) {
    if (dragged) {
      const now = this.marks;
      this.history[this.at] = this.before;
      if (moved) this.change(now);
      else this.showPanel();
      return;
    }
    if (moved) return;
    this.cross = [side, point];
    this.place(side, point, this.snap && !shift);
  }

  key(event) {
    const held = event.ctrlKey || event.metaKey;
    if (held && event.key.toLowerCase() === "z") { this.move(event.shiftKey ? 1 : -1); return true; }
    if (held && event.key.toLowerCase() === "y") { this.move(1); return true; }
    if (held) return false;
    if (event.key.startsWith("Arrow")) { this.arrow(event); return true; }
    if (event.altKey) return false;
    const inPanel = event.target.closest("button, summary, a, input");
    if (inPanel && [" ", "Enter", "Tab"].includes(event.key)) return false;
    const [side, point] = this.cross, count = this.marks.length;
    const actions = {
      " ": () => this.place(side, point), Enter: () => this.acceptProposal(), Tab: () => this.focusSide(1 - side),
      z: () => this.move(-1), y: () => this.move(1), Delete: () => this.remove(), Backspace: () => this.remove(),
      "[": () => count && this.select(((this.selected ?? 0) - 1 + count) % count), "]": () => count && this.select(((this.selected ?? -1) + 1) % count),
      p: () => { this.snapBox.checked = this.snap = !this.snap; }, i: () => this.refine(), s: () => this.save(),
      b: () => { this.matchesBox.checked = this.withMatches = !this.withMatches; this.refit(); },
      t: () => { const kinds = Object.keys(KINDS); this.kindSelect.value = this.kind = kinds[(kinds.indexOf(this.kind) + 1) % kinds.length]; this.refit(); },
      Escape: () => { if (this.pending) { this.pending = null; this.showPanel(); } else this.view.toggleLandmarks(); },
    };
    if (!actions[event.key]) return false;
    actions[event.key]();
    return true;
  }

  // Arrows move the cross; with Alt the selected landmark in the pane of the cross.
  arrow(event) {
    const [side, point] = this.cross, pane = this.view.panes[side];
    const step = (event.shiftKey || event.altKey ? 1 : 12) / pane.view.scale;
    const [dx, dy] = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
    if (event.altKey && this.selected !== null) {
      this.change(this.marks.map((mark, k) => (k === this.selected ? mark.map((own, s) => (s === side ? [own[0] + dx, own[1] + dy] : own)) : mark)));
      return;
    }
    this.cross = [side, [point[0] + dx, point[1] + dy]];
    const [x, y] = pane.toScreen(this.cross[1]), [width, height] = pane.box;
    if (x < 0 || y < 0 || x > width || y > height) this.view.pan(pane, -dx * pane.view.scale, -dy * pane.view.scale);
    pane.redraw();
  }

  // --- drawing -----------------------------------------------------------------------------------

  draw(context, pane, side) {
    if (!this.active || !this.view.pair) return;
    const {map} = this.view;
    if (this.observers) this.observers[SIDES[side]].forEach((point) => square(context, pane.toScreen(point), COLOURS.second));
    this.marks.forEach((mark, index) => {
      const at = pane.toScreen(mark[side]), worst = this.report && this.report.worst === index;
      const colour = index === this.selected ? COLOURS.selected : worst ? COLOURS.worst : COLOURS.mark;
      if (map && side === 1) line(context, at, pane.toScreen(map.forward(mark[0])), colour);
      ring(context, at, colour, index === this.selected ? 8 : 6);
      context.font = "600 12px system-ui, sans-serif";
      label(context, `${worst ? "▲" : ""}${index + 1}`, at, colour);
    });
    if (this.pending) {
      const point = this.pending.side === side ? this.pending.point : this.pending.other;
      if (point) {
        context.setLineDash(this.pending.side === side ? [] : [3, 3]);
        ring(context, pane.toScreen(point), COLOURS.pending, 8);
        context.setLineDash([]);
      }
    }
    if (this.cross[0] === side) cross(context, pane.toScreen(this.cross[1]), COLOURS.selected, 14);
  }
}

function ring(context, [x, y], colour, radius) {
  for (const [width, style] of [[4, "rgba(0, 0, 0, .65)"], [2, colour]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.stroke();
  }
}

function square(context, [x, y], colour) {
  context.lineWidth = 2;
  context.strokeStyle = colour;
  context.strokeRect(x - 5, y - 5, 10, 10);
}

function line(context, from, to, colour) {
  context.lineWidth = 1.5;
  context.strokeStyle = colour;
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function label(context, text, [x, y], colour) {
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0, 0, 0, .75)";
  context.fillStyle = colour;
  context.strokeText(text, x + 9, y - 7);
  context.fillText(text, x + 9, y - 7);
}
