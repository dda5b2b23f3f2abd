/**
 * Whole numbers in proportion to `shares` that add up to `count`, by largest remainder; of equal remainders the first is
 * rounded up. The caller sees to it that the shares are not negative and not all 0.
 */
export function apportion(count: number, shares: readonly number[]): number[] {
  const total = shares.reduce((sum, each) => sum + each, 0);
  const exact = shares.map((each) => (each / total) * count);
  const counts = exact.map(Math.floor);
  const remainder = (index: number) => (exact[index] ?? 0) - (counts[index] ?? 0);
  const left = count - counts.reduce((sum, each) => sum + each, 0);
  const roundedUp = new Set([...shares.keys()].sort((a, b) => remainder(b) - remainder(a) || a - b).slice(0, left));
  return counts.map((each, index) => each + Number(roundedUp.has(index)));
}
