"use strict";
// Two superimposed pictures of one frame: slider, flicker, checkerboard, or one picture alone.
function makeStage(root) {
  const find = (selector) => root.querySelector(selector);
  const under = find(".under"), over = find(".over"), handle = find(".handle"), slide = find(".slide");
  const left = find(".tag.left"), right = find(".tag.right");
  let view = "slider", timer = null, paused = matchMedia("(prefers-reduced-motion: reduce)").matches;

  function squares() {
    // Eight squares along the width; the tile is two squares wide.
    const ratio = (under.naturalWidth / under.naturalHeight) || 1;
    const mask = "conic-gradient(#000 25%, transparent 0 50%, #000 0 75%, transparent 0)";
    over.style.maskImage = over.style.webkitMaskImage = mask;
    over.style.maskSize = over.style.webkitMaskSize = `25% ${25 * ratio}%`;
  }

  function draw() {
    over.style.clipPath = view === "slider" ? `inset(0 0 0 ${slide.value}%)` : "none";
    over.style.maskImage = over.style.webkitMaskImage = "none";
    over.style.visibility = "visible";
    over.hidden = view === "matches";
    handle.hidden = view !== "slider";
    handle.style.left = `${slide.value}%`;
    slide.hidden = view !== "slider";
    left.hidden = right.hidden = view === "matches";
    if (view === "checkerboard") squares();
    clearInterval(timer);
    timer = null;
    if (view === "flicker") {
      right.hidden = true;
      const names = [left.dataset.name, right.dataset.name];
      const turn = () => {
        const showOver = over.style.visibility === "hidden";
        over.style.visibility = showOver ? "visible" : "hidden";
        left.textContent = names[showOver ? 1 : 0];
      };
      left.textContent = names[1];
      if (!paused) timer = setInterval(turn, 650);
      root.flick = turn;
    } else {
      left.textContent = left.dataset.name;
    }
  }

  function moveTo(event) {
    if (view !== "slider" || (event.type === "pointermove" && !event.buttons)) return;
    const box = under.getBoundingClientRect();
    slide.value = Math.min(100, Math.max(0, 100 * (event.clientX - box.left) / box.width));
    draw();
  }
  find(".stage").addEventListener("pointerdown", moveTo);
  find(".stage").addEventListener("pointermove", moveTo);
  slide.addEventListener("input", draw);
  under.addEventListener("load", draw);

  return {
    show(content) {
      const alone = view === "matches";
      under.src = alone ? content.alone : content.under;
      under.alt = alone ? content.aloneName : content.underName;
      over.src = content.over;
      over.alt = content.overName;
      left.dataset.name = content.underName;
      right.dataset.name = right.textContent = content.overName;
      draw();
    },
    setView(name) { view = name; },
    toggle() {
      if (view !== "flicker") return;
      paused = !paused;
      draw();
      if (paused) root.flick();
    },
    nudge(step) {
      slide.value = Number(slide.value) + step;
      draw();
    },
  };
}

function readJson(id) { return JSON.parse(document.getElementById(id).textContent); }

function fillSelect(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
}

function checkedView(root) { return root.querySelector(".views input:checked").value; }

function listenForKeys(actions) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("select, textarea, input[type=text]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    const sliding = event.target.closest("input[type=range], input[type=radio]") && event.key.startsWith("Arrow");
    if (sliding || (event.target.closest("button, summary") && event.key === " ")) return;
    event.preventDefault();
    actions[event.key]();
  });
}
