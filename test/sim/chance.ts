import { Random } from './random.js';

/** Where the product's seeds of hashes come from while a world is simulated: the same for the same world. */
export const hashSeeds = { random: new Random(0) };
