// One pair: two linked panes or one with both images, and what is drawn above them.
import {address, get, post, warn} from "./api.js";
import {badge, confidenceText, make, statusBadge} from "./common.js";
import {Landmarks} from "./landmarks.js";
import {Mapping, Pane} from "./viewer.js";

const VIEWS = {
  side: "side by side", slider: "slider", flicker: "flicker", checkerboard: "checkerboard", overlay: "magenta-green", difference: "difference",
};
const INLIER = "#56B4E9", OUTLIER = "#E69F00", CURSOR = "#ffffff";
// What , and . change in each view: name, least, largest, step, start.
const AMOUNTS = {
  slider: ["left part", 0, 100, 2, 50], flicker: ["changes per second", 0.5, 10, 0.5, 2], checkerboard: ["square, px of the screen", 16, 320, 8, 96],
};

export class PairView {
  constructor(state, actions) {
    this.state = state;
    this.actions = actions;
    this.status = document.getElementById("pair-status");
    const handlers = {
      cursor: (pane, point) => this.cursorAt(pane, point), pan: (pane, dx, dy) => this.pan(pane, dx, dy),
      zoom: (pane, factor, at) => this.zoom(pane, factor, at), down: (pane, at, event) => this.down(pane, at, event),
      up: (pane, at, event, moved, dragged) => this.up(pane, at, event, moved, dragged), complete: () => this.complete(),
      resized: () => this.resized(),
    };
    this.panes = [new Pane(handlers), new Pane(handlers)];
    this.panes.forEach((pane, index) => { pane.drawMarks = (context) => this.drawMarks(context, pane, index); pane.root.id = `pane-${index}`; });
    document.getElementById("panes").append(...this.panes.map((pane) => pane.root));
    this.landmarks = new Landmarks(this);
    this.view = "side";
    this.flags = {matches: false, displacement: false, green: false, own: false};
    this.amounts = Object.fromEntries(Object.entries(AMOUNTS).map(([name, values]) => [name, values[4]]));
    this.pair = null;
    this.makeTools();
  }

  makeTools() {
    const views = document.getElementById("views");
    this.viewButtons = Object.entries(VIEWS).map(([name, text], index) => {
      const button = make("button", {type: "button", "data-view": name}, `${text} `, make("kbd", {}, String(index + 1)));
      button.addEventListener("click", () => this.setView(name));
      return button;
    });
    this.markButton = make("button", {type: "button", id: "toggle-landmarks"}, "landmarks ", make("kbd", {}, "l"));
    this.markButton.addEventListener("click", () => this.toggleLandmarks());
    this.flagButtons = [["matches", "matches", "m"], ["displacement", "displacement", "d"], ["green", "green channel", "g"], ["own", "moving frame", "w"]].map(([name, text, key]) => {
      const button = make("button", {type: "button", "data-flag": name}, `${text} `, make("kbd", {}, key));
      button.addEventListener("click", () => this.toggle(name));
      return button;
    });
    this.registerButton = make("button", {type: "button", id: "register"}, "register now ", make("kbd", {}, "e"));
    this.registerButton.addEventListener("click", () => this.register());
    views.append(...this.viewButtons, this.markButton, ...this.flagButtons, this.registerButton);

    this.amount = make("input", {type: "range", id: "amount"});
    this.amountLabel = make("label", {}, make("span"), this.amount);
    this.amount.addEventListener("input", () => { this.amounts[this.view] = Number(this.amount.value); this.arrange(); });
    this.tones = ["fixed", "moving"].map((name) => {
      const sliders = ["brightness", "contrast"].map((kind) => {
        const input = make("input", {type: "range", min: 0.2, max: 3, step: 0.05, value: 1, "aria-label": `${kind} of the ${name} image`, "data-tone": `${name}-${kind}`});
        input.addEventListener("input", () => this.arrange());
        return input;
      });
      return {name, sliders, label: make("label", {class: "tone"}, `${name}: ☀`, sliders[0], "◐", sliders[1])};
    });
    const reset = make("button", {type: "button", class: "tone"}, "reset tones");
    reset.addEventListener("click", () => { this.tones.forEach(({sliders}) => sliders.forEach((input) => { input.value = 1; })); this.arrange(); });
    this.flickerLinks = ["gif", "webp"].map((kind) => make("a", {class: "export-flicker", download: ""}, `flicker.${kind}`));
    // On a narrow screen the tones are behind a button, so that both images are seen.
    const settings = document.getElementById("settings"), show = make("button", {type: "button", class: "show-tones", "aria-expanded": "false"}, "tones");
    show.addEventListener("click", () => { show.setAttribute("aria-expanded", String(settings.classList.toggle("open"))); });
    settings.append(this.amountLabel, show, ...this.tones.map(({label}) => label), reset, ...this.flickerLinks);
  }

