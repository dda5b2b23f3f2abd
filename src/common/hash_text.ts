/** A number for a text, 32 bits (FNV-1a over UTF-16 units), 0 for none: it tells texts apart where nothing hangs on a collision. */
export function hashText(text: string): number {
  let hash = text === '' ? 0 : 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  return hash;
}
