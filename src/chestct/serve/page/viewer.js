// The scan in three planes. NiiVue draws; what is shown, and how, is decided here.

import { state } from "./app.js";
import { GONE, h, Trouble } from "./parts.js";

/** Name, centre and width of each window in Hounsfield units; the keys 1 to 4 choose them. */
const WINDOWS = [
  ["Lung", -500, 1400],
  ["Soft tissue", 40, 400],
  ["Bone", 400, 1800],
  ["Wide", 0, 4000],
];
const PLANES = { all: "Three planes", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };
const SLICE_TYPE = { axial: 0, coronal: 1, sagittal: 2 };
const WINDOWING = 9;
const RGBA = 2304;
const NARROW_PX = 560;
/** What lies at the left, right, upper and lower edge of each plane. */
const SIDES = { axial: "RLAP", coronal: "RLHF", sagittal: "APHF" };

let single = null;

/** The one viewer of this page: its shaders are compiled once. */
export function theViewer() {
  single ??= new Viewer();
  return single;
}

/** A part of a scan's viewing copy, as NiiVue takes it. */
async function load(NVImage, scan, part, options) {
  let answer;
  try {
    answer = await fetch(`/api/scans/${scan.id}/view/${part}.nii`);
  } catch {
    throw new Trouble(GONE);
  }
  if (!answer.ok) throw new Trouble("The picture is not there any more. Load the page again.");
  return NVImage.loadFromUrl({ url: `${part}.nii`, name: `${part}.nii`, buffer: await answer.arrayBuffer(), colormap: "gray", ...options });
}

/** Whether this browser can draw a scan at all. */
export function canDraw() {
  return Boolean(document.createElement("canvas").getContext("webgl2"));
}

/** The letters at the edges of a plane. */
function mark(plane, left, top, width, height) {
  const [l, r, u, d] = SIDES[plane];
  const letters = [["left", l], ["right", r], ["up", u], ["down", d]].map(([side, letter]) => h("span", { class: side }, letter));
  const place = { left: `${left * 100}%`, top: `${top * 100}%`, width: `${width * 100}%`, height: `${height * 100}%` };
  return h("div", { class: "tile", "data-plane": plane, style: place }, letters);
}

class Viewer {
  constructor() {
    this.onmove = () => {};
    this.plane = "all";
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.stage = h("div", { class: "stage" }, this.canvas, (this.marks = h("div", { class: "marks", "aria-hidden": "true" })), (this.wait = h("p", { class: "wait", role: "status" })));
    this.windows = WINDOWS.map(([name], index) => h("button", { type: "button", "aria-pressed": "false", title: `Key ${index + 1}`, onclick: () => this.setWindow(index) }, name));
    this.centre = h("input", { type: "number", id: "centre", step: "10", onchange: () => this.readWindow() });
    this.width = h("input", { type: "number", id: "width", step: "10", min: "1", onchange: () => this.readWindow() });
    this.opacity = h("input", { type: "range", id: "opacity", min: "0", max: "100", value: "62", oninput: () => this.drawLayers() });
    this.lungs = h("input", { type: "checkbox", id: "lungs", checked: true, onchange: () => this.drawLayers() });
    this.select = h("select", { id: "plane", onchange: () => this.setPlane(this.select.value) }, Object.entries(PLANES).map(([value, words]) => h("option", { value }, words)));
    this.place = h("output", { class: "place", id: "place" });
    this.ramp = h("span", { class: "ramp", "aria-hidden": "true" });
    this.heatTool = h("label", { for: "opacity", class: "tool heat-tool" }, h("span", {}, "Heat"), this.opacity, this.ramp);
    this.windowTools = h("div", { class: "tool group", id: "windows", role: "group", "aria-label": "Window" }, this.windows);
    this.numbers = h("div", { class: "tool numbers" }, h("label", { for: "centre" }, "Centre"), this.centre, h("label", { for: "width" }, "Width"), this.width);
    this.extra = h("div", { class: "tool extra" });
    this.element = h("figure", { class: "viewer" },
      h("div", { class: "toolbar", role: "toolbar", "aria-label": "Picture" },
        this.windowTools, this.numbers, this.heatTool,
        h("label", { for: "lungs", class: "tool" }, this.lungs, h("span", {}, "Lungs")),
        h("label", { for: "plane", class: "tool" }, h("span", { class: "hidden" }, "Planes"), this.select), this.extra),
      h("div", { class: "frame", role: "group", tabindex: "0", "aria-label": "The scan in three planes, seen from the feet and from the front: the patient’s right is on the left", "aria-describedby": "place keys" }, this.stage),
      h("figcaption", {}, this.place));
    // NiiVue has keys of its own; ours are heard before, wherever one looks.
    this.stage.addEventListener("keydown", (event) => event.stopImmediatePropagation(), true);
    new ResizeObserver(() => this.layOut()).observe(this.stage);
  }

