import { expect, test } from 'vitest';
import { CompletionReader, DescriptorWriter } from '../../src/links/descriptor_writer.js';
import { CompletionLayout, DescriptorLayout, Opcode, Status } from '../../src/proto/generated.js';

const LIMIT = 2 ** 53 - 1;

test.each([0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, LIMIT - 1, LIMIT])(
  'numbers of up to 53 bits reach a descriptor whole: %d',
  (number) => {
    const memory = new ArrayBuffer(2 * DescriptorLayout.bytes);
    new DescriptorWriter(memory).fill(
      {
        id: 0xfffffffe,
        opcode: Opcode.refill,
        flags: 1,
        length: 3,
        slots: Uint32Array.of(0, 7, 8),
        places: new Uint32Array(3),
        generations: Float64Array.of(0, number, LIMIT - number),
        tenantTag: 2n ** 64n - 1n - BigInt(number),
        after: number,
        timeoutUs: 5,
      },
      1,
      2,
      3,
      4096,
    );
    const view = new DataView(memory);
    const { offset, bytes } = DescriptorLayout;
    for (const [index, generation] of [number, LIMIT - number].entries()) {
      const at = (field: keyof typeof offset) => index * bytes + offset[field];
      expect(view.getUint16(at('opcode'), true)).toBe(Opcode.refill);
      expect(view.getUint16(at('opcode') + 2, true)).toBe(1);
      expect(view.getUint32(at('slot'), true)).toBe(7 + index);
      expect(view.getUint32(at('grantId'), true)).toBe(3);
      expect(view.getUint32(at('pieceBytes'), true)).toBe(4096);
      expect(view.getBigUint64(at('generation'), true)).toBe(BigInt(generation));
      expect(view.getBigUint64(at('tenantTag'), true)).toBe(2n ** 64n - 1n - BigInt(number));
      expect(view.getBigUint64(at('after'), true)).toBe(BigInt(number));
      expect(view.getUint32(at('userData'), true)).toBe(0xfffffffe);
      expect(view.getUint32(at('userData') + 4, true)).toBe(1 + index);
    }
  },
);

test('a completion tells its batch, its item and its status', () => {
  const memory = new ArrayBuffer(2 * CompletionLayout.bytes);
  const view = new DataView(memory);
  const { offset, bytes } = CompletionLayout;
  for (const index of [0, 1]) {
    view.setUint16(index * bytes + offset.opcode, Opcode.evict, true);
    view.setUint16(index * bytes + offset.opcode + 2, index === 0 ? Status.ok : Status.missTenant, true);
    view.setUint32(index * bytes + offset.userData, 0xfffffff0 + index, true);
    view.setUint32(index * bytes + offset.userData + 4, 9 - index, true);
  }
  const heard: number[][] = [];
  new CompletionReader(memory).each(2, (...told) => heard.push(told));
  expect(heard).toEqual([
    [0xfffffff0, 9, Status.ok],
    [0xfffffff1, 8, Status.missTenant],
  ]);
});
