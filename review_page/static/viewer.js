// Panes: an image, or two in one frame, drawn from tiles of the resolution that the screen shows.
// Points are pixels (x, y) of an image, pixel centres at integers, as everywhere in the project.
import {address} from "./api.js";
import {make} from "./common.js";

const TILE = 512, SMALLEST = 256, MAX_TILES = 300;

export function levelSize([width, height], level) {
  return [Math.max(1, Math.ceil(width / 2 ** level)), Math.max(1, Math.ceil(height / 2 ** level))];
}

// The map of a transform: its lattice over the fixed image, or its matrix alone.
export class Mapping {
  constructor(transform, [width, height]) {
    Object.assign(this, transform);
    this.size = [width, height];
    this.inverseMatrix = invert(this.matrix);
    this.exact = ["affine", "similarity", "homography"].includes(this.kind);
  }

  forward([x, y]) {
    if (this.exact) return apply(this.matrix, [x, y]);
    const n = this.side - 1, u = x / (this.size[0] - 1) * n, v = y / (this.size[1] - 1) * n;
    if (u < 0 || v < 0 || u > n || v > n) return apply(this.matrix, [x, y]);
    const i = Math.min(n - 1, Math.floor(u)), j = Math.min(n - 1, Math.floor(v)), s = u - i, t = v - j;
    const at = (column, row) => this.lattice[row * this.side + column];
    return [0, 1].map((axis) => (1 - t) * ((1 - s) * at(i, j)[axis] + s * at(i + 1, j)[axis])
      + t * ((1 - s) * at(i, j + 1)[axis] + s * at(i + 1, j + 1)[axis]));
  }

  inverse(target) {
    let point = apply(this.inverseMatrix, target);
    if (this.exact) return point;
    for (let step = 0; step < 12; step += 1) {
      const back = apply(this.inverseMatrix, this.forward(point)), wanted = apply(this.inverseMatrix, target);
      point = [point[0] + wanted[0] - back[0], point[1] + wanted[1] - back[1]];
    }
    return point;
  }

  scaleAt(point) {
    const a = this.forward(point), b = this.forward([point[0] + 1, point[1]]), c = this.forward([point[0], point[1] + 1]);
    return Math.sqrt(Math.abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))) || 1;
  }
}

export function apply(H, [x, y]) {
  const w = H[2][0] * x + H[2][1] * y + H[2][2];
  return [(H[0][0] * x + H[0][1] * y + H[0][2]) / w, (H[1][0] * x + H[1][1] * y + H[1][2]) / w];
}

function invert([[a, b, c], [d, e, f], [g, h, i]]) {
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return [[e * i - f * h, c * h - b * i, b * f - c * e], [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d]].map((row) => row.map((value) => value / det));
}

// The tiles of one layer of a pair.
class Layer {
  constructor(query, size, redraw) {
    this.query = query;
    this.size = size;
    this.redraw = redraw;
    this.tiles = new Map();
    this.levels = 1 + Math.max(0, Math.ceil(Math.log2(Math.max(...size) / SMALLEST)));
    this.failed = false;
  }

  tile(level, x, y) {
    const key = `${level}/${x}/${y}`;
    let image = this.tiles.get(key);
    if (image) {
      this.tiles.delete(key);
    } else {
      image = new Image();
      image.decoding = "async";
      image.onload = () => { image.ready = true; this.redraw(); };
      image.onerror = () => { image.ready = true; image.broken = true; this.failed = true; this.redraw(); };
      image.src = address("tile", {...this.query, level, x, y});
    }
    this.tiles.set(key, image);
    while (this.tiles.size > MAX_TILES) this.tiles.delete(this.tiles.keys().next().value);
    return image;
  }

  // Draws the visible part; returns whether every tile of the wanted level was there.
  draw(context, view, width, height, ratio) {
    const wanted = Math.min(this.levels - 1, Math.max(0, Math.floor(Math.log2(1 / (view.scale * ratio)) + 0.25)));
    const coarse = this.levels - 1;
    context.imageSmoothingEnabled = view.scale < 3;
    context.imageSmoothingQuality = "medium";
    let complete = true;
    for (const level of coarse === wanted ? [wanted] : [coarse, wanted]) {
      const done = this.drawLevel(context, level, view, width, height);
      if (level === wanted) complete = done;
    }
    return complete;
  }