  /** Load a scan's viewing copy and stand in a slice. */
  async show(scan, slice) {
    this.scan = scan;
    this.view = scan.view;
    this.isWhole = false;
    this.say("Loading the picture …");
    this.stage.dataset.state = "loading";
    const { Niivue, NVImage } = await import("./niivue.js");
    this.attached ??= this.attach(Niivue);
    await this.attached;
    if (this.scan !== scan) return;
    const isHU = this.view.unit === "HU";
    const [low, high] = isHU ? [-1200, 200] : this.view.range;
    const [picture, layer] = await Promise.all([
      load(NVImage, scan, "scan", { cal_min: low, cal_max: high }),
      load(NVImage, scan, "layer", { cal_min: 0, cal_max: 255 }),
    ]);
    if (this.scan !== scan) return;
    // NiiVue's own colour tables know no opacity: the layer's voxels become colours here.
    this.levels = layer.img;
    layer.hdr.datatypeCode = RGBA;
    layer.hdr.numBitsPerVoxel = 32;
    layer.img = new Uint8Array(4 * this.levels.length);
    this.color(layer);
    this.setLayers([picture, layer]);
    this.windowTools.hidden = this.numbers.hidden = !isHU;
    this.heatTool.hidden = !this.view.has_heat;
    this.showWindow();
    this.layOut();
    this.goToPlace(scan.evidence?.hottest?.position_mm, slice);
    this.stage.dataset.state = "shown";
    this.say("");
  }

  /** Take the scan with all its voxels in place of its viewing copy. */
  async showWhole() {
    const { scan } = this;
    this.say("Loading every voxel …");
    const { NVImage } = await import("./niivue.js");
    const { cal_min, cal_max } = this.nv.volumes[0];
    const whole = await load(NVImage, scan, "whole", { cal_min, cal_max });
    if (this.scan !== scan) return;
    const place = [...this.nv.scene.crosshairPos];
    this.setLayers([whole, this.nv.volumes[1]]);
    this.isWhole = true;
    this.nv.scene.crosshairPos = place;
    this.layOut();
    this.nv.createOnLocationChange();
    this.say("");
  }

  // Added one by one, each would have all before it drawn anew.
  setLayers(layers) {
    this.nv.volumes = layers;
    this.nv.setVolume(layers[1], 1);
  }

  say(words) {
    this.wait.textContent = words;
  }

