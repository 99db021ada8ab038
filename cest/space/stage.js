// The stage: every model's face in WebGL, with one shared view of them all.
//
// A face comes as its GLB file and nine spherical harmonics of light. Head, light and expression are
// changed here, in the browser; when they have come to rest, "settle" tells the server about them.
// Shading is the paper's, albedo x irradiance as sRGB values, with normals and light in the viewer's
// axes (x right, y up, z to the viewer): the head turns, the light stays.

const COMMON_ACTIONS = [
  ["Open the jaw", { jawOpen: 1 }],
  ["Smile", { mouthSmileLeft: 1, mouthSmileRight: 1 }],
  ["Frown", { mouthFrownLeft: 1, mouthFrownRight: 1 }],
  ["Pucker the lips", { mouthPucker: 1 }],
  ["Raise the brows", { browInnerUp: 1, browOuterUpLeft: 1, browOuterUpRight: 1 }],
  ["Lower the brows", { browDownLeft: 1, browDownRight: 1 }],
  ["Close the eyes", { eyeBlinkLeft: 1, eyeBlinkRight: 1 }],
  ["Puff the cheeks", { cheekPuff: 1 }],
];
const EXPLANATIONS = {
  relit: "Albedo times light: what the camera would see.",
  albedo: "The colour of the skin alone: no shadow of the photo should be left in it.",
  geometry: "The shape alone, as clay under a fixed light.",
};
const CLAY_LIGHT = [1.9, 0.35, 0.75, -0.35, 0, 0, 0, 0, 0];
const AT_REST = { mode: "relit", light: "estimated", azimuth: 40, elevation: 20, strength: 1,
                  yaw: 0, pitch: 0, zoom: 1 };
const AMBIENT = 0.25;         // of a light of one's own, as in cest.lighting
const HALF_HEIGHT = 0.115;    // metres: half of what a view shows at size 1
const MIDDLE = 0.022;         // metres: its middle, above the face's origin between nose and chin
const DISTANCE = 0.8;         // metres from the eye to the middle of the face
const SETTLE_MILLISECONDS = 500;

const stage = element.querySelector(".stage");
const find = (selector) => stage.querySelector(selector);
const view = { ...AT_REST, expression: {} };
const faces = new Map();      // model name -> Face
const bases = new Map();      // model name -> promise of its expression basis
let borrowed = {};            // model name -> nine harmonics
let settling = 0, frame = 0;

// -- spherical harmonics ------------------------------------------------------------------------

const Y0 = 0.5 * Math.sqrt(1 / Math.PI), Y1 = Math.sqrt(3 / (4 * Math.PI));
const Y2 = 0.5 * Math.sqrt(15 / Math.PI), Y20 = Y2 / 2 / Math.sqrt(3), Y22 = Y2 / 2;

function harmonics([x, y, z]) {
  return [Y0, Y1 * y, Y1 * z, Y1 * x, Y2 * x * y, Y2 * y * z, Y20 * (3 * z * z - 1), Y2 * x * z,
          Y22 * (x * x - y * y)];
}

function studioLight(exposure) {
  const azimuth = view.azimuth * Math.PI / 180, elevation = view.elevation * Math.PI / 180;
  const direction = [Math.sin(azimuth) * Math.cos(elevation), Math.sin(elevation),
                     Math.cos(azimuth) * Math.cos(elevation)];
  // A clamped cosine lobe in three bands (Ramamoorthi and Hanrahan 2001), over ambient light.
  const light = harmonics(direction).map(
    (value, k) => view.strength * Math.PI * (k ? (k < 4 ? 2 / 3 : 1 / 4) : 1) * value);
  light[0] += AMBIENT / Y0;
  return light.map((value) => value * exposure);
}

function lightOf(face) {
  if (view.light === "studio") return studioLight(face.exposure);
  if (view.light === "borrowed" && borrowed[face.name]) return borrowed[face.name];
  return face.light;
}

// -- a face's GLB and its WebGL view ------------------------------------------------------------

