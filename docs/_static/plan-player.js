// Uncovers a picture in the order of a plan. The plans, the picture and the colours are in plans.js (MINAR).
//
// <div class="plan-player" data-plan="raster"></div> shows one plan; without data-plan the reader chooses.
// With data-autoplay it plays once when it comes into view, unless the reader prefers reduced motion.

const SIZE = 640; // pixels of a canvas, whatever its size on the page
const SECONDS = 7; // of a whole plan
const RING = "#ff7a00"; // what is drawn now; seen on light and dark

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const picture = new Image();
picture.src = MINAR.picture;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Where each token lies on the canvas: a plan of several grids shows them side by side, each as large as the others.
function places(plan) {
  const columns = Math.ceil(Math.sqrt(plan.sides.length));
  const pitch = SIZE / columns;
  const gap = columns > 1 ? 14 : 0;
  const margin = (SIZE - pitch * Math.ceil(plan.sides.length / columns)) / 2;
  return plan.sides.flatMap((side, g) => {
    const size = (pitch - gap) / side;
    const left = (g % columns) * pitch + gap / 2;
    const top = Math.floor(g / columns) * pitch + gap / 2 + margin;
    return Array.from({ length: side * side }, (_, i) => ({
      x: left + (i % side) * size,
      y: top + Math.floor(i / side) * size,
      size,
    }));
  });
}

function colour(plan, step) {
  const last = Math.max(1, plan.sizes.length - 1);
  return MINAR.colours[Math.round((step / last) * (MINAR.colours.length - 1))];
}

// The right panel: the number of each token's step, coloured once it is drawn.
function drawOrder(context, plan, done) {
  context.clearRect(0, 0, SIZE, SIZE);
  context.textAlign = "center";
  context.textBaseline = "middle";
  places(plan).forEach(({ x, y, size }, i) => {
    const step = plan.steps[i];
    const drawn = step < done;
    if (drawn) {
      context.fillStyle = colour(plan, step);
      context.fillRect(x, y, size, size);
    }
    outline(context, x, y, size, step === done - 1);
    context.fillStyle = !drawn ? "#888" : step > 0.6 * (plan.sizes.length - 1) ? "#222" : "#fff";
    context.font = `${Math.round(size * 0.42)}px sans-serif`;
    if (size > 24) context.fillText(step + 1, x + size / 2, y + size / 2);
  });
}

function outline(context, x, y, size, isNew) {
  context.lineWidth = isNew ? Math.max(2, size / 16) : 1;
  context.strokeStyle = isNew ? RING : "#8886";
  const inset = context.lineWidth / 2;
  context.strokeRect(x + inset, y + inset, size - 2 * inset, size - 2 * inset);
}

// The left panel: what of the picture is there.
function drawPicture(context, plan, done) {
  context.clearRect(0, 0, SIZE, SIZE);
  context.imageSmoothingEnabled = false;
  if (plan.sides.length > 1) drawScale(context, plan, done);
  else drawPatches(context, plan, done);
}

// The whole picture, as fine as the grid of tokens allows; the last grid gives all of it.
function drawScale(context, plan, done) {
  if (!done) return;
  const side = Math.round((picture.naturalWidth * plan.sides[done - 1]) / plan.sides.at(-1));
  const small = element("canvas", { width: side, height: side });
  small.getContext("2d").imageSmoothingQuality = "high";
  small.getContext("2d").drawImage(picture, 0, 0, side, side);
  context.drawImage(small, 0, 0, SIZE, SIZE);
}

function drawPatches(context, plan, done) {
  const patch = picture.naturalWidth / plan.sides[0];
  places(plan).forEach(({ x, y, size }, i) => {
    const step = plan.steps[i];
    const [left, top] = [(i % plan.sides[0]) * patch, Math.floor(i / plan.sides[0]) * patch];
    if (step < done) context.drawImage(picture, left, top, patch, patch, x, y, size, size);
    if (step >= done - 1) outline(context, x, y, size, step === done - 1);
  });
}

function status(plan, done) {
  const total = plan.steps.length;
  const seen = plan.sizes.slice(0, done).reduce((a, b) => a + b, 0);
  if (!done) return `Nothing is drawn yet: ${total} tokens in ${plan.sizes.length} steps.`;
  const now = plan.sizes[done - 1];
  return `Step ${done} of ${plan.sizes.length}: ${now} ${now === 1 ? "token" : "tokens"}; ${seen} of ${total} are drawn.`;
}

function panel(title) {
  const canvas = element("canvas", { width: SIZE, height: SIZE, role: "img", "aria-label": title });
  return [canvas, element("figure", {}, canvas, element("figcaption", {}, title))];
}

function build(root) {
  let plan;
  let done = 0;
  let timer = null;

  const names = Object.keys(MINAR.plans);
  const select = element("select", {}, ...names.map((name) => element("option", { value: name }, name)));
  const [pictureCanvas, pictureFigure] = panel("the picture so far");
  const [orderCanvas, orderFigure] = panel("the step of each token");
  const [play, back, next] = ["Play", "Back", "Next"].map((label) => element("button", { type: "button" }, label));
  const slider = element("input", { type: "range", min: 0, "aria-label": "steps drawn" });
  const says = element("output", { "aria-live": "polite" });
  const about = element("p", { class: "plan-about" });

  function show(step) {
    done = Math.max(0, Math.min(plan.sizes.length, step));
    drawPicture(pictureCanvas.getContext("2d"), plan, done);
    drawOrder(orderCanvas.getContext("2d"), plan, done);
    slider.value = done;
    slider.setAttribute("aria-valuetext", status(plan, done));
    says.textContent = status(plan, done);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    says.setAttribute("aria-live", "polite");
  }

  function start() {
    if (done === plan.sizes.length) show(0);
    play.textContent = "Pause";
    says.setAttribute("aria-live", "off"); // a screen reader would never stop
    const pause = Math.min(900, (1000 * SECONDS) / plan.sizes.length);
    timer = setInterval(() => (done < plan.sizes.length ? show(done + 1) : stop()), calm.matches ? 1500 : pause);
  }

  function choose(name) {
    stop();
    plan = MINAR.plans[name];
    select.value = name;
    slider.max = plan.sizes.length;
    about.replaceChildren(element("code", {}, plan.call), " " + plan.text);
    show(plan.sizes.length);
  }

  function by(steps) {
    stop();
    show(done + steps);
  }

  play.addEventListener("click", () => (timer ? stop() : start()));
  back.addEventListener("click", () => by(-1));
  next.addEventListener("click", () => by(1));
  slider.addEventListener("input", () => (stop(), show(Number(slider.value))));
  select.addEventListener("change", () => choose(select.value));

  const controls = element("div", { class: "plan-controls" }, play, back, next, slider);
  const chooser = root.dataset.plan ? [] : [element("label", {}, "Plan ", select)];
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "plan player" + (root.dataset.plan ? `: ${root.dataset.plan}` : ""));
  root.replaceChildren(...chooser, about, element("div", { class: "plan-panels" }, pictureFigure, orderFigure), controls, says);
  choose(root.dataset.plan || "PAR, 4 regions");
  if ("autoplay" in root.dataset && !calm.matches) playInView(root, start);
}

function playInView(root, start) {
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    start();
  }, { threshold: 0.6 });
  watch.observe(root);
}

picture.decode().then(() => document.querySelectorAll(".plan-player").forEach(build));
