const COLORS = ["#3b82f6", "#d97706", "#16a34a", "#db2777", "#8b5cf6"];

/** The colour of the line with this number, readable on light and dark. */
export const color = (number) => COLORS[number % COLORS.length];

/**
 * Draw how values have changed since the first of them, in per cent.
 *
 * points: an array of objects, each { name: value, ... }, of the same names.
 */
export function drawChart(canvas, points) {
  if (points.length === 0) return;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  context.font = getComputedStyle(canvas).font;
  context.textBaseline = "middle";

  const names = Object.keys(points[0]);
  const change = (point, name) => (point[name] / points[0][name] - 1) * 100;
  const all = points.flatMap((point) => names.map((n) => change(point, n)));
  const step = stepFor(Math.max(...all) - Math.min(...all));
  const low = Math.floor(Math.min(...all) / step) * step;
  const high = Math.max(Math.ceil(Math.max(...all) / step) * step, low + step);
  const margin = context.measureText("+10.0 %").width + 12;
  const x = (i) => (i / Math.max(points.length - 1, 1)) * (width - margin);
  const y = (value) => 12 + ((high - value) / (high - low)) * (height - 24);

  context.fillStyle = context.strokeStyle = getComputedStyle(canvas).color;
  for (let value = low; value <= high + step / 2; value += step) {
    const sign = value > step / 2 ? "+" : "";
    const text = `${sign}${value.toFixed(step < 1 ? 1 : 0)} %`;
    context.globalAlpha = 0.75;
    context.fillText(text, width - margin + 10, y(value));
    context.globalAlpha = Math.abs(value) < step / 2 ? 0.5 : 0.15;
    context.fillRect(0, Math.round(y(value)), width - margin, 1);
  }

  context.globalAlpha = 1;
  context.lineWidth = 2;
  context.lineJoin = "round";
  for (const [number, name] of names.entries()) {
    context.strokeStyle = context.fillStyle = color(number);
    context.beginPath();
    points.forEach((point, i) => context.lineTo(x(i), y(change(point, name))));
    context.stroke();
    context.beginPath();
    context.arc(x(points.length - 1), y(change(points.at(-1), name)), 4, 0, 7);
    context.fill();
  }
}

// A round step, so that between two and five lines cross the chart.
function stepFor(range) {
  return [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((s) => range / s <= 4) ?? 50;
}
