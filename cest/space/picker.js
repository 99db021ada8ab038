// Which face? A photo with a button over every face that was found, or, where none was found, a
// square to be drawn by hand. Boxes and squares are in fractions of the photo's sides.

const picker = element.querySelector(".picker");
const find = (selector) => picker.querySelector(selector);
const photo = find(".photo"), image = find("img");
let square = null; // {x, y, size}: centre, and side over the photo's width

function showSquare() {
  const shape = find(".square");
  shape.toggleAttribute("hidden", !square);
  if (!square) return;
  const { clientWidth: width, clientHeight: height } = image;
  const side = square.size * width, rect = find("rect");
  rect.setAttribute("x", square.x * width - side / 2);
  rect.setAttribute("y", square.y * height - side / 2);
  rect.setAttribute("width", side);
  rect.setAttribute("height", side);
}

function show(value) {
  const faces = value?.faces ?? [], byHand = Boolean(value?.by_hand);
  picker.hidden = !value;
  if (!value) return;
  find(".ask").textContent = value.ask;
  image.src = value.photo.url;
  image.alt = byHand ? "Your photo, to draw a square in" : `Your photo with ${faces.length} faces`;
  find(".faces").replaceChildren(...faces.map(({ left, top, width, height }, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<span>${index + 1}</span>`;
    button.setAttribute("aria-label", `Face ${index + 1} of ${faces.length}`);
    button.setAttribute("aria-pressed", index === value.chosen);
    Object.assign(button.style, { left: `${100 * left}%`, top: `${100 * top}%`,
                                  width: `${100 * width}%`, height: `${100 * height}%` });
    button.addEventListener("click", () => trigger("choose", { face: index }));
    return button;
  }));
  find(".byhand").hidden = !byHand;
  photo.classList.toggle("drawing", byHand);
  for (const [name, text] of Object.entries({ tabindex: "0", role: "application",
                                              "aria-label": "Square around the face" }))
    if (byHand) photo.setAttribute(name, text); else photo.removeAttribute(name);
  square = byHand ? { x: 0.5, y: 0.5, size: 0.5 } : null;
  if (image.complete) showSquare();
}

const place = (event) => {
  const box = image.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height,
          box.height / box.width];
};

let start = null;
photo.addEventListener("pointerdown", (event) => {
  if (!square) return;
  event.preventDefault();
  photo.focus();
  photo.setPointerCapture(event.pointerId);
  start = place(event);
});
photo.addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x, y, tall] = place(event);
  const size = Math.max(Math.abs(x - start[0]), Math.abs(y - start[1]) * tall, 0.02);
  square = { x: start[0] + Math.sign(x - start[0]) * size / 2,
             y: start[1] + Math.sign(y - start[1]) * size / 2 / tall, size };
  showSquare();
});
for (const end of ["pointerup", "pointercancel"]) photo.addEventListener(end, () => { start = null; });
photo.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const grow = { "+": 1.06, "=": 1.06, "-": 1 / 1.06 };
  if (!square || !(moves[event.key] || grow[event.key] || event.key === "Enter")) return;
  event.preventDefault();
  if (event.key === "Enter") find(".use").click();
  else if (grow[event.key]) square.size = Math.min(2, Math.max(0.02, square.size * grow[event.key]));
  else {
    square.x += 0.02 * moves[event.key][0];
    square.y += 0.02 * moves[event.key][1];
  }
  showSquare();
});
find(".use").addEventListener("click", () => {
  if (!square) return;
  const { width, height } = props.value; // the photo's, in pixels
  trigger("choose", { square: { center_x: square.x * width, center_y: square.y * height,
                                size: square.size * width } });
});
image.addEventListener("load", showSquare);
new ResizeObserver(showSquare).observe(image);

watch("value", () => show(props.value));
show(props.value);