  async open(id) {
    this.close();
    this.id = id;
    document.getElementById("title").textContent = id;
    document.getElementById("pair").removeAttribute("data-ready");
    this.say("reading the images …");
    const asked = id, started = performance.now();
    try {
      const pair = await get("pair", {id});
      if (this.id !== asked) return;
      this.started = started;
      this.take(pair);
      this.fit();
      this.say(pair.reason || "");
      this.landmarks.load(pair);
    } catch (error) {
      if (this.id === asked) this.say(error.message, true);
    }
  }

  take(pair) {
    this.pair = pair;
    this.sizes = [pair.fixed, pair.moving].map(({width, height}) => [width, height]);
    this.setTransform(pair.transform, false);
    document.getElementById("facts").replaceChildren(statusBadge(pair), ` ${confidenceText(pair)} ${pair.transform ? pair.transform.kind : ""} · ${this.sizes.map((size) => size.join(" × ")).join(" and ")} px`);
    this.flickerLinks.forEach((link, index) => { link.href = address(`export/flicker.${["gif", "webp"][index]}`, {id: pair.id}); link.hidden = !pair.transform; });
    this.arrange();
  }

  setTransform(transform, arrange = true) {
    this.map = transform ? new Mapping(transform, this.sizes[0]) : null;
    if (arrange) this.arrange();
  }

  close() {
    clearInterval(this.timer);
    this.pair = this.map = this.id = this.cursor = null;
    this.landmarks.clear();
  }

  mayLeave() { return this.landmarks.mayLeave(); }

  say(text, bad = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bad", bad);
  }

  complete() {
    if (!this.pair || !this.panes.every((pane) => pane.root.hidden || pane.root.dataset.ready === "true")) return;
    const root = document.getElementById("pair");
    if (root.dataset.ready === this.id) return;
    root.dataset.ready = this.id;
    root.dataset.milliseconds = String(Math.round(performance.now() - this.started));
  }

  // The frame of the right pane: that of the moving image, or the fixed one.
  get ownFrame() { return !this.map || this.landmarks.active || this.flags.own; }
  get sideBySide() { return this.view === "side" || !this.map || this.landmarks.active; }

