/** A small writer of charts as SVG that stands on its own: no scripts, no fonts, a white ground. */

/** Where a chart goes in its picture, in pixels; axes and their labels lie inside. */
export interface Frame {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Curve {
  name: string;
  color: string;
  /** What is written below its end. */
  note?: string;
  /** x rising. */
  points: readonly (readonly [number, number])[];
}

export interface Bars {
  /** What a group of bars belongs to. */
  groups: readonly string[];
  /** One bar in each group. */
  series: readonly { name: string; color: string; values: readonly number[] }[];
}

interface Axis {
  label: string;
  /** Upper end; the lower one is 0. */
  max: number;
}

const MARGIN = { left: 64, right: 16, top: 64, bottom: 52 };
export const INK = '#1f2328';
export const FAINT = '#57606a';
export const GRID = '#d8dee4';
/** Least distance of two entries of a legend, and what a long one takes. */
const LEGEND_SPACING = 150;
const LEGEND_LETTER = 7.2;
const LEGEND_GAP = 36;
/** Keeps text readable where it crosses a line. */
export const HALO = 'stroke="#ffffff" stroke-width="4" paint-order="stroke"';

/** A whole picture. `summary` is what a reader who cannot see it is told. */
export function svgPicture(
  width: number,
  height: number,
  title: string,
  subtitle: string,
  summary: string,
  charts: readonly string[],
): string {
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img"`,
    `  font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13">`,
    `<title>${escapeXml(title)}</title>`,
    `<desc>${escapeXml(summary)}</desc>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(width / 2, 28, title, 'text-anchor="middle" font-size="17" font-weight="600"', INK),
    text(width / 2, 50, subtitle, 'text-anchor="middle"', FAINT),
    ...charts,
    '</svg>',
  ].join('\n')}\n`;
}

/** Curves over a common x axis, with marks at values of x. */
export function lineChart(
  frame: Frame,
  title: string,
  x: Axis,
  y: Axis,
  curves: readonly Curve[],
  marks: readonly { x: number; label: string }[],
): string {
  const plot = plotArea(frame);
  const atX = (value: number) => plot.x + (value / x.max) * plot.width;
  const atY = (value: number) => plot.y + plot.height - (value / y.max) * plot.height;
  const parts = [...heading(frame, title, curves), ...yAxis(frame, y)];
  for (const tick of ticks(x.max)) {
    parts.push(line(atX(tick), plot.y + plot.height, atX(tick), plot.y + plot.height + 5, INK));
    parts.push(text(atX(tick), plot.y + plot.height + 20, format(tick), 'text-anchor="middle"', FAINT));
  }
  parts.push(text(plot.x + plot.width / 2, frame.y + frame.height - 8, x.label, 'text-anchor="middle"', INK));
  for (const mark of marks) {
    const at = atX(mark.x);
    parts.push(line(at, plot.y, at, plot.y + plot.height, FAINT, 'stroke-dasharray="4 4"'));
    parts.push(text(at - 6, plot.y + plot.height - 8, mark.label, 'text-anchor="end"', FAINT));
  }
  for (const { color, points, note } of curves) {
    const path = points.map(([left, up]) => `${atX(left).toFixed(1)},${atY(up).toFixed(1)}`).join(' ');
    parts.push(`<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2.5" stroke-linejoin="round"/>`);
    const [endX, endY] = points.at(-1) ?? [0, 0];
    if (note !== undefined) parts.push(text(atX(endX), atY(endY) + 26, note, `text-anchor="middle" ${HALO}`, color));
  }
  return parts.join('\n');
}

/** Groups of bars side by side, with the value over each. */
export function barChart(frame: Frame, title: string, y: Axis, bars: Bars): string {
  const plot = plotArea(frame);
  const groupWidth = plot.width / bars.groups.length;
  const barWidth = Math.min(56, (groupWidth * 0.7) / bars.series.length);
  const parts = [...heading(frame, title, bars.series), ...yAxis(frame, y)];
  for (const [group, name] of bars.groups.entries()) {
    const middle = plot.x + (group + 0.5) * groupWidth;
    parts.push(text(middle, plot.y + plot.height + 20, name, 'text-anchor="middle"', INK));
    for (const [index, { color, values }] of bars.series.entries()) {
      const value = values[group] ?? 0;
      const height = (value / y.max) * plot.height;
      const left = middle + (index - bars.series.length / 2) * barWidth;
      const top = plot.y + plot.height - height;
      parts.push(rectangle(left + 2, top, barWidth - 4, height, color));
      parts.push(text(left + barWidth / 2, top - 6, format(value), 'text-anchor="middle" font-weight="600"', INK));
    }
  }
  return parts.join('\n');
}

/** The next value above that ends an axis well. */
export function niceMax(value: number): number {
  const step = niceStep(value);
  return Math.max(step, Math.ceil(value / step) * step);
}

function plotArea(frame: Frame): Frame {
  return {
    x: frame.x + MARGIN.left,
    y: frame.y + MARGIN.top,
    width: frame.width - MARGIN.left - MARGIN.right,
    height: frame.height - MARGIN.top - MARGIN.bottom,
  };
}

/** The title of a chart, and below it what the colours mean. */
function heading(frame: Frame, title: string, legend: readonly { name: string; color: string }[]): string[] {
  const plot = plotArea(frame);
  const parts = [text(plot.x, frame.y + 18, title, 'font-weight="600"', INK)];
  const longest = Math.max(0, ...legend.map(({ name }) => name.length));
  const spacing = Math.max(LEGEND_SPACING, LEGEND_GAP + LEGEND_LETTER * longest);
  for (const [index, { name, color }] of legend.entries()) {
    const left = plot.x + index * spacing;
    parts.push(rectangle(left, frame.y + 33, 14, 10, color), text(left + 20, frame.y + 43, name, '', INK));
  }
  return parts;
}

function yAxis(frame: Frame, axis: Axis): string[] {
  const plot = plotArea(frame);
  const parts: string[] = [];
  for (const tick of ticks(axis.max)) {
    const at = plot.y + plot.height - (tick / axis.max) * plot.height;
    parts.push(line(plot.x, at, plot.x + plot.width, at, tick === 0 ? INK : GRID));
    parts.push(text(plot.x - 8, at + 4, format(tick), 'text-anchor="end"', FAINT));
  }
  const [left, middle] = [frame.x + 16, plot.y + plot.height / 2];
  parts.push(text(left, middle, axis.label, `text-anchor="middle" transform="rotate(-90 ${left} ${middle})"`, INK));
  return parts;
}

function ticks(max: number): number[] {
  const step = niceStep(max);
  return Array.from({ length: Math.floor(max / step + 1e-9) + 1 }, (_, index) => index * step);
}

/** 1, 2 or 5 times a power of ten: about five steps. */
function niceStep(max: number): number {
  const power = 10 ** Math.floor(Math.log10(max / 5));
  return ([1, 2, 5].find((factor) => max / (factor * power) <= 6) ?? 10) * power;
}

function format(value: number): string {
  return value.toLocaleString('en-US', { maximumFractionDigits: value < 10 ? 2 : 0 });
}

export function text(x: number, y: number, content: string, attributes: string, color: string): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" fill="${color}" ${attributes}>${escapeXml(content)}</text>`;
}

export function line(x1: number, y1: number, x2: number, y2: number, color: string, attributes = ''): string {
  return `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" stroke="${color}" ${attributes}/>`;
}

export function rectangle(x: number, y: number, width: number, height: number, color: string, attributes = ''): string {
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${width.toFixed(1)}" height="${height.toFixed(1)}"`;
  return `<rect ${place} fill="${color}"${attributes === '' ? '' : ` ${attributes}`}/>`;
}

function escapeXml(content: string): string {
  return content.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
