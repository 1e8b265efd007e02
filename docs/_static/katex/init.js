// Sphinx writes a formula as \( ... \) or \[ ... \] inside an element of class "math"; KaTeX draws it in place.
function draw(element) {
  const number = element.querySelector(".eqno");
  const parts = [...element.childNodes].filter((node) => node !== number);
  const tex = parts.map((node) => node.textContent).join("").trim();
  const box = document.createElement(element.tagName);
  katex.render(tex.slice(2, -2), box, { displayMode: tex.startsWith("\\["), throwOnError: false });
  element.replaceChildren(...(number ? [number] : []), ...box.childNodes);
}

addEventListener("DOMContentLoaded", () => {
  if (window.katex) document.querySelectorAll(".math").forEach(draw);
});
