// The photo, and over its right part what a model makes of it: the bar between them is a slider.

const figure = element.querySelector(".compare");
const find = (selector) => figure.querySelector(selector);
const slider = find("input");

function show(value) {
  figure.hidden = !value;
  if (!value) return;
  find(".photo").src = value.photo.url;
  find(".drawn").src = value.drawn.url;
  find(".drawn").alt = `The photo with the face by ${value.name} drawn over it`;
  find(".name").textContent = value.name;
  slider.setAttribute("aria-label", `Between the photo and the face by ${value.name}`);
}

slider.addEventListener("input", () => figure.style.setProperty("--at", `${slider.value}%`));
watch("value", () => show(props.value));
show(props.value);
