// Draws the photo, its mask or a heat map, and puts names and rings over it.

const LONGEST = 1600; // of the canvas; larger photos are shown smaller
const SHORTEST = 900; // smaller ones are drawn larger, so that edges stay sharp
const HEAT = [[11, 7, 36], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

export const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
export const css = (parts) => `rgb(${parts.join(" ")})`;

function heatColour(value) {
  const place = value * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2), part = place - low;
  return HEAT[low].map((v, i) => v + part * (HEAT[low + 1][i] - v));
}

export class View {
  constructor(canvas, marks) {
    this.canvas = canvas;
    this.marks = marks;
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => this.fitMarks()).observe(canvas);
  }

  // Nothing of an earlier photo stays.
  clear() {
    this.marks.replaceChildren();
    this.canvas.width = this.canvas.height = 1;
    this.photo = this.found = null;
  }

  // photo: a bitmap, or null where the browser cannot show the file; found: {width, height, mask}
  set(photo, found, colours) {
    const longest = Math.max(found.width, found.height);
    this.scale = longest > LONGEST ? LONGEST / longest : Math.max(1, Math.ceil(SHORTEST / longest));
    this.canvas.width = Math.round(found.width * this.scale);
    this.canvas.height = Math.round(found.height * this.scale);
    Object.assign(this, { photo, found, colours });
    this.heat = null;
  }

  draw({ hidden, opacity, heat, box }) {
    const { context, canvas } = this;
    context.globalAlpha = 1;
    context.fillStyle = "#2a2d33";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    if (this.photo) {
      context.filter = heat ? "grayscale(1)" : "none";
      context.drawImage(this.photo, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
    }
    if (heat) return this.drawHeat(heat, box, opacity);
    context.globalAlpha = opacity;
    context.drawImage(this.layer(hidden, false), 0, 0);
    context.globalAlpha = Math.min(1, opacity * 1.8);
    context.drawImage(this.layer(hidden, true), 0, 0);
  }

  // The mask in its colours at the canvas's size; with `edges` only the rims of the regions.
  layer(hidden, edges) {
    const { width, height } = this.canvas, { found, colours } = this;
    const picture = new ImageData(width, height), out = new Uint32Array(picture.data.buffer);
    const packed = colours.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
    const column = Int32Array.from({ length: width }, (_, x) => Math.min(found.width - 1, ((x + 0.5) / this.scale) | 0));
    const shown = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const row = Math.min(found.height - 1, ((y + 0.5) / this.scale) | 0) * found.width;
      for (let x = 0; x < width; x++) {
        const number = found.mask[row + column[x]];
        shown[y * width + x] = hidden.has(number) ? 0 : number;
      }
    }
    const thick = 2;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const number = shown[i];
        if (!number) continue;
        const rim =
          (x >= thick && shown[i - thick] !== number) || (x < width - thick && shown[i + thick] !== number) ||
          (y >= thick && shown[i - thick * width] !== number) || (y < height - thick && shown[i + thick * width] !== number);
        if (!edges || rim) out[i] = packed[number];
      }
    }
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }

  // heat: a bitmap [h, w] of grey; box: where it lies on the photo
  drawHeat(heat, box, opacity) {
    const [x, y, width, height] = box.map((side) => side * this.scale);
    const large = new OffscreenCanvas(this.canvas.width, this.canvas.height), pen = large.getContext("2d");
    // Beyond the outermost places the nearest one holds: stretched below, in its place above.
    pen.drawImage(heat, 0, 0, large.width, large.height);
    pen.drawImage(heat, x, y, width, height);
    const picture = pen.getImageData(0, 0, large.width, large.height);
    const table = Array.from({ length: 256 }, (_, i) => heatColour(i / 255));
    for (let i = 0; i < picture.data.length; i += 4) picture.data.set(table[picture.data[i]], i);
    pen.putImageData(picture, 0, 0);
    this.context.globalAlpha = Math.min(1, opacity * 1.3);
    this.context.drawImage(large, 0, 0);
    this.context.globalAlpha = 1;
  }

  // Where a class's name goes: the pixel of its region that is nearest to the region's middle.
  middle(number) {
    const { width, mask } = this.found;
    let count = 0, sx = 0, sy = 0;
    for (let i = 0; i < mask.length; i++) if (mask[i] === number) { count++; sx += i % width; sy += (i / width) | 0; }
    if (!count) return null;
    const cx = sx / count, cy = sy / count;
    let best = Infinity, at = 0;
    for (let i = 0; i < mask.length; i++) {
      if (mask[i] !== number) continue;
      const far = (i % width - cx) ** 2 + (((i / width) | 0) - cy) ** 2;
      if (far < best) { best = far; at = i; }
    }
    return [at % width + 0.5, ((at / width) | 0) + 0.5];
  }

  // names: [{text, number}]; places: [{x, y, weight, number}]
  mark(names, places) {
    this.marks.replaceChildren();
    const most = Math.max(...places.map((p) => p.weight), 1e-9);
    for (const { x, y, weight, number } of places) {
      const ring = this.put("place", x, y, number);
      const size = 7 + 15 * Math.sqrt(weight / most);
      ring.style.width = ring.style.height = `${size}px`;
    }
    for (const { text, number } of names) {
      const spot = this.middle(number);
      if (spot) this.put("name", ...spot, number).textContent = text;
    }
    this.fitMarks();
  }

  put(kind, x, y, number) {
    const mark = document.createElement("span");
    mark.className = kind;
    mark.style.left = `${(100 * x) / this.found.width}%`;
    mark.style.top = `${(100 * y) / this.found.height}%`;
    Object.assign(mark, { spot: [x, y] });
    mark.style.borderColor = css(this.colours[number]);
    this.marks.append(mark);
    return mark;
  }

  fitMarks() {
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = this.canvas;
    Object.assign(this.marks.style, {
      left: `${offsetLeft}px`, top: `${offsetTop}px`, width: `${offsetWidth}px`, height: `${offsetHeight}px`,
    });
    // A name at the edge moves inwards, so that all of it is seen.
    const within = (at, size, length) => Math.max(length / 2, Math.min(size - length / 2, at));
    for (const name of this.marks.querySelectorAll(".name")) {
      const [x, y] = name.spot;
      name.style.left = `${within((x / this.found.width) * offsetWidth, offsetWidth, name.offsetWidth)}px`;
      name.style.top = `${within((y / this.found.height) * offsetHeight, offsetHeight, name.offsetHeight)}px`;
    }
  }
}
