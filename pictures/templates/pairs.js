"use strict";
(() => {
  const images = readJson("images"), cases = readJson("cases");
  if (!cases.length) return;
  const root = document.getElementById("stage"), stage = makeStage(root);
  const select = document.getElementById("case"), caption = document.getElementById("caption");
  fillSelect(select, cases.map((item, index) => [index, item.id]), 0);

  function show() {
    const item = cases[select.value];
    stage.setView(checkedView(root));
    stage.show({under: images[item.fixed], underName: "fixed", over: images[item.registered], overName: "registered"});
    caption.textContent = `${item.id} — ${item.text}`;
  }
  function step(by) {
    const next = Number(select.value) + by;
    if (next < 0 || next >= cases.length) return;
    select.value = next;
    show();
  }
  function choose(view) {
    root.querySelector(`.views input[value=${view}]`).checked = true;
    show();
  }
  select.addEventListener("change", show);
  root.querySelectorAll(".views input").forEach((input) => input.addEventListener("change", show));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  for (const picture of document.querySelectorAll(".thumbnails img[data-case]")) {
    if (!picture.dataset.case) continue;
    picture.style.cursor = "pointer";
    picture.addEventListener("click", () => { select.value = picture.dataset.case; show(); root.scrollIntoView(); });
  }
  listenForKeys({
    n: () => step(1), p: () => step(-1), j: () => step(1), k: () => step(-1),
    1: () => choose("slider"), 2: () => choose("flicker"), 3: () => choose("checkerboard"),
    " ": () => stage.toggle(), ArrowLeft: () => stage.nudge(-2), ArrowRight: () => stage.nudge(2),
  });
  show();
})();