  drawLevel(context, level, view, width, height) {
    const [columns, rows] = levelSize(this.size, level);
    const stepX = this.size[0] / columns, stepY = this.size[1] / rows;
    const toScreenX = (u) => (u * stepX - 0.5 - view.x) * view.scale + width / 2;
    const toScreenY = (v) => (v * stepY - 0.5 - view.y) * view.scale + height / 2;
    const first = [((0 - width / 2) / view.scale + view.x + 0.5) / stepX, ((0 - height / 2) / view.scale + view.y + 0.5) / stepY];
    const last = [((width / 2) / view.scale + view.x + 0.5) / stepX, ((height / 2) / view.scale + view.y + 0.5) / stepY];
    let complete = true;
    for (let y = Math.max(0, Math.floor(first[1] / TILE)); y * TILE < Math.min(rows, last[1]); y += 1) {
      for (let x = Math.max(0, Math.floor(first[0] / TILE)); x * TILE < Math.min(columns, last[0]); x += 1) {
        const image = this.tile(level, x, y);
        if (!image.ready) { complete = false; continue; }
        if (image.broken) continue;
        const left = toScreenX(x * TILE), top = toScreenY(y * TILE);
        const right = toScreenX(Math.min(columns, (x + 1) * TILE)), bottom = toScreenY(Math.min(rows, (y + 1) * TILE));
        context.drawImage(image, left, top, right - left, bottom - top);
      }
    }
    return complete;
  }
}

// One pane: up to two layers in one frame, marks above them, and the pointer.
export class Pane {
  constructor(handlers) {
    this.handlers = handlers;
    this.view = {x: 0, y: 0, scale: 1};
    this.layers = [null, null];
    this.boxes = [0, 1].map(() => {
      const canvas = make("canvas"), tint = make("div", {class: "tint", hidden: true});
      return {box: make("div", {class: "layer"}, canvas, tint), canvas, tint};
    });
    this.marks = make("canvas", {class: "marks"});
    this.handle = make("div", {class: "handle", hidden: true});
    this.tags = [make("span", {class: "tag"}), make("span", {class: "tag right"})];
    this.root = make("div", {class: "pane", tabIndex: -1}, ...this.boxes.map(({box}) => box), this.marks, this.handle, ...this.tags);
    this.drawMarks = () => {};
    this.pending = false;
    this.pointers = new Map();
    new ResizeObserver(() => { this.handlers.resized(this); this.redraw(); }).observe(this.root);
    this.listen();
  }

  setLayers(queries, size) {
    const same = this.layers[0] && String(this.size) === String(size);
    this.size = size;
    this.layers = queries.map((query, index) => {
      if (!query) return null;
      const old = this.layers[index];
      return same && old && JSON.stringify(old.query) === JSON.stringify(query) ? old : new Layer(query, size, () => this.redraw());
    });
    this.boxes[1].box.hidden = !this.layers[1];
    this.redraw();
  }

  get box() { return [this.root.clientWidth, this.root.clientHeight]; }

  fitScale() {
    const [width, height] = this.box;
    return Math.min(width / this.size[0], height / this.size[1]) || 1;
  }

  toImage([px, py]) {
    const [width, height] = this.box;
    return [(px - width / 2) / this.view.scale + this.view.x, (py - height / 2) / this.view.scale + this.view.y];
  }

  toScreen([x, y]) {
    const [width, height] = this.box;
    return [(x - this.view.x) * this.view.scale + width / 2, (y - this.view.y) * this.view.scale + height / 2];
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  draw() {
    const [width, height] = this.box, ratio = window.devicePixelRatio || 1;
    if (!width || !height || !this.size) return;
    let complete = true;
    this.boxes.forEach(({canvas}, index) => {
      const context = prepare(canvas, width, height, ratio);
      if (this.layers[index]) complete = this.layers[index].draw(context, this.view, width, height, ratio) && complete;
    });
    this.drawMarks(prepare(this.marks, width, height, ratio));
    this.root.dataset.ready = String(complete);
    if (complete) this.handlers.complete(this);
  }

  listen() {
    const place = (event) => {
      const box = this.root.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.root.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      this.root.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.moved = this.pointers.size > 1;
      this.start = place(event);
      this.dragging = this.pointers.size === 1 ? this.handlers.down(this, this.start, event) : null;
      event.preventDefault();
      this.root.focus({preventScroll: true});
    });
    this.root.addEventListener("pointermove", (event) => {
      const now = place(event), before = this.pointers.get(event.pointerId);
      this.handlers.cursor(this, this.toImage(now));
      if (!before) return;
      if (Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) > 4) this.moved = true;
      if (this.pointers.size === 2) this.pinch(event.pointerId, now);
      else if (this.dragging) this.dragging(now);
      else if (this.moved) this.handlers.pan(this, now[0] - before[0], now[1] - before[1]);
      this.pointers.set(event.pointerId, now);
    });
    const up = (event) => {
      if (!this.pointers.delete(event.pointerId)) return;
      if (event.type === "pointerup" && !this.pointers.size) this.handlers.up(this, place(event), event, this.moved, Boolean(this.dragging));
      if (!this.pointers.size) this.dragging = null;
    };
    this.root.addEventListener("pointerup", up);
    this.root.addEventListener("pointercancel", up);
    this.root.addEventListener("pointerleave", () => this.handlers.cursor(this, null));
    this.root.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.handlers.zoom(this, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), place(event));
    }, {passive: false});
  }

  pinch(id, now) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, value]) => value);
    const before = this.pointers.get(id);
    const factor = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
    this.handlers.zoom(this, factor, [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
    this.handlers.pan(this, (now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }
}

function prepare(canvas, width, height, ratio) {
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
