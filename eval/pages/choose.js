// The methods whose lines the figures show: a checkbox each, and buttons for all, none and the first
// choice. Without scripts the figures show the first choice.
for (const bar of document.querySelectorAll(".choose")) {
  const boxes = [...bar.querySelectorAll("input")];
  const first = boxes.map((box) => box.checked);
  const draw = () => {
    const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    for (const part of document.querySelectorAll("svg [data-method], svg [data-name]")) {
      part.classList.toggle("off", !on.has(part.dataset.method ?? part.dataset.name));
    }
  };
  const set = (value) => {
    boxes.forEach((box, place) => (box.checked = value(place)));
    draw();
  };
  boxes.forEach((box) => box.addEventListener("change", draw));
  const ways = { all: () => true, none: () => false, first: (place) => first[place] };
  for (const button of bar.querySelectorAll("button")) {
    button.addEventListener("click", () => set(ways[button.value]));
  }
  bar.hidden = false;
  draw();
}