  async attach(Niivue) {
    const nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.9, 0.62, 0, 0.75],
      crosshairWidth: 0.5,
      crosshairWidthUnit: "mm",
      crosshairGap: 14,
      isOrientationTextVisible: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      multiplanarShowRender: 0,
      show3Dcrosshair: false,
      dragAndDropEnabled: false,
      dragMode: WINDOWING,
      loadingText: "",
      logLevel: "error",
      viewModeHotKey: "",
      clipPlaneHotKey: "",
    });
    nv.onLocationChange = (where) => this.moved(where);
    nv.onIntensityChange = () => this.showWindow();
    await nv.attachToCanvas(this.canvas, false);
    // Gradients are for surfaces, which are not drawn here, and take longer than all else together
    // where there is no graphics card: a mere copy takes their place.
    nv.blurShader = nv.sobelFirstOrderShader = nv.passThroughShader;
    this.canvas.tabIndex = -1;
    this.nv = nv;
  }

  /** Colour the layer's voxels as heat and lungs are wanted now. */
  color(layer) {
    const { steps, inside, rim, rim_color } = state.about.layer;
    const [outer, inner] = state.about.heat[this.view.is_disease ? 1 : 0];
    const most = Math.max(...inner.map((color) => color[3]));
    const share = this.opacity.value / 100 / most;
    const table = Array.from({ length: 256 }, () => [...inner[0].slice(0, 3), 0]);
    if (this.view.has_heat) {
      outer.forEach(([r, g, b, a], step) => (table[step] = [r, g, b, a * share]));
      inner.forEach(([r, g, b, a], step) => (table[inside + step] = [r, g, b, a * share]));
    }
    table[rim] = [...rim_color, this.lungs.checked ? 0.9 : 0];
    const bytes = table.flatMap(([r, g, b, a]) => [r, g, b, Math.round(Math.min(1, a) * 255)]);
    const colors = new Uint32Array(Uint8Array.from(bytes).buffer);
    const voxels = new Uint32Array(layer.img.buffer);
    const { levels } = this;
    for (let i = 0; i < voxels.length; i++) voxels[i] = colors[levels[i]];
    const stops = inner.map(([r, g, b, a]) => `rgb(${r} ${g} ${b} / ${Math.min(1, a * share).toFixed(3)})`);
    this.ramp.style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")}), linear-gradient(#2b2b2b, #2b2b2b)`;
    this.heatOf = (level) => (level === rim ? null : (level >= inside ? level - inside : level) / steps);
  }

  /** Heat where the crosshair is; null where none can be told. */
  heatHere() {
    const [depth, height, width] = this.view.shape;
    const at = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
    const [x, y, z] = this.nv.scene.crosshairPos;
    // The file's rows run to the left and to the back, NiiVue's shares to the right and the front.
    const index = (at(z, depth) * height + at(1 - y, height)) * width + at(1 - x, width);
    return this.view.has_heat ? this.heatOf(this.levels[index]) : null;
  }

  /** Divide the stage among the planes; each is as large as its millimetres ask for. */
  layOut() {
    if (!this.view) return;
    const [depth, height, width] = this.view.shape.map((n, axis) => n * this.view.spacing_mm[axis]);
    const box = this.stage.clientWidth;
    const isNarrow = box < NARROW_PX;
    const isAll = this.plane === "all";
    // Axial beside coronal over sagittal, or one above the other.
    const shapes = { axial: height / width, coronal: depth / width, sagittal: depth / height };
    let wanted = box * (shapes[this.plane] ?? 1);
    if (isAll) wanted = isNarrow ? box * (shapes.axial + shapes.coronal) + box * 0.72 * shapes.sagittal : box * 0.6 * Math.max(shapes.axial, 0.62);
    const most = isNarrow && isAll ? 1500 : Math.max(320, window.innerHeight * (isAll ? 0.66 : 0.78));
    this.stage.style.height = `${Math.round(Math.min(wanted, most))}px`;
    const tiles = this.tiles(isNarrow, shapes);
    this.marks.replaceChildren(...tiles.map(([plane, left, top, width, height]) => mark(plane, left, top, width, height)));
    if (!this.nv?.volumes.length) return;
    if (isAll) this.nv.setCustomLayout(tiles.map(([plane, ...position]) => ({ sliceType: SLICE_TYPE[plane], position })));
    else {
      this.nv.clearCustomLayout();
      this.nv.setSliceType(SLICE_TYPE[this.plane]);
    }
    this.nv.drawScene();
  }

  /** Where each plane lies in the stage: name, left, top, width and height in parts of it. */
  tiles(isNarrow, { axial, coronal, sagittal }) {
    if (this.plane !== "all") return [[this.plane, 0, 0, 1, 1]];
    if (!isNarrow) return [["axial", 0, 0, 0.6, 1], ["coronal", 0.6, 0, 0.4, 0.5], ["sagittal", 0.6, 0.5, 0.4, 0.5]];
    const total = axial + coronal + 0.72 * sagittal;
    const [first, second] = [axial / total, coronal / total];
    return [["axial", 0, 0, 1, first], ["coronal", 0, first, 1, second], ["sagittal", 0, first + second, 1, 1 - first - second]];
  }

  setPlane(plane) {
    this.plane = plane;
    this.select.value = plane;
    this.layOut();
  }

  setWindow(index) {
    const [, centre, width] = WINDOWS[index];
    this.applyWindow(centre, width);
  }

  readWindow() {
    const [centre, width] = [this.centre.valueAsNumber, this.width.valueAsNumber];
    if (Number.isFinite(centre) && width > 0) this.applyWindow(centre, width);
  }

  applyWindow(centre, width) {
    const scan = this.nv?.volumes[0];
    if (!scan || this.view.unit !== "HU") return;
    scan.cal_min = centre - width / 2;
    scan.cal_max = centre + width / 2;
    this.nv.refreshLayers(scan, 0);
    this.nv.drawScene();
    this.showWindow();
  }

  /** Say which window is on; one that was dragged has no name. */
  showWindow() {
    const scan = this.nv?.volumes[0];
    if (!scan) return;
    const [centre, width] = [(scan.cal_min + scan.cal_max) / 2, scan.cal_max - scan.cal_min];
    this.centre.value = String(Math.round(centre));
    this.width.value = String(Math.round(width));
    WINDOWS.forEach(([, c, w], index) => this.windows[index].setAttribute("aria-pressed", String(Math.abs(c - centre) < 1 && Math.abs(w - width) < 1)));
  }

  drawLayers() {
    if (!this.nv?.volumes.length || this.isPending) return;
    // A slider moves faster than some computers draw.
    this.isPending = true;
    requestAnimationFrame(() => {
      this.isPending = false;
      const layer = this.nv.volumes[1];
      this.color(layer);
      this.nv.refreshLayers(layer, 1);
      this.nv.drawScene();
    });
  }

  toggleHeat() {
    if (Number(this.opacity.value) > 0) {
      this.lastOpacity = this.opacity.value;
      this.opacity.value = "0";
    } else this.opacity.value = this.lastOpacity ?? "62";
    this.drawLayers();
  }

  toggleLungs() {
    this.lungs.checked = !this.lungs.checked;
    this.drawLayers();
  }

  /** Stand in a slice of the scan, counted from 1 at the feet. */
  goTo(slice) {
    if (!this.nv?.volumes.length) return;
    const total = this.scan.slices.total;
    this.at = Math.min(Math.max(1, slice), total);
    const place = this.nv.scene.crosshairPos;
    place[2] = (this.at - 0.5) / total;
    this.nv.drawScene();
    this.nv.createOnLocationChange();
  }

  /** Stand in the hottest place of the lungs, or in a slice where there is none. */
  goToPlace(millimetres, slice) {
    if (!this.nv?.volumes.length) return;
    if (millimetres) {
      // Patient x and y run to the left and to the back, NiiVue's to the right and to the front.
      const [x, y, z] = millimetres;
      this.nv.scene.crosshairPos = this.nv.mm2frac([-x, -y, z]);
    }
    this.goTo(slice);
  }

  moved(where) {
    const total = this.scan.slices.total;
    const slice = Math.min(total, Math.max(1, Math.floor(this.nv.scene.crosshairPos[2] * total) + 1));
    this.at = slice;
    const values = Object.fromEntries((where.values ?? []).map((each) => [each.name, each.value]));
    const own = values["whole.nii"] ?? values["scan.nii"];
    const words = [`Slice ${slice} of ${total} from the feet`, `z = ${where.mm[2].toFixed(1)} mm`.replace("-", "−")];
    if (own !== undefined) words.push(`${Math.round(own)} ${this.view.unit === "HU" ? "HU" : ""}`.replace("-", "−").trim());
    const heat = this.heatHere();
    if (heat !== null) words.push(`heat ${heat.toFixed(2)}`);
    if (this.isWhole) words.push("every voxel");
    this.place.textContent = words.join("  ·  ");
    this.onmove(slice, words[0]);
  }
}
