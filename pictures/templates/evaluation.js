"use strict";
(() => {
  const images = readJson("images"), cases = readJson("cases"), methods = readJson("methods");
  if (!cases.length) return;
  const root = document.getElementById("stage"), stage = makeStage(root);
  const caseSelect = document.getElementById("case"), methodSelect = document.getElementById("method");
  const before = document.getElementById("before"), caption = document.getElementById("caption");
  let order = [];

  const errorOf = (item) => {
    const result = item.methods[methodSelect.value];
    return !result ? -1 : result.error === null ? Infinity : result.error;
  };

  function sortCases(keep) {
    order = cases.map((_, index) => index).sort((a, b) => {
      const [first, second] = [errorOf(cases[a]), errorOf(cases[b])];
      return first === second ? a - b : second - first;
    });
    fillSelect(caseSelect, order.map((index) => {
      const item = cases[index], error = errorOf(item);
      const text = error < 0 ? "not run" : error === Infinity ? "failed" : `${error.toFixed(1)} px`;
      return [index, `${text} · ${item.id} · ${item.stress}`];
    }), keep ?? order[0]);
  }

  function show() {
    const item = cases[caseSelect.value], result = item.methods[methodSelect.value] || {caption: "not run"};
    let view = checkedView(root);
    const noMatches = view === "matches" && !result.matches;
    if (noMatches) view = "slider";
    stage.setView(view);
    const registered = before.checked ? null : result.registered;
    stage.show({
      under: images[item.fixed], underName: "fixed",
      over: images[registered || item.before], overName: registered ? `${methodSelect.value}` : "not registered",
      alone: images[result.matches], aloneName: `matches of ${methodSelect.value}`,
    });
    caption.textContent = `${item.set} · ${item.id} · ${item.stress} — ${methodSelect.value}: ${result.caption}`
      + (noMatches ? " (this method has no matches to show)" : "");
    caption.classList.toggle("bad", !result.registered);
  }

  function step(by) {
    const next = order.indexOf(Number(caseSelect.value)) + by;
    if (next < 0 || next >= order.length) return;
    caseSelect.value = order[next];
    show();
  }

  function choose(view) {
    root.querySelector(`.views input[value=${view}]`).checked = true;
    show();
  }

  const narrow = matchMedia("(max-width: 760px)");
  const fit = () => { caseSelect.size = narrow.matches ? 1 : Math.min(18, Math.max(2, cases.length)); };
  narrow.addEventListener("change", fit);
  fillSelect(methodSelect, methods.map((name) => [name, name]), methods[0]);
  sortCases();
  fit();
  caseSelect.addEventListener("change", show);
  methodSelect.addEventListener("change", () => { sortCases(caseSelect.value); show(); });
  before.addEventListener("change", show);
  root.querySelectorAll(".views input").forEach((input) => input.addEventListener("change", show));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  listenForKeys({
    n: () => step(1), p: () => step(-1), j: () => step(1), k: () => step(-1),
    1: () => choose("slider"), 2: () => choose("flicker"), 3: () => choose("checkerboard"), 4: () => choose("matches"),
    m: () => {
      methodSelect.value = methods[(methods.indexOf(methodSelect.value) + 1) % methods.length];
      methodSelect.dispatchEvent(new Event("change"));
    },
    b: () => { before.checked = !before.checked; show(); },
    " ": () => stage.toggle(), ArrowLeft: () => stage.nudge(-2), ArrowRight: () => stage.nudge(2),
  });
  show();
})();
