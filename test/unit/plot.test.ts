import { expect, test } from 'vitest';
import { barChart, lineChart, niceMax, svgPicture } from '../../src/common/plot.js';

const FRAME = { x: 100, y: 200, width: 480, height: 416 };
// What the margins leave of it.
const PLOT = { left: 164, right: 564, top: 264, bottom: 564 };

const attributes = (svg: string, tag: string, name: string) =>
  [...svg.matchAll(new RegExp(`<${tag} [^>]*\\b${name}="([^"]*)"`, 'g'))].map(([, value]) => value);

test('a curve lies where its axes say', () => {
  const curve = {
    name: 'c',
    color: '#000',
    points: [
      [0, 0],
      [5, 50],
      [10, 100],
    ] as [number, number][],
  };
  const svg = lineChart(FRAME, 'title', { label: 'x', max: 10 }, { label: 'y', max: 100 }, [curve], []);
  expect(attributes(svg, 'polyline', 'points')).toEqual([
    `${PLOT.left}.0,${PLOT.bottom}.0 364.0,414.0 ${PLOT.right}.0,${PLOT.top}.0`,
  ]);
});

test('bars are as high as their values, which stand over them', () => {
  const series = [
    { name: 'one', color: '#111', values: [50, 100] },
    { name: 'two', color: '#222', values: [0, 25] },
  ];
  const svg = barChart(FRAME, 'title', { label: 'MB/s', max: 100 }, { groups: ['a', 'b'], series });
  const heights = attributes(svg, 'rect', 'height');
  // After the two patches of the legend.
  expect(heights.slice(2)).toEqual(['150.0', '0.0', '300.0', '75.0']);
  for (const label of ['50', '0', '100', '25', 'a', 'b', 'one', 'two', 'MB/s']) expect(svg).toContain(`>${label}<`);
});

test('a picture escapes what is written into it', () => {
  const svg = svgPicture(10, 10, 'a < b & "c"', '', '', []);
  expect(svg).toContain('<title>a &#60; b &#38; &#34;c&#34;</title>');
});

test.each([
  [7, 8],
  [10, 10],
  [81, 100],
  [163, 200],
  [351, 400],
  [0.3, 0.3],
])('an axis for %d ends at %d', (value, end) => {
  expect(niceMax(value)).toBeCloseTo(end, 9);
});
