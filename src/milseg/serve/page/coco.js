// COCO's compressed run lengths (maskApi.c): five bits a letter, lowest first; from the fourth count on, differences.

export function counts(text) {
  const found = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, letter;
    do {
      letter = text.charCodeAt(at++) - 48;
      value |= (letter & 31) << shift;
      shift += 5;
    } while (letter & 32);
    if (letter & 16) value |= -1 << shift;
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
  }
  return found;
}

// The class number of each pixel, row by row; 0 where no annotation is. `first` is the number of category 1.
export function maskOf(answer, first) {
  const { width, height } = answer.images[0];
  const mask = new Uint8Array(width * height);
  for (const { category_id, segmentation } of answer.annotations) {
    let at = 0, inside = false;
    for (const length of counts(segmentation.counts)) {
      // Runs go down the columns.
      if (inside) for (let i = at; i < at + length; i++) mask[(i % height) * width + ((i / height) | 0)] = category_id - 1 + first;
      at += length;
      inside = !inside;
    }
  }
  return { width, height, mask };
}

// Only what COCO defines, for a file.
export function cocoFile(answer) {
  const { info, licenses, images, annotations, categories } = answer;
  return JSON.stringify({ info, licenses, images, annotations, categories }, null, 1);
}
