// The batch at a glance: a grid of thumbnails that is judged by keyboard.
import {VERDICTS, STATUSES, badge, confidenceText, make, statusBadge, statusOf} from "./common.js";
import {address} from "./api.js";

const FILTERS = {
  all: ["all", () => true],
  open: ["not judged", (pair, verdict) => !verdict[0]],
  accept: ["accepted", (pair, verdict) => verdict[0] === "accept"],
  reject: ["rejected", (pair, verdict) => verdict[0] === "reject"],
  unsure: ["unsure", (pair, verdict) => verdict[0] === "unsure"],
  ok: ["registered", (pair) => pair.status === "ok"],
  failed: ["failed", (pair) => pair.status === "failed"],
  manual: ["by landmarks", (pair) => pair.source === "manual"],
};
const sureness = (pair) => (pair.source === "manual" ? 2 : pair.status === "ok" ? pair.confidence ?? 1 : -1);
const compareIds = new Intl.Collator("en", {numeric: true}).compare;
const ORDERS = {
  unsure: ["least sure first", (a, b) => sureness(a) - sureness(b)],
  sure: ["surest first", (a, b) => sureness(b) - sureness(a)],
  id: ["id", (a, b) => compareIds(a.id, b.id)],
  kind: ["kind of transform", (a, b) => compareIds(a.kind, b.kind)],
};

export class List {
  constructor(state, actions) {
    this.state = state;
    this.actions = actions;
    this.root = document.getElementById("cards");
    this.filter = document.getElementById("filter");
    this.order = document.getElementById("order");
    this.search = document.getElementById("search");
    this.cards = new Map();
    this.shown = [];
    this.selected = null;
    for (const [select, options] of [[this.filter, FILTERS], [this.order, ORDERS]]) {
      select.append(...Object.entries(options).map(([value, [text]]) => new Option(text, value)));
      select.addEventListener("change", () => this.arrange());
    }
    this.search.addEventListener("input", () => this.arrange());
    this.root.addEventListener("click", (event) => {
      const card = event.target.closest("article");
      if (!card) return;
      this.select(card.dataset.id);
      if (event.target.closest("img, .placeholder")) actions.open(card.dataset.id);
    });
  }

  fill() {
    this.cards.clear();
    for (const pair of this.state.pairs.values()) this.cards.set(pair.id, this.makeCard(pair));
    this.arrange();
  }

  makeCard(pair) {
    const picture = make("img", {loading: "lazy", decoding: "async", width: 256, height: 200, alt: `checkerboard of ${pair.id}`});
    if (pair.openable) picture.src = address("thumbnail", {id: pair.id});
    const card = make("article", {tabIndex: -1, "data-id": pair.id},
      pair.openable ? picture : make("div", {class: "placeholder"}, "no picture"),
      make("div", {class: "id", title: pair.id}, pair.id),
      make("div", {class: "facts"}),
      make("div", {class: "verdict"}));
    picture.addEventListener("error", () => picture.replaceWith(make("div", {class: "placeholder"}, "no picture")));
    this.describe(card, pair);
    return card;
  }

  describe(card, pair) {
    const facts = [statusBadge(pair), make("span", {class: "number", title: "confidence"}, confidenceText(pair)), make("span", {}, pair.kind)];
    if (pair.status === "failed" && pair.reason) facts.push(make("span", {class: "reason", title: pair.reason}, pair.reason));
    if (pair.landmarks) facts.push(make("span", {title: "has landmarks"}, "⌖ landmarks"));
    card.querySelector(".facts").replaceChildren(...facts);
    this.showVerdict(card, pair.id);
  }

  showVerdict(card, id) {
    const [verdict, note] = this.state.verdictOf(id);
    const box = card.querySelector(".verdict");
    box.replaceChildren();
    if (verdict) box.append(badge(`verdict-${verdict}`, VERDICTS[verdict]));
    if (this.state.isWaiting(id)) box.append(make("span", {class: "waiting"}, " … not saved yet"));
    if (note) box.append(make("span", {class: "note-text"}, ` ${note}`));
    card.dataset.verdict = verdict;
  }

  update(id) {
    const card = this.cards.get(id);
    if (card) this.describe(card, this.state.pairs.get(id));
  }

  refreshThumbnail(id) {
    const old = this.cards.get(id);
    if (!old) return;
    const card = this.makeCard(this.state.pairs.get(id));
    const image = card.querySelector("img");
    if (image) image.src = address("thumbnail", {id, fresh: Date.now()});
    old.replaceWith(card);
    this.cards.set(id, card);
    if (this.selected === id) this.select(id);
  }

  arrange() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = FILTERS[this.filter.value][1];
    const found = [...this.state.pairs.values()].filter((pair) => {
      const verdict = this.state.verdictOf(pair.id);
      if (!passes(pair, verdict)) return false;
      const text = [pair.id, pair.reason, pair.kind, STATUSES[statusOf(pair)].word, verdict[1]].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    // The sort is stable: pairs that compare equal stay in the order of the table.
    found.sort(ORDERS[this.order.value][1]);
    this.shown = found.map((pair) => pair.id);
    this.root.replaceChildren(...this.shown.map((id) => this.cards.get(id)));
    if (!this.shown.length) this.root.append(make("p", {class: "soft"}, "No pair is shown with this filter."));
    this.select(this.shown.includes(this.selected) ? this.selected : this.shown[0] ?? null, false);
  }

  select(id, scroll = true) {
    for (const card of this.root.querySelectorAll("[aria-current]")) card.removeAttribute("aria-current");
    this.selected = id;
    const card = this.cards.get(id);
    if (card) {
      card.setAttribute("aria-current", "true");
      if (scroll) card.scrollIntoView({block: "nearest"});
    }
    this.actions.selected(id);
  }

  step(by) {
    if (!this.shown.length) return null;
    const index = Math.max(0, this.shown.indexOf(this.selected));
    this.select(this.shown[Math.min(this.shown.length - 1, Math.max(0, index + by))]);
    return this.selected;
  }

  columns() {
    const first = this.root.querySelector("article");
    return first ? Math.max(1, Math.round(this.root.clientWidth / first.getBoundingClientRect().width)) : 1;
  }
}
