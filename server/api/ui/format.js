// Numbers for people. Bytes read as in the server's own tables.

export const NONE = "–";

export function bytes(count) {
  if (Math.abs(count) < 1024) return `${count} B`;
  let unit = "";
  for (unit of ["KiB", "MiB", "GiB", "TiB"]) {
    count /= 1024;
    if (Math.abs(count) < 1024) break;
  }
  return `${hundredths(count)} ${unit}`;
}

// Ties go to the even digit, as in the server's tables; sizes of whole blocks often are ties.
function hundredths(value) {
  const scaled = Math.abs(value) * 100;
  const down = Math.floor(scaled);
  const falls = scaled - down === 0.5 && down % 2 === 0;
  return (falls ? (Math.sign(value) * down) / 100 : value).toFixed(2);
}

export function integer(count) {
  return Math.round(count).toLocaleString("en-US");
}

export function rate(perSecond) {
  return perSecond < 10 && perSecond > 0 ? perSecond.toFixed(1) : integer(perSecond);
}

export function seconds(value) {
  if (value >= 1) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const milliseconds = value * 1000;
  const digits = milliseconds < 10 ? 2 : milliseconds < 100 ? 1 : 0;
  return `${milliseconds.toFixed(digits)} ms`;
}

export function clock(milliseconds) {
  return new Date(milliseconds).toTimeString().slice(0, 8);
}

// Puts a number into a <data> element: as text for people, and whole in its value.
export function show(element, value, format) {
  const known = value !== null && value !== undefined;
  setText(element, known ? format(value) : NONE);
  const whole = known ? String(value) : "";
  if (element.getAttribute("value") !== whole) element.setAttribute("value", whole);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
