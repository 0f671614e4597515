"use strict";
(() => {
  const images = readJson("images"), samples = readJson("samples-data"), kinds = readJson("kinds-data");
  if (!samples.length) return;
  const root = document.getElementById("stage"), stage = makeStage(root), strip = document.getElementById("strip");
  const [sampleSelect, kindSelect, early, late] = ["sample", "kind", "early", "late"].map((id) => document.getElementById(id));

  function showStrip() {
    const sample = samples[sampleSelect.value], kind = kindSelect.value;
    strip.replaceChildren(...sample.epochs.filter((entry) => entry.pictures[kind]).map((entry) => {
      const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
      figure.classList.toggle("wide", kind !== kinds[0][0]);
      image.src = images[entry.pictures[kind]];
      image.alt = `${sample.key}, epoch ${entry.epoch}, ${kind}`;
      const name = document.createElement("strong");
      name.textContent = `epoch ${entry.epoch} `;
      caption.append(name, entry.text);
      figure.append(image, caption);
      return figure;
    }));
  }

  function showStage() {
    const sample = samples[sampleSelect.value], kind = kindSelect.value;
    const [first, second] = [sample.epochs[early.value], sample.epochs[late.value]];
    stage.setView(checkedView(root));
    stage.show({under: images[first.pictures[kind]], underName: `epoch ${first.epoch}`,
                over: images[second.pictures[kind]], overName: `epoch ${second.epoch}`});
    document.getElementById("caption").textContent = `epoch ${first.epoch}: ${first.text} — epoch ${second.epoch}: ${second.text}`;
  }

  function showAll() { showStrip(); showStage(); }

  function step(by) {
    const next = Number(sampleSelect.value) + by;
    if (next < 0 || next >= samples.length) return;
    sampleSelect.value = next;
    showAll();
  }

  function choose(view) {
    root.querySelector(`.views input[value=${view}]`).checked = true;
    showStage();
  }

  const epochs = samples[0].epochs.map((entry, index) => [index, `epoch ${entry.epoch}`]);
  fillSelect(sampleSelect, samples.map((sample, index) => [index, sample.key]), 0);
  fillSelect(kindSelect, kinds, kinds[0][0]);
  fillSelect(early, epochs, 0);
  fillSelect(late, epochs, epochs.length - 1);
  [sampleSelect, kindSelect].forEach((select) => select.addEventListener("change", showAll));
  [early, late].forEach((select) => select.addEventListener("change", showStage));
  root.querySelectorAll(".views input").forEach((input) => input.addEventListener("change", showStage));
  listenForKeys({n: () => step(1), p: () => step(-1), 1: () => choose("slider"), 2: () => choose("flicker"),
                 " ": () => stage.toggle(), ArrowLeft: () => stage.nudge(-2), ArrowRight: () => stage.nudge(2)});
  showAll();
})();