async function readGlb(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the mesh could not be loaded (${response.status})`);
  const data = await response.arrayBuffer();
  const length = new DataView(data).getUint32(12, true);
  const tree = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 20, length)));
  const bytes = (i) => {
    const { byteOffset = 0, byteLength } = tree.bufferViews[i];
    return data.slice(28 + length + byteOffset, 28 + length + byteOffset + byteLength);
  };
  const types = { 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
  const array = (i) => new types[tree.accessors[i].componentType](bytes(tree.accessors[i].bufferView));
  const { attributes, indices } = tree.meshes[0].primitives[0];
  const picture = tree.images[0];
  return {
    positions: array(attributes.POSITION),
    normals: array(attributes.NORMAL),
    uv: array(attributes.TEXCOORD_0),
    triangles: Uint32Array.from(array(indices)),
    texture: await createImageBitmap(
      new Blob([bytes(picture.bufferView)], { type: picture.mimeType }),
      { premultiplyAlpha: "none", colorSpaceConversion: "none" }),
  };
}

const VERTEX = `
  attribute vec3 position, normal; attribute vec2 uv;
  uniform mat3 turn; uniform vec4 frame; /* scale x, scale y, distance, depth */
  varying vec3 n; varying vec2 st;
  void main() {
    vec3 p = turn * position;
    float away = frame.z - p.z;
    n = turn * normal; st = uv;
    gl_Position = vec4((p.xy - vec2(0., ${MIDDLE})) * frame.xy * frame.z, (away - frame.z) / frame.w * away, away);
  }`;
const FRAGMENT = `
  precision highp float;
  uniform sampler2D albedo; uniform float light[9]; uniform vec3 base; uniform float textured;
  varying vec3 n; varying vec2 st;
  void main() {
    vec3 m = normalize(n);
    float shading = ${Y0} * light[0] + ${Y1} * (light[1] * m.y + light[2] * m.z + light[3] * m.x)
      + ${Y2} * (light[4] * m.x * m.y + light[5] * m.y * m.z + light[7] * m.x * m.z)
      + ${Y20} * light[6] * (3. * m.z * m.z - 1.) + ${Y22} * light[8] * (m.x * m.x - m.y * m.y);
    vec3 colour = mix(base, texture2D(albedo, st).rgb, textured);
    gl_FragColor = vec4(clamp(colour * shading, 0., 1.), 1.);
  }`;

class Face {
  constructor(name) {
    this.name = name;
    this.url = null;
    const figure = document.createElement("figure");
    figure.id = `${name.toLowerCase()}-view`;
    figure.innerHTML = `<figcaption></figcaption><div class="canvas"><canvas class="mesh" tabindex="0"
      role="application"></canvas><p class="trouble" role="alert" hidden></p></div>
      <canvas class="ball" width="192" height="192" role="application" tabindex="0"></canvas>`;
    figure.querySelector("figcaption").textContent = name;
    this.figure = figure;
    this.canvas = figure.querySelector(".mesh");
    this.canvas.setAttribute("aria-label", `${name}: 3D face. Arrow keys turn it.`);
    this.ball = figure.querySelector(".ball");
    this.ball.setAttribute("aria-label", `${name}: the light on a ball. Arrow keys move a light of your own.`);
    find(".views").append(figure);
    this.gl = this.canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
    if (this.gl) this.prepare(); else this.say("This browser has no WebGL, so there is no 3D view.");
    draggable(this.canvas, turnBy);
    draggable(this.ball, null, (x, y) => aimAt(this.ball, x, y));
    onArrows(this.canvas, (x, y) => turnBy(x * 8, -y * 8));
    onArrows(this.ball, (x, y) => aim(view.azimuth + 5 * x, view.elevation + 5 * y));
    this.canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== this.canvas) return; // the page scrolls
      event.preventDefault();
      set("zoom", view.zoom * Math.exp(-event.deltaY / 600));
    }, { passive: false });
    this.canvas.addEventListener("webglcontextrestored", () => { this.prepare(); this.upload(); draw(); });
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    new ResizeObserver(draw).observe(this.canvas);
  }

  prepare() {
    const { gl } = this;
    const shader = (type, source) => {
      const made = gl.createShader(type);
      gl.shaderSource(made, source);
      gl.compileShader(made);
      return made;
    };
    const program = this.program = gl.createProgram();
    gl.attachShader(program, shader(gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, shader(gl.FRAGMENT_SHADER, FRAGMENT));
    gl.linkProgram(program);
    gl.useProgram(program);
    this.buffers = {};
    for (const name of ["position", "normal", "uv", "index"]) this.buffers[name] = gl.createBuffer();
    this.texture = gl.createTexture();
    gl.getExtension("OES_element_index_uint");
    gl.enable(gl.DEPTH_TEST);
  }

  say(trouble) {
    const line = this.figure.querySelector(".trouble");
    line.textContent = trouble;
    line.hidden = !trouble;
  }

  async show({ mesh, light, exposure }) {
    Object.assign(this, { light, exposure });
    if (mesh.url === this.url) return;
    this.url = mesh.url;
    this.canvas.removeAttribute("data-drawn");
    try {
      const data = await readGlb(mesh.url);
      if (mesh.url !== this.url) return; // another photo came meanwhile
      this.mesh = data;
      if (this.gl) this.say("");
      this.upload();
    } catch (error) {
      this.mesh = null;
      this.say(`${this.name}: ${error.message}.`);
    }
  }

  clear() { this.url = this.mesh = null; this.light = null; }

  upload() {
    const { gl, mesh } = this;
    if (!gl || !mesh) return;
    const fill = (name, values, size) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
      const place = gl.getAttribLocation(this.program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, gl.FLOAT, false, 0, 0);
    };
    this.fill = fill;
    fill("position", mesh.positions, 3);
    fill("normal", mesh.normals, 3);
    fill("uv", mesh.uv, 2);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.index);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.STATIC_DRAW);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, mesh.texture);
    for (const edge of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T])
      gl.texParameteri(gl.TEXTURE_2D, edge, gl.CLAMP_TO_EDGE);
    // Fine detail flickers unless it is averaged; this WebGL does so for powers of two only.
    const { width } = mesh.texture, averaged = (width & (width - 1)) === 0;
    if (averaged) gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(
      gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, averaged ? gl.LINEAR_MIPMAP_LINEAR : gl.LINEAR
    );
    this.express();
  }

  // Moves the vertices by the chosen actions; normals are the triangles' mean, weighted by area.
  async express() {
    const { mesh } = this;
    const amounts = Object.entries(view.expression).filter(([, amount]) => amount);
    if (!mesh || !this.fill || (!amounts.length && !this.moved)) return;
    const basis = amounts.length ? await basisOf(this.name) : null;
    if (mesh !== this.mesh) return;
    this.moved = Boolean(basis);
    if (!basis) {
      this.fill("position", mesh.positions, 3);
      this.fill("normal", mesh.normals, 3);
      draw();
      return;
    }
    const weights = new Float32Array(basis.components);
    for (const [action, amount] of Object.entries(view.expression))
      (basis.actions[action] ?? []).forEach((weight, k) => { weights[k] += amount * weight; });
    const size = mesh.positions.length, moved = Float32Array.from(mesh.positions);
    weights.forEach((weight, k) => {
      if (!weight) return;
      const factor = weight * basis.scale, start = k * size;
      for (let i = 0; i < size; i++) moved[i] += factor * basis.data[start + i];
    });
    this.fill("position", moved, 3);
    this.fill("normal", normalsOf(moved, mesh.triangles), 3);
    draw();
  }

  draw() {
    this.drawBall();
    const { gl, canvas, mesh } = this;
    if (!gl) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!mesh || !this.light || !width) return;
    const uniform = (name) => gl.getUniformLocation(this.program, name);
    const scale = view.zoom / HALF_HEIGHT, aspect = Math.min(1, 1.2 * width / height);
    gl.uniformMatrix3fv(uniform("turn"), false, rotation(view.yaw, view.pitch));
    gl.uniform4f(uniform("frame"), scale * aspect * height / width, scale * aspect, DISTANCE, 0.5);
    const light = { relit: lightOf(this), geometry: CLAY_LIGHT, albedo: [1 / Y0, 0, 0, 0, 0, 0, 0, 0, 0] };
    gl.uniform1fv(uniform("light"), light[view.mode]);
    gl.uniform3f(uniform("base"), 0.85, 0.85, 0.85);
    gl.uniform1f(uniform("textured"), view.mode === "geometry" ? 0 : 1);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
    canvas.dataset.drawn = "yes";
  }

  drawBall() {
    const context = this.ball.getContext("2d"), size = this.ball.width;
    context.clearRect(0, 0, size, size);
    if (!this.light) return;
    const light = lightOf(this), picture = context.createImageData(size, size);
    for (let row = 0; row < size; row++) for (let column = 0; column < size; column++) {
      const x = (column + 0.5) / size * 2 - 1, y = 1 - (row + 0.5) / size * 2, r = Math.hypot(x, y);
      const alpha = Math.min(1, Math.max(0, (1 - r) * size / 2));
      if (!alpha) continue;
      const z = Math.sqrt(Math.max(0, 1 - r * r));
      const shading = harmonics([x, y, z]).reduce((sum, value, k) => sum + value * light[k], 0);
      const at = 4 * (row * size + column);
      picture.data.fill(153 * Math.max(0, shading), at, at + 3);
      picture.data[at + 3] = 255 * alpha;
    }
    context.putImageData(picture, 0, 0);
    if (view.light !== "studio") return;
    const azimuth = view.azimuth * Math.PI / 180, elevation = view.elevation * Math.PI / 180;
    context.beginPath();
    context.arc(size / 2 * (1 + 0.94 * Math.sin(azimuth) * Math.cos(elevation)),
                size / 2 * (1 - 0.94 * Math.sin(elevation)), size / 22, 0, 7);
    Object.assign(context, { fillStyle: "#ffb300", strokeStyle: "#222", lineWidth: 3 });
    context.fill();
    context.stroke();
  }
}

function normalsOf(positions, triangles) {
  const normals = new Float32Array(positions.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const a = 3 * triangles[t], b = 3 * triangles[t + 1], c = 3 * triangles[t + 2];
    const ux = positions[b] - positions[a], uy = positions[b + 1] - positions[a + 1], uz = positions[b + 2] - positions[a + 2];
    const vx = positions[c] - positions[a], vy = positions[c + 1] - positions[a + 1], vz = positions[c + 2] - positions[a + 2];
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
    for (const corner of [a, b, c]) {
      normals[corner] += nx; normals[corner + 1] += ny; normals[corner + 2] += nz;
    }
  }
  return normals; // the shader gives them their length
}

function rotation(yaw, pitch) { // degrees -> 3 x 3, column by column: first yaw, then pitch
  const [c, s] = [Math.cos(yaw * Math.PI / 180), Math.sin(yaw * Math.PI / 180)];
  const [d, e] = [Math.cos(pitch * Math.PI / 180), Math.sin(pitch * Math.PI / 180)];
  // Rx(-pitch) Ry(yaw): the nose goes right for yaw > 0 and up for pitch > 0.
  return new Float32Array([c, -e * s, -d * s, 0, d, -e, s, e * c, d * c]);
}

// The face model's expression directions, fetched when the first slider moves.
function basisOf(name) {
  if (!bases.has(name)) bases.set(name, server.expressions(name).then((basis) => {
    const bytes = Uint8Array.from(atob(basis.data), (character) => character.charCodeAt(0));
    return { ...basis, data: new Int16Array(bytes.buffer) };
  }));
  return bases.get(name);
}

// -- controls -----------------------------------------------------------------------------------

function draw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => faces.forEach((face) => face.draw()));
}

function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => trigger("settle", {
    light: view.light, azimuth: view.azimuth, elevation: view.elevation, strength: view.strength,
    expression: Object.fromEntries(Object.entries(view.expression).filter(([, amount]) => amount)),
  }), SETTLE_MILLISECONDS);
}

const UNITS = { azimuth: "°", elevation: "°", yaw: "°", pitch: "°", strength: "×", zoom: "×" };

function label(input, value) {
  input.value = value;
  const unit = UNITS[input.name] ?? "";
  input.parentElement.querySelector("output").textContent =
    unit === "°" ? `${Math.round(value)}°` : `${Number(value).toFixed(2)}${unit}`;
}

function set(name, value) {
  const input = find(`input[type=range][name=${name}]`);
  view[name] = Math.min(Number(input.max), Math.max(Number(input.min), value));
  label(input, view[name]);
  draw();
}

function turnBy(dx, dy) {
  set("yaw", view.yaw + dx / 2.5);
  set("pitch", view.pitch - dy / 2.5);
}

function chooseLight(kind) {
  view.light = kind;
  find(`input[name=stage-light][value=${kind}]`).checked = true;
  draw();
  settle();
}

function aim(azimuth, elevation) {
  set("azimuth", azimuth);
  set("elevation", elevation);
  chooseLight("studio");
}

function aimAt(ball, clientX, clientY) {
  const box = ball.getBoundingClientRect();
  let x = (clientX - box.left) / box.width * 2 - 1, y = 1 - (clientY - box.top) / box.height * 2;
  const reach = Math.max(1, Math.hypot(x, y));
  [x, y] = [x / reach, y / reach];
  const z = Math.sqrt(Math.max(0, 1 - x * x - y * y));
  aim(Math.atan2(x, z) * 180 / Math.PI, Math.asin(y) * 180 / Math.PI);
}

function draggable(target, by, to) {
  let last = null;
  target.addEventListener("pointerdown", (event) => {
    last = event;
    target.setPointerCapture(event.pointerId);
    to?.(event.clientX, event.clientY);
  });
  target.addEventListener("pointermove", (event) => {
    if (!last) return;
    by?.(event.clientX - last.clientX, event.clientY - last.clientY);
    to?.(event.clientX, event.clientY);
    last = event;
  });
  for (const end of ["pointerup", "pointercancel"])
    target.addEventListener(end, () => { last = null; });
}

function onArrows(target, move) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  target.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    move(...steps[event.key]);
  });
}

// Expression sliders: a slider may stand for several actions; each action's last word counts.
const expressionInputs = [];
function expressionSlider(parent, text, actions) {
  const row = document.createElement("label");
  row.className = "slider";
  row.innerHTML = `<span></span><input type="range" min="0" max="1" step="0.05" value="0"><output>0.00</output>`;
  row.querySelector("span").textContent = text;
  const input = row.querySelector("input");
  input.setAttribute("aria-label", text);
  input.addEventListener("input", () => {
    for (const [action, most] of Object.entries(actions)) view.expression[action] = most * input.value;
    showExpression();
    express();
  });
  expressionInputs.push([input, actions]);
  parent.append(row);
}

function showExpression() {
  for (const [input, actions] of expressionInputs)
    label(input, Math.min(...Object.entries(actions).map(([a, most]) => (view.expression[a] ?? 0) / most)));
}

function express() {
  faces.forEach((face) => face.express());
  settle();
}

function offer(actions) {
  if (find(".expression").dataset.actions === actions.join()) return;
  find(".expression").dataset.actions = actions.join();
  find(".expression").hidden = !actions.length;
  expressionInputs.length = 0;
  find(".common").replaceChildren();
  find(".all").replaceChildren();
  for (const [text, group] of COMMON_ACTIONS)
    if (Object.keys(group).every((action) => actions.includes(action)))
      expressionSlider(find(".common"), text, group);
  for (const action of actions) {
    const words = action.replace(/([A-Z])/g, " $1").toLowerCase();
    expressionSlider(find(".all"), words[0].toUpperCase() + words.slice(1), { [action]: 1 });
  }
}

function reset() {
  const { mode } = view;
  Object.assign(view, AT_REST, { mode, expression: {} });
  for (const input of stage.querySelectorAll(".light input[type=range], .head input[type=range]"))
    label(input, view[input.name]);
  showExpression();
  chooseLight("estimated");
  express();
}

for (const input of stage.querySelectorAll(".light input[type=range], .head input[type=range]")) {
  label(input, view[input.name]);
  input.addEventListener("input", () => {
    set(input.name, Number(input.value));
    if (input.closest(".light")) chooseLight("studio");
  });
}
for (const input of stage.querySelectorAll("input[name=stage-light]"))
  input.addEventListener("change", () => chooseLight(input.value));
for (const input of stage.querySelectorAll("input[name=stage-mode]"))
  input.addEventListener("change", () => {
    view.mode = input.value;
    find(".explain").textContent = EXPLANATIONS[view.mode];
    draw();
  });
find(".explain").textContent = EXPLANATIONS[view.mode];
find(".reset").addEventListener("click", reset);

// -- what the server sends ----------------------------------------------------------------------

async function show(value) {
  const shown = value?.faces ?? {};
  borrowed = value?.borrowed ?? {};
  const isBorrowed = Object.keys(borrowed).length > 0;
  find(".borrowed").hidden = !isBorrowed;
  const isNew = (value?.photo ?? "") !== stage.dataset.photo;
  if (isNew) { // the next photo starts as it was estimated
    stage.dataset.photo = value?.photo ?? "";
    clearTimeout(settling);
    Object.assign(view, AT_REST, { mode: view.mode, expression: {} });
    find("input[name=stage-light][value=estimated]").checked = true;
    for (const input of stage.querySelectorAll(".light input[type=range], .head input[type=range]"))
      label(input, view[input.name]);
    showExpression();
  }
  const wished = isBorrowed && value.use_borrowed ? "borrowed"
    : !isBorrowed && view.light === "borrowed" ? "estimated" : view.light;
  if (wished !== view.light || wished === "borrowed") chooseLight(wished);
  offer(value?.actions ?? []);
  for (const name of Object.keys(shown)) if (!faces.has(name)) faces.set(name, new Face(name));
  await Promise.all([...faces.values()].map((face) =>
    shown[face.name] ? face.show(shown[face.name]) : face.clear()));
  draw();
  // The server drew the photo as it was estimated.
  if (!isNew && (view.light !== "estimated" || Object.values(view.expression).some(Boolean))) settle();
}

watch("value", () => show(props.value));
show(props.value);