  arrange() {
    if (!this.pair) return;
    const {pair} = this, colour = (view) => (this.flags.green || ["overlay", "difference"].includes(view) ? "green" : "color");
    const view = this.sideBySide ? "side" : this.view, c = colour(view);
    const fixed = {id: pair.id, layer: "fixed", v: pair.fixed.version, c};
    const own = {id: pair.id, layer: "moving", v: pair.moving.version, c};
    const registered = this.map && {id: pair.id, layer: "registered", v: pair.moving.version, t: this.map.name, c};
    const [left, right] = this.panes;
    left.setLayers([fixed, view === "side" ? null : registered], this.sizes[0]);
    right.root.hidden = view !== "side";
    left.root.classList.toggle("alone", view !== "side");
    if (view === "side") right.setLayers([this.ownFrame ? own : registered, null], this.sizes[this.ownFrame ? 1 : 0]);
    this.blend(left, view);
    this.filter(left.boxes[0].canvas, 0);
    this.filter(left.boxes[1].canvas, 1);
    this.filter(right.boxes[0].canvas, 1);
    left.tags[0].textContent = view === "flicker" ? "" : `fixed · ${pair.fixed.name}`;
    left.tags[1].textContent = view === "side" || view === "flicker" ? "" : view === "overlay" ? "magenta: fixed, green: moving" : `registered · ${pair.moving.name}`;
    right.tags[0].textContent = `${this.ownFrame ? "moving" : "registered"} · ${pair.moving.name}`;
    this.viewButtons.forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.view === view && !this.landmarks.active));
      button.disabled = !this.map && button.dataset.view !== "side";
    });
    this.flagButtons.forEach((button) => button.setAttribute("aria-pressed", String(this.flags[button.dataset.flag])));
    this.markButton.setAttribute("aria-pressed", String(this.landmarks.active));
    const amount = AMOUNTS[view];
    this.amountLabel.hidden = !amount;
    if (amount) {
      Object.assign(this.amount, {min: amount[1], max: amount[2], step: amount[3] / 2});
      this.amount.value = this.amounts[view];
      this.amountLabel.firstChild.textContent = amount[0];
    }
    this.link(left);
  }

  filter(canvas, index) {
    const [brightness, contrast] = this.tones[index].sliders.map((input) => Number(input.value));
    canvas.style.filter = brightness === 1 && contrast === 1 ? "" : `brightness(${brightness}) contrast(${contrast})`;
  }

  blend(pane, view) {
    const [{box: under, tint: underTint}, {box: over, tint: overTint}] = pane.boxes, value = this.amounts[view];
    clearInterval(this.timer);
    over.style.clipPath = view === "slider" ? `inset(0 0 0 ${value}%)` : "none";
    const mask = view === "checkerboard" ? "conic-gradient(#000 25%, transparent 0 50%, #000 0 75%, transparent 0)" : "none";
    over.style.maskImage = over.style.webkitMaskImage = mask;
    over.style.maskSize = over.style.webkitMaskSize = `${2 * value}px ${2 * value}px`;
    over.style.visibility = "visible";
    over.style.mixBlendMode = {overlay: "screen", difference: "difference"}[view] || "normal";
    under.style.mixBlendMode = "normal";
    underTint.hidden = overTint.hidden = view !== "overlay";
    underTint.style.background = "#ff00ff";
    overTint.style.background = "#00ff00";
    pane.handle.hidden = view !== "slider";
    pane.handle.style.left = `${value}%`;
    if (view === "flicker") {
      const show = (visible) => {
        over.style.visibility = visible ? "visible" : "hidden";
        pane.tags[0].textContent = visible ? `registered · ${this.pair.moving.name}` : `fixed · ${this.pair.fixed.name}`;
      };
      this.flick = () => show(over.style.visibility === "hidden");
      queueMicrotask(() => this.pair && this.view === "flicker" && show(true));
      if (!this.stopped) this.timer = setInterval(this.flick, 1000 / value);
    }
  }

  setView(name) {
    if (!this.pair || (!this.map && name !== "side")) return;
    if (this.landmarks.active) this.landmarks.setActive(false);
    this.view = name;
    this.stopped = false;
    this.viewButtons.find((button) => button.dataset.view === name).scrollIntoView({block: "nearest", inline: "nearest"});
    this.arrange();
    this.resized();
  }

  toggle(name) {
    if (!this.pair) return;
    this.flags[name] = !this.flags[name];
    if (name === "matches" && this.flags.matches && !this.pair.matches) this.say("This pair has no saved matches (register.py --review or --export numpy keeps them); e registers it now.");
    if (name === "displacement" && this.flags.displacement && (!this.map || this.map.exact)) this.say("The transform of this pair is a matrix; there is no displacement beyond it.");
    this.arrange();
  }

  toggleLandmarks() {
    if (!this.pair) return;
    this.landmarks.setActive(!this.landmarks.active);
    this.arrange();
    this.resized();
  }

  async register() {
    if (!this.pair) return;
    const asked = this.id;
    this.say("registering …");
    try {
      const pair = await post("register", {id: asked});
      if (this.id !== asked) return;
      this.take(pair);
      this.say(`registered now: ${pair.status_now}${pair.reason_now ? ` (${pair.reason_now})` : ""}; ${pair.matches.fixed.length} matches. Nothing was saved.`);
      this.landmarks.refit();
    } catch (error) {
      this.say(error.message, true);
    }
  }

  // --- the linked view ---------------------------------------------------------------------------

  fit() {
    const [left] = this.panes;
    left.view = {x: (this.sizes[0][0] - 1) / 2, y: (this.sizes[0][1] - 1) / 2, scale: left.fitScale()};
    const right = this.panes[1];
    if (!this.map && right.size) right.view = {x: (this.sizes[1][0] - 1) / 2, y: (this.sizes[1][1] - 1) / 2, scale: right.fitScale()};
    this.fitted = true;
    this.link(left);
  }

  resized() {
    if (this.pair && this.fitted) this.fit();
  }

  // Moves the other pane to the place that corresponds to this one. Without a transform the panes move alone.
  link(pane) {
    const [left, right] = this.panes, other = pane === left ? right : left;
    if (!right.root.hidden) {
      if (!this.ownFrame) Object.assign(other.view, pane.view);
      else if (this.map && pane === left) {
        const {x, y, scale} = left.view, [mx, my] = this.map.forward([x, y]);
        right.view = {x: mx, y: my, scale: scale / this.map.scaleAt([x, y])};
      } else if (this.map) {
        const [fx, fy] = this.map.inverse([right.view.x, right.view.y]);
        left.view = {x: fx, y: fy, scale: right.view.scale * this.map.scaleAt([fx, fy])};
      }
      other.redraw();
    }
    pane.redraw();
  }

  pan(pane, dx, dy) {
    pane.view.x -= dx / pane.view.scale;
    pane.view.y -= dy / pane.view.scale;
    this.fitted = false;
    this.link(pane);
  }

  zoom(pane, factor, at = pane.box.map((side) => side / 2)) {
    const before = pane.toImage(at), least = pane.fitScale() / 4;
    pane.view.scale = Math.min(40, Math.max(least, pane.view.scale * factor));
    const after = pane.toImage(at);
    pane.view.x += before[0] - after[0];
    pane.view.y += before[1] - after[1];
    this.fitted = false;
    this.link(pane);
  }

  counterpart(pane, point) {
    if (!this.ownFrame) return point;
    if (!this.map) return null;
    return pane === this.panes[0] ? this.map.forward(point) : this.map.inverse(point);
  }

  cursorAt(pane, point) {
    this.cursor = point && {pane, point, other: this.counterpart(pane, point)};
    this.panes.forEach((each) => each.redraw());
  }

  down(pane, at) {
    if (this.landmarks.active) return this.landmarks.down(this.panes.indexOf(pane), at);
    if (this.view !== "slider" || this.sideBySide) return null;
    const slide = ([x]) => { this.amounts.slider = Math.min(100, Math.max(0, 100 * x / pane.box[0])); this.arrange(); };
    slide(at);
    return slide;
  }

  up(pane, at, event, moved, dragged) {
    if (this.landmarks.active) this.landmarks.up(this.panes.indexOf(pane), pane.toImage(at), moved, dragged, event.shiftKey);
  }

  // --- marks -------------------------------------------------------------------------------------

  drawMarks(context, pane, index) {
    if (!this.pair) return;
    if (this.flags.matches && this.pair.matches) this.drawMatches(context, pane, index);
    if (this.flags.displacement && this.map && !this.map.exact && index === 0) this.drawDisplacement(context, pane);
    this.landmarks.draw(context, pane, index);
    if (this.cursor) {
      const point = this.cursor.pane === pane ? this.cursor.point : this.cursor.other;
      if (point && this.cursor.pane !== pane) cross(context, pane.toScreen(point), CURSOR, 11);
    }
  }

  drawMatches(context, pane, index) {
    const {fixed, moving, inliers} = this.pair.matches;
    context.lineWidth = 1.5;
    fixed.forEach((point, k) => {
      const registered = this.map ? this.map.inverse(moving[k]) : null;
      const shown = index === 0 ? point : this.ownFrame ? moving[k] : registered;
      if (!shown) return;
      const [x, y] = pane.toScreen(shown);
      context.strokeStyle = inliers[k] ? INLIER : OUTLIER;
      context.beginPath();
      // Inliers are circles, outliers crosses: the colour is not needed.
      if (inliers[k]) context.arc(x, y, 4, 0, 7);
      else { context.moveTo(x - 4, y - 4); context.lineTo(x + 4, y + 4); context.moveTo(x + 4, y - 4); context.lineTo(x - 4, y + 4); }
      if (index === 0 && registered && inliers[k]) { context.moveTo(x, y); context.lineTo(...pane.toScreen(registered)); }
      context.stroke();
    });
  }

  drawDisplacement(context, pane) {
    const {lattice, side, size, inverseMatrix} = this.map, arrows = [];
    for (let row = 0; row < side; row += 2) {
      for (let column = 0; column < side; column += 2) {
        const from = [column / (side - 1) * (size[0] - 1), row / (side - 1) * (size[1] - 1)];
        const [x, y, w] = inverseMatrix.map((r) => r[0] * lattice[row * side + column][0] + r[1] * lattice[row * side + column][1] + r[2]);
        arrows.push([from, [x / w - from[0], y / w - from[1]]]);
      }
    }
    const largest = Math.max(1e-6, ...arrows.map(([, [dx, dy]]) => Math.hypot(dx, dy)));
    const gain = 1.6 * size[0] / (side - 1) * 2 / largest;
    context.strokeStyle = "#F0E442";
    context.lineWidth = 1.5;
    for (const [from, [dx, dy]] of arrows) {
      const [x0, y0] = pane.toScreen(from), [x1, y1] = pane.toScreen([from[0] + gain * dx, from[1] + gain * dy]);
      const angle = Math.atan2(y1 - y0, x1 - x0);
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      for (const turn of [2.6, -2.6]) { context.moveTo(x1, y1); context.lineTo(x1 + 5 * Math.cos(angle + turn), y1 + 5 * Math.sin(angle + turn)); }
      context.stroke();
    }
    context.fillStyle = "#F0E442";
    context.font = "13px system-ui, sans-serif";
    context.fillText(`displacement beyond the matrix: at most ${largest.toFixed(1)} px, drawn ${gain.toFixed(0)} times longer`, 10, pane.box[1] - 12);
  }

  // --- keys --------------------------------------------------------------------------------------

  key(event) {
    if (!this.pair) return false;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return false;
    if (this.landmarks.active && this.landmarks.key(event)) return true;
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const onButton = event.target.closest("button, summary, a");
    if (onButton && [" ", "Enter"].includes(event.key)) return false;
    const [pane] = this.panes, names = Object.keys(VIEWS), step = 60;
    const nudge = (sign) => {
      const amount = AMOUNTS[this.view];
      if (!amount || this.sideBySide) return;
      this.amounts[this.view] = Math.min(amount[2], Math.max(amount[1], this.amounts[this.view] + sign * amount[3]));
      this.arrange();
    };
    const actions = {
      "+": () => this.zoom(pane, 1.4), "=": () => this.zoom(pane, 1.4), "-": () => this.zoom(pane, 1 / 1.4), f: () => this.fit(),
      x: () => this.zoom(pane, 1 / pane.view.scale), ",": () => nudge(-1), ".": () => nudge(1), l: () => this.toggleLandmarks(),
      m: () => this.toggle("matches"), d: () => this.toggle("displacement"), g: () => this.toggle("green"), w: () => this.toggle("own"),
      e: () => this.register(),
      " ": () => { if (this.view === "flicker") { this.stopped = !this.stopped; clearInterval(this.timer); if (this.stopped) this.flick(); else this.arrange(); } },
      ArrowLeft: () => this.pan(pane, step, 0), ArrowRight: () => this.pan(pane, -step, 0), ArrowUp: () => this.pan(pane, 0, step), ArrowDown: () => this.pan(pane, 0, -step),
    };
    names.forEach((name, index) => { actions[index + 1] = () => this.setView(name); });
    if (!actions[event.key]) return false;
    actions[event.key]();
    return true;
  }
}

export function cross(context, [x, y], colour, radius) {
  for (const [width, style] of [[3.5, "rgba(0, 0, 0, .7)"], [1.5, colour]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 3 * dx, y + 3 * dy);
      context.lineTo(x + radius * dx, y + radius * dy);
    }
    context.stroke();
  }
}
